"""`edit-score` against a server on this machine."""

from __future__ import annotations

import math

import pytest
import torch
from chat_server import ChatServer, parts, redness
from PIL import Image

from fk_steer import FKSteering, load_reward, steer
from fk_steer.rewards import RewardError
from fk_steer.rewards.chat.verdicts import score_list
from fk_steer.shapes import load_pipeline


SOURCE = Image.new("RGB", (40, 30), (10, 20, 30))
EDITED = [Image.new("RGB", (40, 30), colour) for colour in ("red", "white")]


def grading(edit, quality):
    """A server's reply: these numbers for questions with two images, and those for questions with one."""

    def reply(text, images):
        return f'{{"reasoning": "so", "score": {edit if len(images) == 2 else quality}}}'

    return reply


def test_the_worse_numbers_count():
    """sqrt(min(edit) min(quality)), of scales to 25 brought to 10."""
    with ChatServer(grading([20, 10], [25, 5])) as server:
        score = load_reward("edit-score", base_url=server.url, source=SOURCE)([EDITED[0]], ["redder"])
    assert score.item() == pytest.approx(math.sqrt(4 * 2))


def test_what_is_asked():
    with ChatServer() as server:
        load_reward("edit-score", base_url=server.url, source=SOURCE)([EDITED[0]], ["make the sky {red}"])
    edit, quality = sorted(server.requests, key=lambda body: -len(parts(body)[1]))
    text, (before, after) = parts(edit)
    assert text.endswith("Editing instruction: make the sky {red}")
    assert before.getpixel((0, 0)) == (10, 20, 30) and redness(after) == 1.0
    text, (only,) = parts(quality)
    assert "make the sky" not in text and redness(only) == 1.0
    assert edit["temperature"] == 0 and "seed" not in edit


def test_self_ensemble():
    """The mean over passes, each with a seed of its own; a pass that cannot be read is left out."""
    given = iter([10.0, 20.0, math.nan])

    def reply(text, images):
        return f'{{"score": [{next(given)}, 25]}}' if len(images) == 2 else '{"score": [25, 25]}'

    with ChatServer(reply) as server:
        reward = load_reward("edit-score", base_url=server.url, source=SOURCE, passes=3, attempts=1)
        score = reward([EDITED[0]], ["redder"])
    assert score.item() == pytest.approx((math.sqrt(4 * 10) + math.sqrt(8 * 10)) / 2)
    assert sorted({body["seed"] for body in server.requests}) == [42, 43, 44]
    assert {body["temperature"] for body in server.requests} == {0.7}


def test_images_of_several_prompts():
    with ChatServer() as server:
        reward = load_reward("edit-score", base_url=server.url).editing({"redder": SOURCE, "whiter": EDITED[0]})
        reward(EDITED, ["redder", "whiter"])
        shown = {text.rsplit(": ")[-1]: images[0] for text, images in map(parts, server.requests) if len(images) == 2}
        assert {prompt: image.getpixel((0, 0)) for prompt, image in shown.items()} == {
            "redder": (10, 20, 30),
            "whiter": (255, 0, 0),
        }
        with pytest.raises(RewardError, match="does not know which image the prompt 'bluer' edits"):
            reward(EDITED, ["redder", "bluer"])


def test_a_source_from_a_file(tmp_path):
    SOURCE.save(tmp_path / "source.png")
    with ChatServer() as server:
        load_reward("edit-score", base_url=server.url, source=tmp_path / "source.png")([EDITED[0]], ["redder"])
    assert (10, 20, 30) in [images[0].getpixel((0, 0)) for _, images in map(parts, server.requests)]


def test_needs_the_image_that_is_edited():
    with ChatServer() as server, pytest.raises(RewardError, match=r"Expected `reward.editing\(image\)`"):
        load_reward("edit-score", base_url=server.url)(EDITED, ["redder"] * 2)
    assert not server.requests


def test_steers_an_edit():
    """Particles of an image are compared with what they are edits of."""
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    with ChatServer() as server:
        reward = load_reward("edit-score", base_url=server.url).editing(SOURCE)
        out = steer(pipe, reward, FKSteering(num_particles=2, lmbda=1.0, seed=0))(
            "a photo of a red star", num_inference_steps=4, generator=torch.Generator().manual_seed(0)
        )
    assert out.rewards[0].tolist() == sorted(out.rewards[0].tolist(), reverse=True)
    firsts = [images[0] for _, images in map(parts, server.requests) if len(images) == 2]
    assert firsts and all(image.getpixel((0, 0)) == (10, 20, 30) for image in firsts)


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ('{"reasoning": "x", "score": [20, 22.5]}', [20.0, 22.5]),
        ('```json\n{"score": 7}\n```', [7.0]),
        ('{"score": ["3", 4]}', [3.0, 4.0]),
        ('{"reasoning": "a "quoted" word", "score": [1, 2]}', [1.0, 2.0]),
        ("{'reasoning': 'so', 'score': [5, 6]}", [5.0, 6.0]),
        ('{"score": [1, 2]} no: {"score": [3, 4]}', [3.0, 4.0]),
        ('{"score": [20, 26]}', None),
        ('{"score": [-1, 2]}', None),
        ('{"score": []}', None),
        ('{"score": [null, 3]}', None),
        ("a fine edit, 20 and 20", None),
    ],
)
def test_replies(reply, scores):
    assert score_list(reply, 25.0) == scores

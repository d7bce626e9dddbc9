from __future__ import annotations

import json

import pytest
import torch
from chat_server import ChatServer
from PIL import Image
from typer.testing import CliRunner

from fk_steer import load_reward
from fk_steer.cli import app
from fk_steer.options import reward_options
from fk_steer.rewards import available_rewards
from fk_steer.testing.rewards import TINY_REWARDS


PROMPT = "a red circle"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name in ("pickscore", "aesthetic"):
        (folder / name).mkdir()
        TINY_REWARDS[name].save(folder / name)
    Image.new("RGB", (40, 30), "red").save(folder / "red.png")
    Image.new("RGBA", (20, 50), "#00ff0080").save(folder / "green.png")
    Image.effect_noise((40, 40), 50).save(folder / "whole.png")
    (folder / "half.png").write_bytes((folder / "whole.png").read_bytes()[:500])
    (folder / "text.png").write_text("not an image")
    return folder


@pytest.fixture
def options(folder):
    rewards = ("pickscore", "aesthetic")
    return [word for name in rewards for word in ("--reward-option", f"{name}:path={folder / name}")]


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_score_table(folder, options):
    images = [folder / "red.png", folder / "green.png"]
    result = invoke(
        "score", *images, "--prompt", PROMPT, "--reward", "pickscore,aesthetic", *options, "--device", "cpu"
    )
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].split() == ["image", "pickscore", "aesthetic"]
    for path in images:
        for name in ("pickscore", "aesthetic"):
            reward = load_reward(name, path=str(folder / name), device="cpu")
            score = reward([Image.open(path)], [PROMPT]).item()
            assert any(path.name in line and f"{score:.4f}" in line for line in lines)


def test_score_json_continues_past_broken_images(folder, options):
    images = [folder / name for name in ("text.png", "red.png", "half.png", "nowhere.png", "green.png")]
    result = invoke("score", *images, "--prompt", PROMPT, "--reward", "pickscore,aesthetic", *options, "--json")
    assert result.exit_code == 0, result.output
    scored = json.loads(result.stdout)
    assert [entry["image"] for entry in scored["results"]] == [str(folder / "red.png"), str(folder / "green.png")]
    assert all(set(entry["scores"]) == {"pickscore", "aesthetic"} for entry in scored["results"])
    assert {entry["image"]: bool(entry["error"]) for entry in scored["errors"]} == {
        str(folder / name): True for name in ("text.png", "half.png", "nowhere.png")
    }
    table = invoke("score", *images, "--prompt", PROMPT, "--reward", "aesthetic", *options[2:])
    assert "corrupt or of no known format" in table.output


def test_score_fails_if_no_image_can_be_read(folder, options):
    result = invoke("score", folder / "text.png", "--prompt", PROMPT, "--reward", "aesthetic", *options[2:], "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["results"] == []


def test_a_prompt_per_image(folder, options):
    images, prompts = [folder / "red.png", folder / "green.png"], [PROMPT, "two blue squares"]
    arguments = [word for prompt in prompts for word in ("--prompt", prompt)]
    result = invoke("score", *images, *arguments, "--reward", "pickscore", *options[:2], "--json", "--batch-size", 1)
    assert result.exit_code == 0, result.output
    reward = load_reward("pickscore", path=str(folder / "pickscore"))
    expected = reward([Image.open(path) for path in images], prompts)
    scores = [entry["scores"]["pickscore"] for entry in json.loads(result.stdout)["results"]]
    torch.testing.assert_close(torch.tensor(scores), expected, atol=1e-5, rtol=1e-5)


def test_one_image_for_two_prompts(folder, options):
    prompts = [PROMPT, "two blue squares"]
    arguments = [word for prompt in prompts for word in ("--prompt", prompt)]
    result = invoke("score", *[folder / "red.png"] * 2, *arguments, "--reward", "pickscore", *options[:2], "--json")
    entries = json.loads(result.stdout)["results"]
    assert [entry["prompt"] for entry in entries] == prompts
    assert entries[0]["scores"] != entries[1]["scores"]


def test_comparing_rewards_see_all_images_of_a_prompt(folder):
    for red in (50, 150, 250):
        Image.new("RGB", (30, 30), (red, 0, 0)).save(folder / f"{red}.png")
    images = [folder / f"{red}.png" for red in (150, 50, 250)]
    with ChatServer() as server:
        address = ("--reward-option", f"base_url={server.url}", "--reward-option", "variant=pair")
        result = invoke(
            "score", *images, "--prompt", PROMPT, "--reward", "unified-reward", *address, "--json", "--batch-size", 1
        )
    assert result.exit_code == 0, result.output
    scores = [entry["scores"]["unified-reward"] for entry in json.loads(result.stdout)["results"]]
    assert scores == [0.5, 0.0, 1.0]


def test_a_score_that_could_not_be_had_is_none(folder):
    def reply(text, images):
        return "Final Score: 4" if images[0].size == (40, 30) else "I would rather not say."

    images = [folder / "red.png", folder / "green.png"]
    with ChatServer(reply) as server:
        arguments = (*images, "--prompt", PROMPT, "--reward", "unified-reward")
        arguments += ("--reward-option", f"base_url={server.url}")
        result, table = invoke("score", *arguments, "--json"), invoke("score", *arguments)
    assert [entry["scores"]["unified-reward"] for entry in json.loads(result.stdout)["results"]] == [4.0, None]
    assert table.output.splitlines()[-1].split()[-1] == "none"


def test_images_are_turned_the_right_way_up(folder, options):
    upright = Image.effect_noise((60, 30), 90)
    upright.save(folder / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "lying.png", exif=exif)
    images = [folder / "upright.png", folder / "lying.png"]
    result = invoke("score", *images, "--prompt", PROMPT, "--reward", "pickscore", *options[:2], "--json")
    first, second = [entry["scores"] for entry in json.loads(result.stdout)["results"]]
    assert first == second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reward", "nope"], "Unknown reward 'nope'. Known: aesthetic"),
        (
            ["--reward", "pickscore", "--reward-option", "hps:path=x"],
            "is for a reward that is not scored by: pickscore",
        ),
        (["--reward", "pickscore", "--reward-option", "path"], "as KEY=VALUE, but got 'path'"),
        (["--reward", "pickscore", "--prompt", "another"], "--prompt once or 3 times, but got it 2 times"),
    ],
)
def test_bad_input(folder, arguments, message):
    result = invoke("score", *[folder / "red.png"] * 3, "--prompt", PROMPT, *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_options():
    pairs = ["dtype=float16", "a:compile=true", "b:path=x:y=z", "a:weight=0.5"]
    assert reward_options(pairs, "a", ["a", "b"]) == {"dtype": "float16", "compile": True, "weight": 0.5}
    assert reward_options(["b:path=x=z"], "b", ["a", "b"]) == {"path": "x=z"}
    assert reward_options(["path=C:/x"], "a", ["a"]) == {"path": "C:/x"}


def test_list():
    output = invoke("rewards").output
    assert all(name in output for name in available_rewards())


@pytest.mark.parametrize("name", available_rewards())
def test_show(name):
    result = invoke("rewards", "show", name)
    assert result.exit_code == 0, result.output
    card = available_rewards()[name].load().card
    text = " ".join(result.output.split())
    assert " ".join(card.summary.split()) in text
    for variant in [card.variant(key) for key in card.variants] or [card]:
        for fact in (variant.paper, variant.hub_id, variant.revision, variant.licence, *variant.files):
            assert fact is None or fact in text
    if card.typical_range:
        assert "{:g} to {:g}".format(*card.typical_range) in text


def test_show_unknown():
    result = invoke("rewards", "show", "nope")
    assert result.exit_code == 1
    assert "Unknown reward 'nope'. Known: aesthetic, " in result.stderr

"""Chat judges of videos against a real server on this machine."""

from __future__ import annotations

import re

import pytest
import torch
from chat_server import MODEL, ChatServer, parts, redness

from fk_steer import FKSteering, FrameReward, steer
from fk_steer.rewards import RewardError, load_reward
from fk_steer.rewards.chat.frames import frames_of, places
from fk_steer.rewards.chat.verdicts import better_video, final_score
from fk_steer.testing.tiny import wan
from llava_reward_guide.images import to_pil


SHADES = torch.linspace(0.0, 1.0, 4)


def videos(number=4, frames=12):
    """(number, frames, 3, 32, 32), the redder the higher their number, and each a little redder frame by frame."""
    batch = torch.zeros(number, frames, 3, 32, 32)
    batch[:, :, 0] = (0.9 * SHADES[:number, None] + 0.1 * torch.arange(frames) / frames)[:, :, None, None]
    return batch


def mean_redness(video, places):
    return sum(redness(frame) for frame in to_pil(video[list(places)])) / len(places)


def judge(text, pictures):
    """How red the frames are, in the form that the question asks for."""
    if "two videos" in text:
        half = len(pictures) // 2
        first, second = (sum(map(redness, some)) for some in (pictures[:half], pictures[half:]))
        return f"Both are red.\n**Video {1 if first > second else 2}** is better than the other."
    score = sum(map(redness, pictures)) / len(pictures)
    if "Physics" in text:
        return f"Alignment Score (1-5): {1 + 4 * score}\nPhysics Score (1-5): 3\nStyle Score (1-5): 2"
    return f"Visual Quality: 4\nDynamic Degree: 2\n**Final Score:** {1 + 9 * score}"


def reward_of(server, variant, **options):
    return load_reward("unified-reward", variant=variant, model=MODEL, base_url=server.url, **options)


def test_a_score_of_a_video():
    with ChatServer(judge) as server:
        reward = reward_of(server, "video")
        scores = reward(videos(), ["a red ball"] * 4)
    assert reward.takes_videos
    places = [i * 12 // 8 for i in range(8)]
    expected = [1 + 9 * mean_redness(video, places) for video in videos()]
    assert scores.tolist() == pytest.approx(expected, abs=1e-4)
    text, pictures = parts(server.requests[0])
    shown = sorted(redness(picture) for picture in pictures)
    assert len(pictures) == 8
    assert [redness(picture) for picture in pictures] == shown, "frames come in their order"
    kinds = [part["type"] for part in server.requests[0]["messages"][0]["content"]]
    assert kinds == ["image_url"] * 8 + ["text"]
    assert text.endswith("Text Caption: [a red ball]")
    dimensions = re.findall(r"^- ([A-Z][\w ]+):", text, re.M)
    assert dimensions == [
        "Visual Quality", "Temporal Consistency", "Dynamic Degree", "Text Alignment", "Factual Consistency",
    ]  # fmt: skip
    assert "from 1 (very poor) to 4 (excellent)" in text
    assert "Final Score: s\nwhere s is a number from 1 (very poor) to 10 (excellent)." in text


def test_axes_of_a_video():
    with ChatServer(judge) as server:
        one = videos()[:1]
        # Up to sixteen frames are shown, of twelve all.
        alignment = 1 + 4 * mean_redness(one[0], range(12))
        assert reward_of(server, "video-axes")(one, ["a"]).item() == pytest.approx((alignment + 3 + 2) / 3, abs=1e-4)
        assert reward_of(server, "video-axes", axis="physics")(one, ["a"]).item() == 3.0
    text, pictures = parts(server.requests[0])
    assert len(pictures) == 12
    assert "Alignment Score (1-5): X\nPhysics Score (1-5): Y\nStyle Score (1-5): Z" in text
    with pytest.raises(ValueError, match="Unknown axis 'coherence'.*alignment, physics, style"):
        load_reward("unified-reward", variant="video-axes", axis="coherence")


def test_pairs_of_videos():
    with ChatServer(judge) as server:
        reward = reward_of(server, "video-pair", frames=3)
        scores = reward(videos(), ["a"] * 4)
    assert reward.relative
    assert scores.tolist() == pytest.approx([0.0, 1 / 3, 2 / 3, 1.0])
    text, pictures = parts(server.requests[0])
    assert len(server.requests) == 6
    assert len(pictures) == 6
    assert "Video 1 is better than Video 2.\nVideo 2 is better than Video 1.\nBoth videos are equally good." in text


def test_replies_that_cannot_be_read_are_asked_for_again():
    replies = iter(["Hm.", "Final Score: 7/10"])
    with ChatServer(lambda text, pictures: next(replies)) as server:
        assert reward_of(server, "video")(videos()[:1], ["a"]).item() == 7.0
    assert "s being a number from 1 to 10" in parts(server.requests[1])[0]
    with ChatServer(lambda text, pictures: "Final Score: 11") as server, pytest.raises(RewardError, match="no score"):
        reward_of(server, "video")(videos()[:1], ["a"])


def test_frames_to_the_end():
    """As the scripts of the models that reason choose them."""
    assert places(17, 8, to_the_end=True) == [0, 2, 4, 6, 9, 11, 13, 16]
    assert places(17, 8) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert places(3, 8, to_the_end=True) == [0, 1, 2]
    assert places(5, 1, to_the_end=True) == [0]


@pytest.mark.parametrize(("count", "places"), [(8, range(8)), (17, (0, 2, 4, 6, 8, 10, 12, 14)), (3, range(3))])
def test_frames(count, places):
    video = torch.arange(count).view(1, count, 1, 1, 1).expand(-1, -1, 3, 2, 2) / 255
    for given in (video, [to_pil(video[0])]):
        (shown,) = frames_of(given, 8)
        assert [picture.getpixel((0, 0))[0] for picture in shown] == list(places)
    with pytest.raises(ValueError, match="Expected videos"):
        frames_of(video[:, 0], 8)


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Video 1 is better than Video 2.", 1.0),
        ("... so **Video 2** is better than Video 1.", 0.0),
        ("Both videos are equally good.", 0.5),
        ("I cannot see videos.", None),
    ],
)
def test_verdicts(reply, verdict):
    assert better_video(reply) == verdict


@pytest.mark.parametrize(("reply", "score"), [("Final Score: 8.5", 8.5), ("Final Score: 4/5", 8.0), ("9", 9.0)])
def test_scores_of_ten(reply, score):
    assert final_score(reply, 10.0) == score


def test_steers_wan_as_it_is():
    call = {"num_inference_steps": 2, "height": 16, "width": 16, "num_frames": 5, "max_sequence_length": 16}
    with ChatServer(judge) as server:
        reward = reward_of(server, "video")
        steered = steer(wan(), reward, FKSteering(num_particles=2, schedule=(0.5,)))
        output = steered("a red ball", generator=torch.Generator().manual_seed(0), output_type="pt", **call)
        assert torch.allclose(reward(output.particles[0], ["a red ball"] * 2), output.rewards[0], atol=1e-3)
        with pytest.raises(ValueError, match="scores videos itself"):
            FrameReward(reward)

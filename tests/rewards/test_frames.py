"""Rewards of images on the frames of videos."""

from __future__ import annotations

import pytest
import torch

from fk_steer.rewards import FrameReward, as_reward


def brightness(images, prompts):
    assert images.ndim == 4
    return images.mean((1, 2, 3))


VIDEOS = torch.linspace(0, 1, 10).view(2, 5, 1, 1, 1).expand(2, 5, 3, 4, 4)


@pytest.mark.parametrize(
    ("reduce", "frames", "kept"), [("mean", 5, range(5)), ("mean", 3, (0, 2, 4)), ("min", 9, range(5))]
)
def test_frames_are_scored_and_reduced(reduce, frames, kept):
    scores = VIDEOS[:, list(kept), 0, 0, 0]
    expected = scores.mean(1) if reduce == "mean" else scores.amin(1)
    assert torch.allclose(FrameReward(brightness, frames, reduce)(VIDEOS, ["a", "b"]), expected)


def test_a_combination_inside():
    both = FrameReward({as_reward(brightness): 2.0}, 5)
    assert torch.allclose(both(VIDEOS, ["a", "a"]), 2 * VIDEOS.mean((1, 2, 3, 4)))


@pytest.mark.parametrize("options", [{"frames": 0}, {"frames": 2.5}, {"reduce": "max"}])
def test_settings_are_checked(options):
    with pytest.raises(ValueError, match="Expected"):
        FrameReward(brightness, **options)


def test_images_are_refused():
    with pytest.raises(ValueError, match="frames of videos"):
        FrameReward(brightness).encode(torch.zeros(1, 3, 4, 4), ["a"])

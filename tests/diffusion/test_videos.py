"""Steering pipelines of videos."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fk_steer import Execution, FKSteering, FrameReward, steer
from fk_steer.testing import redness
from fk_steer.testing.videos import wan


CALL = {"num_inference_steps": 4, "height": 32, "width": 32, "num_frames": 9, "max_sequence_length": 16}
STEERING = FKSteering(num_particles=5, lmbda=10.0, schedule=(0.5,))
REWARD = FrameReward(redness, frames=4)


def run(output_type="pt", execution=None, steering=STEERING, reward=REWARD, pipe=None, prompt="a red circle", **options):
    call = {**CALL, "generator": torch.Generator().manual_seed(0), "output_type": output_type, **options}
    return steer(pipe or wan(), reward, steering, execution)(prompt, **call)


def pixels(videos, output_type):
    """Videos as numbers, the frames of each picture by picture."""
    if output_type == "pil":
        return np.stack([[np.asarray(frame) for frame in video] for video in videos])
    return np.asarray(videos)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
@pytest.mark.parametrize("prompt", ["a red circle", ["a red circle", "two blue squares"]], ids=["one", "two"])
@pytest.mark.parametrize("chunks", [(1, None), (2, None), (2, 4), (8, 1)])
def test_chunks_change_nothing(output_type, prompt, chunks):
    whole = run(output_type, prompt=prompt)
    decode, score = chunks
    chunked = run(output_type, Execution(decode_batch_size=decode, reward_batch_size=score), prompt=prompt)
    assert torch.equal(whole.rewards, chunked.rewards)
    assert torch.equal(whole.log_weights, chunked.log_weights)
    for few, many in zip(whole.particles, chunked.particles, strict=True):
        assert np.array_equal(pixels(few, output_type), pixels(many, output_type))
    assert np.array_equal(pixels(whole.images, output_type), pixels(chunked.images, output_type))
    assert type(whole.particles) is type(chunked.particles)
    assert whole.trace.events[-1].scores == chunked.trace.events[-1].scores

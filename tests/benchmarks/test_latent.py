"""The study of a small reward of noisy latents."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.latent.encoder import DistilledReward, LatentEncoder
from benchmarks.latent.run import spearman
from benchmarks.latent.train import errors, noised, read
from fk_steer import FKSteering, steer
from fk_steer.bundled import bundled_options
from fk_steer.loading import load_pipeline
from fk_steer.rewards import Cascade, RewardError, load_reward
from fk_steer.testing import sdxl


def test_noise_keeps_the_variance_and_says_its_levels():
    torch.manual_seed(0)
    latents = torch.randn(2000, 4, 8, 8)
    noisy, signal, noise = noised(latents)
    torch.testing.assert_close(signal**2 + noise**2, torch.ones(2000))
    epsilon = (noisy - signal[:, None, None, None] * latents)[noise > 0.1] / noise[noise > 0.1, None, None, None]
    assert float(epsilon.std()) == pytest.approx(1.0, abs=0.01)
    # 5% are clean.
    assert float((noise == 0).float().mean()) == pytest.approx(0.05, abs=0.015)


def test_only_the_ratio_of_the_levels_matters():
    encoder, latents, text = LatentEncoder(), torch.randn(3, 4, 8, 8), torch.randn(3, 128)
    preserving = encoder(latents, torch.full((3,), 0.8), torch.full((3,), 0.6), text)
    exploding = encoder(latents / 0.8, torch.ones(3), torch.full((3,), 0.75), text)
    torch.testing.assert_close(preserving, exploding, rtol=1e-4, atol=1e-5)


def test_the_errors_of_a_perfect_student_are_none():
    embeddings, texts = read(["a red circle"] * 4), read(["a red circle", "two stars", "a red circle", "a moon"])
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(4))
    everything, reward = errors(lambda *_: embeddings, torch.randn(4, 4, 8, 8), embeddings, texts)
    assert (everything, reward) == (0.0, 0.0)
    everything, reward = errors(lambda *_: embeddings + texts, torch.randn(4, 4, 8, 8), embeddings, texts)
    torch.testing.assert_close((everything, reward), (torch.tensor(1.0), torch.tensor(1.0)))


def test_rank_correlation():
    assert spearman([1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0]) == pytest.approx(1.0)
    assert spearman([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0]) == pytest.approx(0.8)
    assert spearman([1.0, 1.0, 1.0, 1.0], [1.0, 3.0, 2.0, 4.0]) == 0.0


def test_steers_the_bundled_model(tmp_path):
    torch.manual_seed(0)
    save_file({name: value.half() for name, value in LatentEncoder().state_dict().items()}, tmp_path / "encoder")
    reward = DistilledReward(tmp_path / "encoder")
    clip = load_reward("clip-score", device="cpu", **bundled_options("shapes", "clip-score"))
    pipe = load_pipeline("shapes")
    pipe.set_progress_bar_config(disable=True)
    output = steer(pipe, Cascade(reward, clip, switch=1.0), FKSteering(2, schedule=(0.3, 0.6)))(
        "a photo of a red circle", generator=torch.Generator().manual_seed(0), num_inference_steps=5
    )
    assert output.trace.reward_calls_by_part == {"distilled": 4, "clip-score": 2}
    with pytest.raises(RewardError, match=r"reads latents \(B, 4, 8, 8\) of the bundled models alone"):
        steer(sdxl(), reward, FKSteering(2, schedule=(0.5,)))(
            "a red circle", num_inference_steps=4, height=32, width=32, generator=torch.Generator().manual_seed(0)
        )

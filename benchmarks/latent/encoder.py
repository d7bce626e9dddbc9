"""A reward of noisy latents: what the bundled CLIP will say of the image that noisy latents become.

The image side of that CLIP is distilled into a small transformer over noisy latents and the text's embedding, which
regresses the embedding of the clean image and so learns E[embedding | x_t, text]; its product with the text's embedding
estimates E[cosine | x_t, text], the expected reward that steering's potentials would like to have (arXiv 2501.06848),
where scoring the decoded x0 prediction gives the reward of E[x0 | x_t, text].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from safetensors.torch import load_file
from torch import Tensor, nn

from fk_steer.bundled import resolve_reward
from fk_steer.rewards.base import RewardError
from fk_steer.rewards.clip_score import CLIPScore
from fk_steer.rewards.latent import LatentReward, Latents


class LatentEncoder(nn.Module):
    """Noisy latents (B, 4, 8, 8) and texts to expected CLIP embeddings (B, 128) of the images that they become."""

    def __init__(self, width: int = 96, layers: int = 3) -> None:
        super().__init__()
        self.patch = nn.Sequential(nn.Conv2d(4, 64, 3, padding=1), nn.GELU(), nn.Conv2d(64, width, 2, stride=2))
        self.places = nn.Parameter(0.02 * torch.randn(16, width))
        self.text = nn.Linear(128, 2 * width)
        self.wave, self.level = Timesteps(64, True, 0.0), TimestepEmbedding(64, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 3 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 128))

    def forward(self, noisy: Tensor, signal: Tensor, noise: Tensor, text: Tensor) -> Tensor:
        """
        Args:
            noisy: (B, 4, 8, 8), signal * x0 + noise * epsilon.
            signal: (B,) of any sampler; only its ratio to `noise` matters.
            noise: (B,) likewise.
            text: (B, 128) embeddings of length one of what the images are to show.

        Returns:
            (B, 128), whose lengths are below one as far as it is unsure.
        """
        length = (signal**2 + noise**2).sqrt()
        # An angle from 0 (clean) to 90 degrees (noise), on the scale of a thousand timesteps.
        angle = torch.atan2(noise, signal) * (2000 / torch.pi)
        tokens = self.patch(noisy / length[:, None, None, None]).flatten(2).mT + self.places
        everywhere, beside = self.text(text).chunk(2, 1)
        level = self.level(self.wave(angle).to(noisy.dtype)) + everywhere
        tokens = self.layers(torch.cat([tokens + level[:, None], beside[:, None]], 1))
        embedding: Tensor = self.out(tokens.mean(1))
        return embedding


class DistilledReward(LatentReward):
    """What the bundled CLIP is expected to say of the images that latents of the bundled models become.

    Args:
        path: of the encoder's weights; None for random ones.
        device: where it runs; None for the CPU.

    Raises:
        OSError: if there is no such file.
    """

    name = "distilled"
    default_lmbda = 20.0

    def __init__(self, path: str | Path | None = None, device: Any = "cpu") -> None:
        self.device = torch.device(device)
        self.encoder = LatentEncoder().requires_grad_(False).eval()
        if path is not None:
            self.encoder.load_state_dict({name: value.float() for name, value in load_file(path).items()})
        self.encoder.to(self.device)
        self.clip = CLIPScore(path=resolve_reward("clip-score", "shapes"), device=self.device)

    def of_latents(self, latents: Latents, prompts: Sequence[str]) -> Tensor:
        """The rewards (B,) of latents (B, 4, 8, 8).

        Raises:
            RewardError: for latents of another shape.
        """
        if latents.noisy.shape[1:] != (4, 8, 8):
            raise RewardError(
                "Reward 'distilled' reads latents (B, 4, 8, 8) of the bundled models alone, but got "
                f"{tuple(latents.noisy.shape)}."
            )
        noisy = latents.noisy.to(self.device, torch.float32)
        signal, noise = (
            torch.full((len(noisy),), level, device=self.device) for level in (latents.signal, latents.noise)
        )
        texts = torch.stack(self.clip.prompts(prompts))
        return (self.encoder(noisy, signal, noise, texts) * texts).sum(1)

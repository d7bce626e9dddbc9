"""`shapes-latent`: how much a CLIP will like the image that noisy latents of the bundled model become.

It looks at what the frozen UNet of `shapes` makes of latents and text on its way down, as diffusion-native reward
models do (DiNa-LRM, arXiv 2602.11146), through a head that was trained on noised latents of finished images and their
rewards. The regression on x_t makes it an estimate of E[reward(x0) | x_t, prompt], which is what steering by twisted
potentials would like to know (arXiv 2306.17775), where the reward of the x0 prediction is reward(E[x0 | x_t]).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn

from ..bundled import WEIGHTS
from ..rewards.base import RewardError
from ..rewards.card import RewardCard
from ..rewards.latent import LatentReward, Latents
from .models import make_scheduler


HEAD = WEIGHTS / "latent-reward" / "head.safetensors"
WIDTH = 64


class ValueHead(nn.Module):
    """Reads the feature maps of the UNet: a transformer layer over their places, a text that asks, a number."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Linear(64, WIDTH), nn.Linear(128, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(64 + 16, WIDTH))
        self.layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.text = nn.Linear(128, WIDTH)
        self.pool = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.value = nn.Sequential(nn.LayerNorm(2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 1))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, fine: Tensor, coarse: Tensor, text: Tensor) -> Tensor:
        """
        Args:
            fine, coarse: (B, 64, 8, 8) and (B, 128, 4, 4).
            text: (B, tokens, 128).

        Returns:
            (B,) rewards.
        """
        tokens = torch.cat([self.fine(fine.flatten(2).mT), self.coarse(coarse.flatten(2).mT)], 1) + self.places
        tokens = self.layer(tokens)
        found, _ = self.pool(self.text(text.mean(1, keepdim=True)), tokens, tokens, need_weights=False)
        value: Tensor = self.value(torch.cat([found[:, 0], tokens.mean(1)], 1))[:, 0]
        return self.mean + self.scale * value


class Backbone(nn.Module):
    """The way down of the bundled UNet, frozen."""

    def __init__(self) -> None:
        super().__init__()
        unet = UNet2DConditionModel.from_pretrained(str(WEIGHTS / "sd" / "unet"))
        self.conv_in, self.down_blocks, self.mid_block = unet.conv_in, unet.down_blocks, unet.mid_block
        self.time_proj, self.time_embedding = unet.time_proj, unet.time_embedding
        alphas = make_scheduler().alphas_cumprod
        self.register_buffer("log_ratios", (0.5 * ((1 - alphas).log() - alphas.log())).double(), persistent=False)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, noisy: Tensor, signal: Tensor, noise: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            noisy: (B, 4, 8, 8), signal * x0 + noise * epsilon.
            signal, noise: (B,), of any sampler; only their ratio matters.
            text: (B, tokens, 128).

        Returns:
            (B, 64, 8, 8) and (B, 128, 4, 4), `fine` and `coarse` of a `ValueHead`.
        """
        length = (signal.double() ** 2 + noise.double() ** 2).sqrt()
        sample = (noisy / length.to(noisy)[:, None, None, None]).to(text.dtype)
        embedding = self.time_embedding(self.time_proj(self.timesteps(signal, noise)).to(text.dtype))
        hidden = self.conv_in(sample)
        maps: list[Tensor] = []
        for block in self.down_blocks:
            hidden, seen = block(hidden, embedding, encoder_hidden_states=text)
            maps += seen
        return maps[0], self.mid_block(hidden, embedding, encoder_hidden_states=text)

    def timesteps(self, signal: Tensor, noise: Tensor) -> Tensor:
        """The steps (B,) of training, counted from 0, whose noise is nearest in its logarithm."""
        ratio = (noise.double() / signal.double()).clamp_min(1e-12).log().to(self.log_ratios.device)
        return (ratio[:, None] - self.log_ratios).abs().argmin(1)


class ShapesLatentReward(LatentReward):
    """What the bundled CLIP will say of the image that latents of the bundled model `shapes` become.

    Args:
        path: of the head's weights; None for those that come along.
        device: where it runs; None for where the latents are.

    Raises:
        FileNotFoundError: if there is no such file.
    """

    card = RewardCard(
        summary="What the bundled CLIP will say of the image that noisy latents of the bundled model 'shapes' become; "
        "scores latents alone.",
        typical_range=(0.5, 0.9),
        default_lmbda=20.0,
    )
    name = "shapes-latent"
    default_lmbda = card.default_lmbda

    def __init__(self, path: str | Path | None = None, device: Any = None) -> None:
        self.backbone, self.head = Backbone(), ValueHead()
        self.head.load_state_dict({name: value.float() for name, value in load_file(path or HEAD).items()})
        self.head.requires_grad_(False).eval()
        self.device = device

    def of_latents(self, latents: Latents, prompts: Sequence[str]) -> Tensor:
        """The rewards (B,) of latents (B, 4, 8, 8).

        Raises:
            RewardError: for latents or texts of another pipeline.
        """
        text = latents.embeddings[0] if latents.embeddings else None
        if latents.noisy.shape[1:] != (4, 8, 8) or text is None or text.shape[2] != 128:
            raise RewardError("Reward 'shapes-latent' reads latents of the bundled model 'shapes' alone.")
        device = latents.noisy.device if self.device is None else torch.device(self.device)
        self.backbone.to(device), self.head.to(device)
        levels = (torch.full((len(latents),), level) for level in (latents.signal, latents.noise))
        text = text.to(device, torch.float32)
        maps = self.backbone(latents.noisy.to(device, torch.float32), *levels, text)
        rewards: Tensor = self.head(*maps, text)
        return rewards

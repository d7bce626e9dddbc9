"""DiNa-LRM: half of a Stable Diffusion 3.5 that reads noisy latents and says how well people will like the image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from llava_reward_guide.images import to_pil

from ..smc import integer
from .base import Images, RewardError, check_one_prompt_per_image
from .card import RewardCard
from .dina_lrm_model import CONFIG, HEAD, LORA, load_model
from .latent import LatentReward, Latents
from .loading import default_device
from .local import default_dtype


SHIFT = 3.0
"""Of the schedule of Stable Diffusion 3.5, on whose levels clean latents are noised."""


class DiNaLRM(LatentReward):
    """DiNa-LRM (Liu et al., arXiv 2602.11146): a reward of the noisy latents of Stable Diffusion 3, trained on people's
    preferences over HPDv3, (r + 10) / 10 of what the head says.

    It reads the latents of an event at the level of noise they have, noise / (signal + noise), and the texts as the
    pipeline has encoded them. Latents with less noise than `levels`, as final ones, are noised up to these first, with
    the same noise for all, so that equal latents get equal rewards. liuhuohuo/DiNa-LRM-SD35M-12layers holds a LoRA and
    the head; the layers beneath are read from stabilityai/stable-diffusion-3.5-medium, once more than for the pipeline.

    Args:
        path: folder or hub id in the published layout: config.json, checkpoint/rm_head.pt, checkpoint/backbone_lora.
        backbone: folder or hub id of the pipeline of which the transformer is read; None for the one in config.json.
        levels: of noise in (0, 1), or one. The head reads several together, such as 0.2, 0.5, 0.7, as the original can.
        noises: how many times clean latents are noised; the mean of the rewards counts. The original draws once.
        revision: of a hub id given as `path`.
        device: None for a CUDA device if there is one.
        dtype: None for bfloat16 on CUDA devices, as the original, and float32 elsewhere.

    Raises:
        ValueError: for a level or number out of range.
        RewardLoadError: if the weights cannot be loaded.
    """

    name = "dina-lrm"
    card = RewardCard(
        summary="How well people will like the image that latents of Stable Diffusion 3 become, read at any level of "
        "noise; scores latents alone.",
        paper="arXiv 2602.11146",
        hub_id="liuhuohuo/DiNa-LRM-SD35M-12layers",
        files=(CONFIG, HEAD, LORA),
        licence="Apache-2.0 (code); the backbone's own: Stability AI Community License",
        typical_range=(0.0, 2.0),
        default_lmbda=5.0,
        dtype="bfloat16",
        weights=1.37,
    )
    default_lmbda = card.default_lmbda

    def __init__(
        self,
        path: str | None = None,
        backbone: str | None = None,
        levels: float | Sequence[float] = 0.1,
        noises: int = 4,
        revision: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> None:
        given = tuple(levels) if isinstance(levels, Sequence) and not isinstance(levels, str) else (levels,)
        if not given or not all(isinstance(one, (int, float)) and 0 < one < 1 for one in given):
            raise ValueError(f"Expected `levels` to be numbers between 0 and 1, but got {levels!r}.")
        self.levels = tuple(sorted({nearest_level(float(one)) for one in given}))
        self.noises = integer("noises", noises, 1)
        self.device, self.dtype = default_device(device), default_dtype(device, dtype, self.card.dtype)
        place = path or str(self.card.hub_id)
        self.model = load_model(place, backbone, revision, self.dtype, self.name).to(self.device)

    def check_pipeline(self, pipe: Any) -> None:
        """See `LatentReward`."""
        kinds = [kind.__name__ for kind in type(pipe).__mro__]
        if not any(kind.startswith("StableDiffusion3") for kind in kinds):
            raise ValueError(f"{self._reads}, but {kinds[0]} has others. Take another reward.")

    def of_latents(self, latents: Latents, prompts: Sequence[str]) -> Tensor:
        """The rewards (B,) of latents (B, 16, H, W) with the embeddings of Stable Diffusion 3.

        Raises:
            RewardError: for latents or texts of another pipeline.
        """
        backbone = self.model.backbone
        shape = latents.noisy.shape[1:]
        if len(shape) != 3 or shape[0] != backbone.channels:
            raise RewardError(f"{self._reads}, ({backbone.channels}, H, W) each, but got {tuple(shape)}.")
        words, pooled = (latents.embeddings[place] if len(latents.embeddings) == 4 else None for place in (0, 2))
        if (
            words is None or words.ndim != 3 or words.shape[2] != backbone.words
            or pooled is None or pooled.ndim != 2 or pooled.shape[1] != backbone.pooled
        ):  # fmt: skip
            found = [None if one is None else tuple(one.shape[1:]) for one in latents.embeddings]
            raise RewardError(
                f"{self._reads}, with its embeddings of the texts: (T, {backbone.words}) and, pooled, "
                f"({backbone.pooled},) at places 0 and 2 of four, but got {found}."
            )
        words, pooled = (one.to(self.device, self.dtype) for one in (words, pooled))
        length = latents.signal + latents.noise
        own = latents.noise / length
        noisy = latents.noisy.to(self.device, torch.float32) / length
        levels = [level for level in self.levels if level > own and self.model.design.noised]
        if len(levels) < len(self.levels):
            levels = [own, *levels]
        rewards = []
        for noise in self._noises(shape) if levels != [own] else [None]:
            inputs = [noisy if noise is None else noised(noisy, own, level, noise) for level in levels]
            rewards.append(self.model([one.to(self.dtype) for one in inputs], levels, words, pooled).float())
        return (torch.stack(rewards).mean(0) + 10) / 10

    @torch.no_grad()
    def of_images(self, pipe: Any, images: Images, prompts: Sequence[str]) -> Tensor:
        """The rewards (B,) of finished images, whose latents and texts a pipeline of Stable Diffusion 3 encodes.

        Args:
            pipe: with its autoencoder and text encoders.
            images: (B, 3, H, W) in [0, 1], or PIL images of one size, sides divisible by 16.
            prompts: one per image.

        Raises:
            ValueError: unless there is one prompt per image, or for another pipeline.
        """
        self.check_pipeline(pipe)
        check_one_prompt_per_image(images, prompts)
        vae, device = pipe.vae, pipe.vae.device
        pixels = pipe.image_processor.preprocess(to_pil(images)).to(device, vae.dtype)
        # The most likely latents, where the original draws some: equal images get equal rewards.
        latents = (vae.encode(pixels).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor
        texts = pipe.encode_prompt(list(prompts), None, None, device=device, do_classifier_free_guidance=False)
        return self.of_latents(Latents(latents, latents.float(), 1.0, 0.0, None, tuple(texts)), prompts)

    @property
    def _reads(self) -> str:
        return f"Reward '{self.name}' reads latents of Stable Diffusion 3"

    def _noises(self, shape: Sequence[int]) -> Tensor:
        """(N, C, H, W), the same at every call and on every device."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.noises, *shape, generator=generator).to(self.device)


def noised(latents: Tensor, own: float, level: float, noise: Tensor) -> Tensor:
    """Latents (1 - own) * x0 + own * epsilon with so much `noise` added that they are of a higher level."""
    kept = (1 - level) / (1 - own)
    return kept * latents + (level**2 - (kept * own) ** 2) ** 0.5 * noise


@lru_cache
def _training_levels() -> Tensor:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=SHIFT).sigmas


def nearest_level(level: float) -> float:
    """The level nearest to one among the 1000 of Stable Diffusion 3.5's schedule, as the original takes it."""
    levels = _training_levels()
    return float(levels[(levels - level).abs().argmin()])

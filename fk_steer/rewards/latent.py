"""Rewards of noisy latents: events of the loop need no decoded image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .asking import blaming
from .base import Images, Reward, RewardError, one_per_image


@dataclass(frozen=True)
class Latents:
    """States of a denoising loop, as a `LatentReward` reads them: noisy = signal * x0 + noise * epsilon.

    Attributes:
        noisy: (B, ...) as the scheduler has them, packed if the pipeline packs them; of final images the clean latents.
        x0: (B, ...) float32, the denoiser's predictions of the clean latents; of final images those themselves.
        signal: the factor of x0 at this step, alpha; 1 for final images.
        noise: the standard deviation of the noise at this step, sigma; 0 for final images.
        timestep: of the scheduler; None for final images.
        embeddings: what the pipeline's last `encode_prompt` returned, tensor by tensor, each (B, ...) for the texts of
            these rows: for SD v2.1 the prompt's and the negative prompt's, for SDXL and SD3 also both pooled ones. None
            for what is not a tensor of a row per particle; empty for a pipeline without `encode_prompt`.
    """

    noisy: Tensor
    x0: Tensor
    signal: float
    noise: float
    timestep: float | None
    embeddings: tuple[Tensor | None, ...] = ()

    def __len__(self) -> int:
        return len(self.noisy)

    def __getitem__(self, rows: slice) -> Latents:
        """Those of some rows."""
        embeddings = tuple(None if one is None else one[rows] for one in self.embeddings)
        return Latents(self.noisy[rows], self.x0[rows], self.signal, self.noise, self.timestep, embeddings)


class LatentReward(Reward):
    """Says how good the images will be that noisy latents become; higher is better.

    A subclass defines `of_latents`, and stands wherever a reward does: alone, then the final latents are scored too,
    or as the cheap one of a `Cascade`, whose final images another reward scores. An event that nothing else scores
    decodes nothing, unless pictures of the x0 predictions are kept.

    ```py
    class Bright(LatentReward):
        default_lmbda = 10.0

        def of_latents(self, latents, prompts):
            return latents.x0[:, 0].mean((1, 2))
    ```
    """

    def of_latents(self, latents: Latents, prompts: Sequence[str]) -> Tensor:
        """The rewards (B,) of latents for the prompts at the same positions, on any device.

        Raises:
            TypeError: if the class does not define this.
        """
        raise TypeError(f"Expected the class {type(self).__name__} to define `of_latents`.")

    def check_pipeline(self, pipe: Any) -> None:
        """Make sure before a run that it can read the latents of a pipeline. By default it can.

        Raises:
            ValueError: if it cannot.
        """

    def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor:
        """Images cannot be read.

        Raises:
            RewardError: always.
        """
        raise RewardError(refusal(self.name))


def refusal(name: str) -> str:
    """What is said where a `LatentReward` is to score images."""
    return (
        f"Reward '{name}' reads the latents of a denoising loop, so it cannot score images. Steer by it, or take "
        "another reward for images."
    )


def check_scores_images(name: str, factory: Any) -> None:
    """Make sure before its weights are loaded that a reward scores images.

    Args:
        factory: what makes it, see `reward_factory`.

    Raises:
        ValueError: for a `LatentReward`.
    """
    if isinstance(factory, type) and issubclass(factory, LatentReward):
        raise ValueError(refusal(name))


def encode_latents(reward: LatentReward, latents: Latents, prompts: Sequence[str], where: str) -> Tensor:
    """The rewards (B,) that `reward.of_latents` gives, on its device.

    Args:
        where: completes "... returned shape (2, 1) ..." in messages, for example 'at step 20'.

    Raises:
        RewardError: unless there is one number per particle, or from what the reward raised.
    """
    with blaming(reward, prompts, where), torch.no_grad():
        values: Any = reward.of_latents(latents, list(prompts))
    return one_per_image(reward, values, prompts, where)

"""Rewards of latents and images: decoded and scored in blocks, every part of a composite reward on record."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..rewards.base import RewardFunction, evaluate
from ..trace import Stopwatch
from .decode import LatentDecoder


class Scorer:
    """Scores images with several rewards at once.

    Args:
        clock: counts the seconds in 'decode' and 'reward'.
        decode_batch_size, reward_batch_size: latents per call of the decoder and images per call of a reward; None is
            everything at once.

    Attributes:
        calls: images scored so far, by name of the reward.
    """

    def __init__(self, clock: Stopwatch, decode_batch_size: int | None, reward_batch_size: int | None) -> None:
        self.clock = clock
        self.decode_batch_size, self.reward_batch_size = decode_batch_size, reward_batch_size
        self.calls: dict[str, int] = {}

    def of_images(
        self, rewards: Mapping[str, RewardFunction], images: Tensor, prompts: list[str], where: str
    ) -> dict[str, Tensor]:
        """Name -> rewards (B,), float64, of images (B, 3, H, W).

        Raises:
            RewardError: see `evaluate`.
        """
        size = self.reward_batch_size or len(images)
        scores = {}
        with self.clock("reward"):
            for name, reward in rewards.items():
                parts = [
                    evaluate(reward, images[start : start + size], prompts[start : start + size], where)
                    for start in range(0, len(images), size)
                ]
                scores[name] = torch.cat(parts)
                self.calls[name] = self.calls.get(name, 0) + len(images)
        return scores

    def of_latents(
        self,
        rewards: Mapping[str, RewardFunction],
        latents: Tensor,
        decoder: LatentDecoder,
        prompts: list[str],
        where: str,
    ) -> dict[str, Tensor]:
        """Name -> rewards (B,) of latents (B, ...). Only one block of images is in memory at a time."""
        size = self.decode_batch_size or len(latents)
        both = self.decode_batch_size and self.reward_batch_size
        block = max(size, self.reward_batch_size or 0) if both else len(latents)
        blocks = []
        for start in range(0, len(latents), block):
            with self.clock("decode"):
                images = torch.cat([decoder(chunk) for chunk in latents[start : start + block].split(size)])
            blocks.append(self.of_images(rewards, images, prompts[start : start + block], where))
        return {name: torch.cat([scores[name] for scores in blocks]) for name in rewards}

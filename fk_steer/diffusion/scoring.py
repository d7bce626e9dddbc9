"""Rewards of latents and images: decoded and scored in blocks, every part of a composite reward on record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..rewards.base import GroupReward, RewardError, RewardFunction, evaluate
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
    ) -> dict[str, Any]:
        """Name -> rewards (B,), float64, of images (B, 3, H, W); of a `GroupReward` the list of their B encodings.

        Raises:
            RewardError: see `evaluate`.
        """
        size = self.reward_batch_size or len(images)
        scores = {}
        with self.clock("reward"):
            for name, reward in rewards.items():
                score = _encode if isinstance(reward, GroupReward) else evaluate
                parts = [
                    score(reward, images[start : start + size], prompts[start : start + size], where)
                    for start in range(0, len(images), size)
                ]
                scores[name] = _join(parts)
                self.calls[name] = self.calls.get(name, 0) + len(images)
        return scores

    def of_latents(
        self,
        rewards: Mapping[str, RewardFunction],
        latents: Tensor,
        decoder: LatentDecoder,
        prompts: list[str],
        where: str,
    ) -> dict[str, Any]:
        """The same of latents (B, ...). Only one block of images is in memory at a time, beside what group rewards
        keep of each image."""
        size = self.decode_batch_size or len(latents)
        both = self.decode_batch_size and self.reward_batch_size
        block = max(size, self.reward_batch_size or 0) if both else len(latents)
        blocks = []
        for start in range(0, len(latents), block):
            with self.clock("decode"):
                images = torch.cat([decoder(chunk) for chunk in latents[start : start + block].split(size)])
            blocks.append(self.of_images(rewards, images, prompts[start : start + block], where))
        return {name: _join([scores[name] for scores in blocks]) for name in rewards}


def _encode(reward: Any, images: Tensor, prompts: list[str], where: str) -> list[Any]:
    encodings = list(reward.encode(images, prompts))
    if len(encodings) != len(prompts):
        raise RewardError(
            f"Reward '{reward.name}' returned {len(encodings)} encodings {where}, but one per image was expected, "
            f"{len(prompts)}."
        )
    return encodings


def _join(parts: list[Any]) -> Any:
    return torch.cat(parts) if isinstance(parts[0], Tensor) else [entry for part in parts for entry in part]

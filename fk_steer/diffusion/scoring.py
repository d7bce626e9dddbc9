"""Rewards of latents and images: decoded and scored in blocks, every part of a composite reward on record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..report.trace import Stopwatch
from ..rewards.base import GroupReward, RewardError, RewardFunction, evaluate
from .decode import LatentDecoder
from .parallel import Ranks, join_entries


class Scorer:
    """Scores images with several rewards at once.

    Args:
        ranks: who shares the work.
        clock: counts the seconds in 'decode' and 'reward'.
        decode_batch_size, reward_batch_size: latents per call of the decoder and images per call of a reward; None is
            everything at once.

    Attributes:
        calls: images scored so far by all ranks, by name of the reward.
    """

    def __init__(
        self, ranks: Ranks, clock: Stopwatch, decode_batch_size: int | None, reward_batch_size: int | None
    ) -> None:
        self.ranks, self.clock = ranks, clock
        self.decode_batch_size, self.reward_batch_size = decode_batch_size, reward_batch_size
        self.calls: dict[str, int] = {}

    def of_images(
        self, rewards: Mapping[str, RewardFunction], images: Tensor, prompts: list[str], where: str
    ) -> dict[str, Any]:
        """Name -> rewards (B,), float64, of images (B, 3, H, W); of a `GroupReward` the list of their B encodings.

        Raises:
            RewardError: see `evaluate`.
        """
        return self._shared(lambda share: self._of_images(rewards, images[share], prompts[share], where), len(images))

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
        return self._shared(
            lambda share: self._of_latents(rewards, latents[share], decoder, prompts[share], where), len(latents)
        )

    def _shared(self, score: Callable[[slice], dict[str, Any]], count: int) -> dict[str, Any]:
        scores = self.ranks.map(score, count)
        for name in scores:
            self.calls[name] = self.calls.get(name, 0) + count
        return scores

    def _of_images(
        self, rewards: Mapping[str, RewardFunction], images: Tensor, prompts: list[str], where: str
    ) -> dict[str, Any]:
        size = self.reward_batch_size or len(images)
        scores = {}
        with self.clock("reward"):
            for name, reward in rewards.items():
                score = _encode if isinstance(reward, GroupReward) else evaluate
                parts = [
                    score(reward, images[start : start + size], prompts[start : start + size], where)
                    for start in range(0, len(images), size)
                ]
                scores[name] = join_entries(parts)
        return scores

    def _of_latents(
        self,
        rewards: Mapping[str, RewardFunction],
        latents: Tensor,
        decoder: LatentDecoder,
        prompts: list[str],
        where: str,
    ) -> dict[str, Any]:
        size = self.decode_batch_size or len(latents)
        both = self.decode_batch_size and self.reward_batch_size
        block = max(size, self.reward_batch_size or 0) if both else len(latents)
        blocks = []
        for start in range(0, len(latents), block):
            with self.clock("decode"):
                images = torch.cat([decoder(chunk) for chunk in latents[start : start + block].split(size)])
            blocks.append(self._of_images(rewards, images, prompts[start : start + block], where))
        return {name: join_entries([scores[name] for scores in blocks]) for name in rewards}


def _encode(reward: Any, images: Tensor, prompts: list[str], where: str) -> list[Any]:
    encodings = list(reward.encode(images, prompts))
    if len(encodings) != len(prompts):
        raise RewardError(
            f"Reward '{reward.name}' returned {len(encodings)} encodings {where}, but one per image was expected, "
            f"{len(prompts)}."
        )
    return encodings

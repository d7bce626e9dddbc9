"""Rewards of latents and images: decoded and scored in blocks, every part of a composite reward on record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..rewards.base import Reward, encode_images
from ..trace import Stopwatch
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

    def of_images(self, rewards: Sequence[Reward], images: Tensor, prompts: list[str], where: str) -> dict[Reward, Any]:
        """Leaf -> what it makes of images (B, 3, H, W): rewards (B,), float64 on the CPU, or a list of B encodings.

        Raises:
            RewardError: unless there is one entry per image.
        """
        return self._shared(
            lambda share: self._of_images(rewards, images[share], prompts[share], where), len(images), rewards
        )

    def of_latents(
        self,
        rewards: Sequence[Reward],
        latents: Tensor,
        decoder: LatentDecoder,
        prompts: list[str],
        where: str,
    ) -> dict[Reward, Any]:
        """The same of latents (B, ...). Only one block of images is in memory at a time, beside what group rewards
        keep of each image."""
        return self._shared(
            lambda share: self._of_latents(rewards, latents[share], decoder, prompts[share], where),
            len(latents),
            rewards,
        )

    def _shared(
        self, score: Callable[[slice], dict[Reward, Any]], count: int, rewards: Sequence[Reward]
    ) -> dict[Reward, Any]:
        scores = of_all_ranks(self.ranks, score, count, rewards)
        for reward in scores:
            self.calls[reward.name] = self.calls.get(reward.name, 0) + count
        return scores

    def _of_images(
        self, rewards: Sequence[Reward], images: Tensor, prompts: list[str], where: str
    ) -> dict[Reward, Any]:
        size = self.reward_batch_size or len(images)
        scores: dict[Reward, Any] = {}
        with self.clock("reward"):
            for reward in rewards:
                parts = [
                    _encode(reward, images[start : start + size], prompts[start : start + size], where)
                    for start in range(0, len(images), size)
                ]
                scores[reward] = join_entries(parts)
        return scores

    def _of_latents(
        self,
        rewards: Sequence[Reward],
        latents: Tensor,
        decoder: LatentDecoder,
        prompts: list[str],
        where: str,
    ) -> dict[Reward, Any]:
        size = self.decode_batch_size or len(latents)
        both = self.decode_batch_size and self.reward_batch_size
        block = max(size, self.reward_batch_size or 0) if both else len(latents)
        blocks = []
        for start in range(0, len(latents), block):
            with self.clock("decode"):
                images = torch.cat([decoder(chunk) for chunk in latents[start : start + block].split(size)])
            blocks.append(self._of_images(rewards, images, prompts[start : start + block], where))
        return {reward: join_entries([scores[reward] for scores in blocks]) for reward in rewards}


def of_all_ranks(
    ranks: Ranks, score: Callable[[slice], dict[Reward, Any]], count: int, rewards: Sequence[Reward]
) -> dict[Reward, Any]:
    """`Ranks.map` of scores by reward, which travel by their place among the rewards."""

    def by_place(share: slice) -> dict[str, Any]:
        scores = score(share)
        return {str(place): scores[reward] for place, reward in enumerate(rewards)}

    found = ranks.map(by_place, count)
    return {reward: found[str(place)] for place, reward in enumerate(rewards)}


def _encode(reward: Reward, images: Tensor, prompts: list[str], where: str) -> Any:
    encodings = encode_images(reward, images, prompts, where)
    return encodings.to("cpu", torch.float64) if isinstance(encodings, Tensor) else encodings

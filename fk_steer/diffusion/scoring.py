"""Rewards of latents and images: decoded and scored in blocks, moved to the CPU once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..report.trace import Stopwatch
from ..rewards.asking import check_scores, encode_images
from ..rewards.base import Reward
from ..rewards.latent import LatentReward, Latents, encode_latents
from .decode import Decoder
from .execution import Execution
from .ranks import Ranks, join_entries


Keep = Callable[[Tensor], list[Any]]
"""Makes of images (B, 3, H, W) or videos (B, F, 3, H, W) what is to be kept of each."""


class Scorer:
    """Scores distinct images with the leaves of a reward.

    Args:
        ranks: who shares the work.
        clock: counts the seconds in 'decode' and 'reward'.
        execution: how much at a time.
        videos: whether the images are videos.

    Attributes:
        keeps: what to keep of images that are scored, by a name.
        calls: images scored so far by all ranks, by name of the reward.
        kept: by those names, of the images last scored, in their order.
    """

    def __init__(self, ranks: Ranks, clock: Stopwatch, execution: Execution, videos: bool = False) -> None:
        self.ranks, self.clock, self.execution = ranks, clock, execution
        self._most = execution.reward_batch_size or (execution.decode_batch_size if videos else None)
        """Images per call of the reward."""
        self.keeps: dict[str, Keep] = {}
        self.calls: Counter[str] = Counter()
        self.kept: dict[str, list[Any]] = {}

    def of_images(
        self, leaves: Mapping[Reward, str], images: Tensor, prompts: Sequence[str], where: str, keep: bool = True
    ) -> dict[Reward, Any]:
        """Leaf -> what it makes of images (D, 3, H, W): rewards (D,), float64 on the CPU, or D encodings.

        Args:
            leaves: their names in the trace.
            where: for messages.
            keep: whether to keep of them what `keeps` says.

        Raises:
            RewardError: if a leaf returns NaN or anything but one entry per image. +-inf is allowed.
        """
        return self._shared(
            leaves,
            lambda share: self._collect(leaves, [images[share]], prompts[share], where, keep),
            len(images),
            keep,
        )

    def of_latents(
        self,
        leaves: Mapping[Reward, str],
        latents: Tensor,
        rows: Tensor,
        decoder: Decoder,
        prompts: Sequence[str],
        where: str,
        keep: bool = True,
    ) -> dict[Reward, Any]:
        """The same of latents (D, ...) of rows (D,) of the batch. Only one block of images is in memory at a time,
        beside what leaves keep of each image."""
        return self._shared(
            leaves,
            lambda share: self._collect(
                leaves, self._decoded(latents[share], rows[share], decoder), prompts[share], where, keep
            ),
            len(latents),
            keep,
        )

    def of_states(
        self, leaves: Mapping[LatentReward, str], latents: Latents, prompts: Sequence[str], where: str
    ) -> dict[Reward, Any]:
        """Leaf -> rewards (D,), float64 on the CPU, of latents that it reads as they are."""

        def score(share: slice) -> dict[str, Any]:
            some, texts, found = latents[share], prompts[share], {}
            size = self.execution.reward_batch_size or max(len(some), 1)
            starts = range(0, len(some), size)
            with self.clock("reward"):
                for leaf, name in leaves.items():
                    parts = [encode_latents(leaf, some[i : i + size], texts[i : i + size], where) for i in starts]
                    found[name] = join_entries(parts)
                found = _on_cpu(found)
            return {name: check_scores(leaf, found[name], texts, where) for leaf, name in leaves.items()}

        return self._shared(leaves, score, len(latents), keep=False)

    def _shared(
        self, leaves: Mapping[Any, str], score: Callable[[slice], dict[str, Any]], count: int, keep: bool
    ) -> dict[Reward, Any]:
        if keep:
            self.kept = {}
        found = self.ranks.map(score, count)
        for name in leaves.values():
            self.calls[name] += count
        if keep:
            self.kept = {name: found[_KEPT + name] for name in self.keeps}
        return {leaf: found[name] for leaf, name in leaves.items()}

    def _decoded(self, latents: Tensor, rows: Tensor, decoder: Decoder) -> Any:
        size = self.execution.decode_batch_size or len(latents)
        both = self.execution.decode_batch_size and self._most
        block = max(size, self._most or 0) if both else len(latents)
        for some, theirs in zip(latents.split(block), rows.split(block)):
            with self.clock("decode"):
                images = [decoder(chunk, row) for chunk, row in zip(some.split(size), theirs.split(size))]
                joined = images.pop() if len(images) == 1 else torch.cat(images)
                images.clear()
            yield joined
            del joined

    def _collect(
        self, names: Mapping[Reward, str], blocks: Any, prompts: Sequence[str], where: str, keep: bool
    ) -> dict[str, Any]:
        parts: dict[str, list[Any]] = {name: [] for name in names.values()}
        keeps = self.keeps if keep else {}
        kept: dict[str, list[Any]] = {_KEPT + name: [] for name in keeps}
        start = 0

        def look(images: Tensor) -> int:
            size = self._most or len(images)
            with self.clock("reward"):
                for leaf, name in names.items():
                    for first in range(0, len(images), size):
                        some = images[first : first + size]
                        texts = prompts[start + first : start + first + len(some)]
                        parts[name].append(encode_images(leaf, some, texts, where))
            for name, make in keeps.items():
                kept[_KEPT + name] += make(images)
            return len(images)

        for images in blocks:
            start += look(images)
            del images  # before the next are decoded
        with self.clock("reward"):
            found = _on_cpu({name: join_entries(some) for name, some in parts.items()})
        for leaf, name in names.items():
            if isinstance(found[name], Tensor):
                found[name] = check_scores(leaf, found[name], prompts, where)
        return {**found, **kept}


_KEPT = "kept: "


def _on_cpu(found: dict[str, Any]) -> dict[str, Any]:
    """The tensors among the values, float64, by one transfer from each device."""
    by_device: dict[torch.device, list[str]] = {}
    for name, values in found.items():
        if isinstance(values, Tensor):
            by_device.setdefault(values.device, []).append(name)
    for names in by_device.values():
        together = torch.cat([found[name].detach().flatten() for name in names])
        sizes = [len(found[name]) for name in names]
        found |= dict(zip(names, together.cpu().double().split(sizes)))
    return found

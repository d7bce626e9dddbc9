"""The final videos of many particles, in the form asked for, chunk by chunk and each once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .outputs import convert


class LeftBeforeDecoding(Exception):
    """The pipeline was about to decode its last latents, which is done in chunks elsewhere."""


class FinalVideos:
    """Collects videos as they are decoded.

    Args:
        number: how many there will be.
        output_type: 'pil', 'np' or 'pt'.
        apart: whether they are decoded in several processes, so that each has to be handed around.
    """

    def __init__(self, number: int, output_type: str, apart: bool) -> None:
        self.number, self.output_type, self.apart = number, output_type, apart
        self._all: Tensor | None = None
        """All of them, in the order in which they came."""
        self._count = 0

    def keep(self, videos: Tensor) -> list[Any]:
        """What stands for each of some videos (B, F, 3, H, W) in [0, 1]."""
        if self.output_type == "pil":
            pictures: list[Any] = convert(videos, "pil")
            return pictures
        if self.output_type == "np":
            videos = videos.movedim(2, -1).cpu()
        if self.apart:
            return list(videos)
        if self._all is None:
            self._all = torch.empty((self.number, *videos.shape[1:]), dtype=videos.dtype, device=videos.device)
        first, self._count = self._count, self._count + len(videos)
        self._all[first : self._count] = videos
        return list(range(first, self._count))

    def taken(self, kept: list[Any]) -> Any:
        """The videos for which these stand, in this order."""
        if self.output_type == "pil":
            return kept
        if self._all is None:
            together = torch.stack(kept)
        elif sorted(kept) == list(range(len(self._all))):
            together = _permuted(self._all, kept)
        else:
            together = self._all[kept]
        return together.numpy() if self.output_type == "np" else together


def _permuted(values: Tensor, order: list[int]) -> Tensor:
    """`values[order]` for a permutation, in place."""
    done: set[int] = set()
    for start in order:
        if start in done:
            continue
        first, here = values[start].clone(), start
        while order[here] != start:
            values[here] = values[order[here]]
            done.add(here)
            here = order[here]
        values[here] = first
        done.add(here)
    return values

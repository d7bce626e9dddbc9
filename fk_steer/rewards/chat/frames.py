"""Frames of videos, as chat models are shown them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL.Image import Image
from torch import Tensor

from llava_reward_guide.images import to_pil

from ..base import Images


def frames_of(
    videos: Images | Sequence[Sequence[Image]], number: int, to_the_end: bool = False
) -> list[tuple[Image, ...]]:
    """Evenly spaced frames of each video: of F frames those at `places`, or all if they are fewer.

    Args:
        videos: (B, F, 3, H, W) in [0, 1], or lists of PIL images.
        to_the_end: see `places`.

    Raises:
        ValueError: for images.
    """
    if len(videos) and not (videos.ndim == 5 if isinstance(videos, Tensor) else isinstance(videos[0], (list, tuple))):
        raise ValueError("Expected videos (B, F, 3, H, W) or lists of frames, but got images.")
    shown: list[tuple[Image, ...]] = []
    video: Any
    for video in videos:
        chosen = places(len(video), number, to_the_end)
        shown.append(tuple(to_pil(video[chosen] if isinstance(video, Tensor) else [video[i] for i in chosen])))
    return shown


def places(total: int, number: int, to_the_end: bool = False) -> list[int]:
    """The numbers of evenly spaced frames among F = `total`: floor(i F / number), which leaves out the last ones, or
    with `to_the_end` floor(i (F - 1) / (number - 1)). The scripts of UnifiedReward take the former for the 2.0 models,
    the latter for those that reason."""
    count = min(number, total)
    if to_the_end and count > 1:
        return [i * (total - 1) // (count - 1) for i in range(count)]
    return [i * total // count for i in range(count)]

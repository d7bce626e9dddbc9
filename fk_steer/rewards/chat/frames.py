"""Frames of videos, as chat models are shown them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL.Image import Image
from torch import Tensor

from llava_reward_guide.images import to_pil

from ..base import Images


def frames_of(videos: Images | Sequence[Sequence[Image]], number: int) -> list[tuple[Image, ...]]:
    """Evenly spaced frames of each video: of F frames those at floor(i F / number), or all if they are fewer.

    Args:
        videos: (B, F, 3, H, W) in [0, 1], or lists of PIL images.

    Raises:
        ValueError: for images.
    """
    if len(videos) and not (videos.ndim == 5 if isinstance(videos, Tensor) else isinstance(videos[0], (list, tuple))):
        raise ValueError("Expected videos (B, F, 3, H, W) or lists of frames, but got images.")
    shown: list[tuple[Image, ...]] = []
    video: Any
    for video in videos:
        count = min(number, len(video))
        chosen = [i * len(video) // count for i in range(count)]
        shown.append(tuple(to_pil(video[chosen] if isinstance(video, Tensor) else [video[i] for i in chosen])))
    return shown

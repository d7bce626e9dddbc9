"""What candidates are, and how a judge sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from llava_reward_guide.images import ImageError, load_image

from ..evaluation.judge.media import FILMS, load_frames
from .candidates import ANIMATIONS, Candidate


MOST_FRAMES = 64
"""Of a video that are looked at, evenly spaced; of a shorter one all."""

KINDS = ("image", "video", "text", "video-text")
"""Of candidates; the last two are texts about an image and about a video."""


def kind_of(candidates: Sequence[Candidate]) -> str:
    """What candidates are, one of `KINDS`, by the first of them that can be read."""
    video = False
    for one in candidates:
        try:
            video = _frames(one) > 1
        except ImageError:
            continue
        break
    if candidates[0].answer is not None:
        return "video-text" if video else "text"
    return "video" if video else "image"


def _frames(one: Candidate) -> int:
    if one.path.suffix.lower() in FILMS:
        return MOST_FRAMES
    if one.path.suffix.lower() not in ANIMATIONS:
        return 1
    try:
        with Image.open(one.path) as image:
            return int(getattr(image, "n_frames", 1))
    except OSError as error:
        raise ImageError(f"Expected an image or video at '{one.path}', but it cannot be read: {error}.") from None


def opened(kind: str) -> Callable[[Candidate], Any]:
    """What opens a candidate for a judge: its image, its video (1, F, 3, H, W) in [0, 1], or of what a text is about
    all frames; `ImageError` if it cannot be read."""
    if kind == "video":
        return _video
    if kind == "video-text":
        return _all_frames
    if kind == "text":
        return lambda one: [load_image(one.path)]
    return lambda one: load_image(one.path, keep_mode=True)


def _all_frames(one: Candidate) -> list[Image.Image]:
    frames = load_frames(one.path, MOST_FRAMES)
    if len(frames) < 2:
        raise ImageError(f"Expected a video of several frames at '{one.path}', but it is an image.")
    return list(frames)


def _video(one: Candidate) -> torch.Tensor:
    frames = [np.asarray(frame) for frame in _all_frames(one)]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)[None].float() / 255

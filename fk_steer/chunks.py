"""Chunk sizes: how much is worked on at a time. They change no result, so that they are no part of what a run is."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .config import FKSteering

_FIELDS = ("denoise_batch_size", "decode_batch_size", "reward_batch_size")


def identity(steering: FKSteering) -> dict[str, Any]:
    """`FKSteering.to_dict` of what decides about the results; `FKSteering.from_dict` takes it."""
    return {name: value for name, value in steering.to_dict().items() if name not in _FIELDS}


def in_chunks(steering: FKSteering, rows: int | None) -> FKSteering:
    """The settings with at most so many denoiser rows, latents decoded and images scored at a time; None for all."""
    return dataclasses.replace(steering, **dict.fromkeys(_FIELDS, rows))

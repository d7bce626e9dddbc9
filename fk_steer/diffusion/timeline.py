"""Sending a stock pipeline's loop back and ahead.

Pipelines take `scheduler.timesteps`, slice it perhaps, and loop over it. A tensor whose iterator reads a cursor is all
it takes to make that loop go on from another step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .interception import intercept


class Cursor:
    """Where a loop is.

    Attributes:
        next: index of the timestep that comes next.
        looping: whether a loop over the timesteps has begun.
    """

    def __init__(self) -> None:
        self.next, self.looping = 0, False

    @property
    def index(self) -> int:
        """Of the step that the loop is at."""
        return self.next - 1


def _timeline(timesteps: Tensor, cursor: Cursor) -> Tensor:
    """The timesteps as a tensor that a loop visits in the order of the cursor; so are its slices."""

    class Timeline(Tensor):
        def __iter__(self) -> Iterator[Tensor]:
            plain = self.as_subclass(Tensor)
            cursor.next, cursor.looping = 0, True
            while cursor.next < len(plain):
                cursor.next += 1
                yield plain[cursor.next - 1]

    return timesteps.as_subclass(Timeline)


@contextmanager
def on_timeline(scheduler: Any) -> Iterator[Cursor]:
    """While the context lasts, loops over the timesteps that the scheduler sets follow the cursor."""
    cursor = Cursor()

    def set_timesteps(inner: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        inner(*args, **kwargs)
        scheduler.timesteps = _timeline(scheduler.timesteps, cursor)

    try:
        with intercept(scheduler, "set_timesteps", lambda inner: functools.partial(set_timesteps, inner)):
            yield cursor
    finally:
        if isinstance(scheduler.timesteps, Tensor):
            scheduler.timesteps = scheduler.timesteps.as_subclass(torch.Tensor)

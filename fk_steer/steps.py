"""The steps of a pipeline's loop, told to somebody in place of the pipeline's own bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any


Told = Callable[[int, int, float], None]
"""Is called with the steps done, all of them, and the seconds that those done have taken."""


@contextmanager
def steps_told(pipe: Any, told: Told) -> Iterator[None]:
    """Let a pipeline tell of its steps instead of drawing a bar.

    Modular pipelines have their bars within their blocks; these are silent, as are pipelines whose bar is off.

    Args:
        pipe: any pipeline of Diffusers.
        told: may raise, which ends the pipeline's call.
    """
    if not callable(getattr(pipe, "progress_bar", None)):
        pipe.set_progress_bar_config(disable=True)
        yield
        return

    def progress_bar(iterable: Any = None, total: int | None = None, **_: Any) -> StepBar:
        off = getattr(pipe, "_progress_bar_config", {}).get("disable")
        return StepBar(iterable, total, _nobody if off else told)

    pipe.progress_bar = progress_bar
    try:
        yield
    finally:
        del pipe.progress_bar


def _nobody(done: int, total: int, seconds: float) -> None:
    pass


class StepBar:
    """What pipelines do with a bar of tqdm's. One of tqdm's own would keep its lock for ever when a run is stopped from
    within it.

    Args:
        iterable: what is gone through, if the pipeline does not count by `update`.
        total: steps; None for as many as the iterable has.
    """

    def __init__(self, iterable: Iterable[Any] | None, total: int | None, told: Told) -> None:
        self._iterable, self._told = iterable, told
        self._total = len(iterable) if total is None and isinstance(iterable, Sized) else total or 0
        self._done, self._began = 0, time.monotonic()

    def __enter__(self) -> StepBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        for item in self._iterable or ():
            yield item
            self.update()

    def update(self, n: int = 1) -> None:
        """So many more steps are done."""
        self._done += n
        if self._total:
            self._told(self._done, self._total, time.monotonic() - self._began)

    def close(self) -> None:
        """Nothing is left behind."""

    def set_description(self, *_: object, **__: object) -> None:
        """Nothing is drawn."""

    set_postfix = refresh = set_description

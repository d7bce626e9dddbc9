"""Methods of a pipeline's parts that are replaced for the length of a call, a scheduler's `step` above all."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor


class UnsupportedSchedulerError(ValueError):
    """The scheduler cannot be steered; the message says what to use instead."""


Replace = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Makes of a bound method what is called in its place."""

OfCopy = Callable[[Any], Replace]
"""Says of a deep copy of a method's owner what replaces the method there."""


def _as_it_is(copied: Any) -> Replace:
    return lambda method: method


@contextmanager
def intercept(owner: Any, name: str, replace: Replace, of_copy: OfCopy = _as_it_is) -> Iterator[None]:
    """Replace the bound method `owner.name` by `replace(method)` and undo that exactly on any exit.

    The replacement keeps the signature, which pipelines inspect. An attribute that was already set on the instance (a
    compiled `scheduler.step`, an accelerate hook) is what gets wrapped, and is put back.

    Args:
        of_copy: a deep copy of the owner -> what replaces the copy's own method, which is undone as well; by default
            that method itself.
    """
    method, own = getattr(owner, name), vars(owner).get(name)
    replacement = Replacement(owner, name, method, replace(method), of_copy)
    object.__setattr__(owner, name, replacement)
    try:
        yield
    finally:
        for copied in replacement.copies:
            vars(copied).pop(name, None)
        if own is None:
            object.__delattr__(owner, name)
        else:
            object.__setattr__(owner, name, own)


class Replacement:
    """Stands in for a method, with its signature."""

    def __init__(
        self, owner: Any, name: str, method: Callable[..., Any], replacement: Callable[..., Any], of_copy: OfCopy
    ) -> None:
        functools.update_wrapper(self, method)
        self._owner, self._name, self._replacement, self._of_copy = owner, name, replacement, of_copy
        self.copies: list[Any] = []
        """Of the owner, whose methods are replaced too."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._replacement(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        owner = self._owner
        copied = memo.get(id(owner))
        if copied is None:  # a copy of what it holds, which is put into another
            raise UnsupportedSchedulerError(
                f"The pipeline takes its steps with copies of its {type(owner).__name__}, so its particles cannot be "
                "told when to move. Steer a pipeline that takes them with `pipe.scheduler` itself."
            )
        self.copies.append(copied)
        method = getattr(type(owner), self._name).__get__(copied)
        return Replacement(copied, self._name, method, self._of_copy(copied)(method), _as_it_is)


@contextmanager
def intercept_step(scheduler: Any, step: Callable[..., Any], of_copy: OfCopy = _as_it_is) -> Iterator[None]:
    """Context manager in which `scheduler.step(...)` calls `step(inner_step, model_output, timestep, sample, ...)`.

    Args:
        of_copy: see `intercept`.
    """

    def replace(inner: Callable[..., Any]) -> Callable[..., Any]:
        if not accepts(inner, _HANDED_BACK):
            return functools.partial(step, inner)
        names = list(inspect.signature(inner).parameters)
        for name in _KEPT:
            setattr(scheduler, name, None)

        def called(*args: Any, **kwargs: Any) -> Any:
            given = {**dict(zip(names, args)), **kwargs}
            del given[_HANDED_BACK], given["timestep_back"]
            state = (given.pop(name) for name in ("model_output", "timestep", "sample"))
            return step(plain_step(scheduler, inner), *state, **given)

        return called

    try:
        with intercept(scheduler, "step", replace, of_copy):
            yield
    finally:
        for name in _KEPT:
            vars(scheduler).pop(name, None)


_HANDED_BACK = "old_pred_original_sample"
"""What a pipeline gets from a step of `CogVideoXDPMScheduler` and hands to the next."""

_KEPT = ("_last_x0", "_last_timestep")
"""Where the scheduler keeps that and the timestep."""


def plain_step(scheduler: Any, step: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """A scheduler's `step`, to be called with (model_output, timestep, sample, ...) whatever it takes beside these.

    What others leave to the pipeline to hand from one step to the next, the scheduler keeps itself, so that it follows
    the rows like the memory of any solver.

    Args:
        step: the scheduler's own, by default as it is now.
    """
    own = scheduler.step if step is None else step
    if not accepts(own, _HANDED_BACK):
        return own

    @functools.wraps(own)
    def take_step(model_output: Tensor, timestep: Any, sample: Tensor, **kwargs: Any) -> Any:
        before, timestep_back = (getattr(scheduler, name, None) for name in _KEPT)
        output = own(model_output, before, timestep, timestep_back, sample, **kwargs)
        scheduler._last_x0, scheduler._last_timestep = output[1], timestep
        return output

    return take_step


def accepts(function: Callable[..., Any], parameter: str) -> bool:
    return parameter in inspect.signature(function).parameters

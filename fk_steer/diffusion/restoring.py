"""Calling a pipeline in such a way that nothing of it is changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.guiders.guider_utils import BaseGuidance

from .blocks import quietly
from .components import is_modular
from .interception import Replacement


def guiders_of(pipe: Any) -> list[tuple[BaseGuidance, dict[str, Any]]]:
    """The guiders of a pipeline, and what they are like now."""
    guiders = [part for part in pipe.components.values() if isinstance(part, BaseGuidance)]
    return [(guider, {name: _copied(guider, value) for name, value in vars(guider).items()}) for guider in guiders]


@contextmanager
def as_before(pipe: Any, guiders: Sequence[tuple[BaseGuidance, Mapping[str, Any]]]) -> Iterator[None]:
    """Put back, at the end, what a call changes in a pipeline and its components that are not modules.

    Args:
        guiders: and what they are like when the call begins.
    """
    owners = [pipe, *(part for part in pipe.components.values() if _has_state(part))]
    saved = [{name: _copied(owner, value) for name, value in vars(owner).items()} for owner in owners]
    for guider, state in guiders:
        vars(guider).update({name: _copied(guider, value) for name, value in state.items()})
    pipe._progress_bar_config = {**getattr(pipe, "_progress_bar_config", {}), "disable": True}
    try:
        with quietly(pipe) if is_modular(pipe) else nullcontext():
            yield
    finally:
        for owner, state in zip(owners, saved):
            vars(owner).clear()
            vars(owner).update(state)


def _has_state(component: Any) -> bool:
    return hasattr(component, "__dict__") and not isinstance(component, (torch.nn.Module, type))


def _copied(owner: Any, value: Any) -> Any:
    """Lists as they are now, and all that a guider keeps: what has rows may be changed in place."""
    if isinstance(owner, BaseGuidance) and not isinstance(value, (FrozenDict, Replacement)):
        return copy.deepcopy(value)
    return list(value) if isinstance(value, list) else value

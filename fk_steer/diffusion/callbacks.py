"""Callbacks that change the batch of a loop, such as Diffusers' cut-offs of guidance, in a batch of many rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.callbacks import (
    MultiPipelineCallbacks,
    PipelineCallback,
    SD3CFGCutoffCallback,
    SDCFGCutoffCallback,
    SDXLCFGCutoffCallback,
    SDXLControlnetCFGCutoffCallback,
)
from torch import Tensor


CUTOFFS = (SDCFGCutoffCallback, SDXLCFGCutoffCallback, SDXLControlnetCFGCutoffCallback, SD3CFGCutoffCallback)
"""Keep the last row of what a loop holds, which is right for one image alone."""


def with_callback(arguments: Mapping[str, Any], num_rows: int) -> dict[str, Any]:
    """The arguments of a call with a callback that serves a batch of any number of rows.

    Diffusers' cut-offs of guidance see one row of the batch after another, each as in a call for one image. Others see
    the batch as they do in the stock pipeline, and what they return is checked.

    Args:
        num_rows: B, one per particle.
    """
    callback = arguments.get("callback_on_step_end")
    if callback is None:
        return dict(arguments)
    changed: dict[str, Any] = {"callback_on_step_end": _checked(_for_rows(callback, num_rows), num_rows)}
    if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):  # which pipelines ask for names by their class
        changed["callback_on_step_end_tensor_inputs"] = list(dict.fromkeys(callback.tensor_inputs))
    return {**arguments, **changed}


def check_callback(pipe: Any, arguments: Mapping[str, Any], goes_back: bool) -> None:
    """Check that a cut-off of guidance can do its work.

    Raises:
        ValueError: if the loop is sent back, or other guidance goes on that shares its batch.
    """
    cutoffs = [one for one in _members(arguments.get("callback_on_step_end")) if isinstance(one, CUTOFFS)]
    if not cutoffs:
        return
    name = type(cutoffs[0]).__name__
    if goes_back:
        raise ValueError(
            f"{name} counts the steps of the loop, which the search sends back. Leave the callback away, or use a "
            "search that does not go back."
        )
    if hasattr(pipe, "set_pag_applied_layers") and arguments.get("pag_scale") != 0:
        raise ValueError(
            f"{name} takes the unconditional rows out of the batch, which {type(pipe).__name__} goes on to split in "
            "two for perturbed attention guidance. Leave the callback away, or pass `pag_scale=0.0`."
        )


Callback = Callable[[Any, int, Any, dict[str, Any]], Any]


def _members(callback: Any) -> list[Any]:
    return list(callback.callbacks) if isinstance(callback, MultiPipelineCallbacks) else [callback]


def _for_rows(callback: Any, num_rows: int) -> Callback:
    def of_members(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> Any:
        for member in _members(callback):
            tensors = (_row_by_row if isinstance(member, CUTOFFS) else _plainly)(
                member, num_rows, pipe, step, timestep, tensors
            )
        return tensors

    return of_members


def _plainly(member: Any, num_rows: int, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> Any:
    return member(pipe, step, timestep, tensors)


def _row_by_row(member: Any, num_rows: int, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> Any:
    """What a callback makes of each row, with what the batch holds of it: of copies of a row in the order
    [unconditional rows, conditional rows]."""
    found = []
    for row in range(num_rows):
        mine = {name: value[row::num_rows] if _has_rows(value, num_rows) else value for name, value in tensors.items()}
        found.append(member(pipe, step, timestep, mine))

    def joined(name: str) -> Any:
        values = [one[name] for one in found]
        if not _has_rows(tensors.get(name), num_rows):
            return values[0]
        return torch.stack(values, 1).flatten(0, 1)

    return {name: joined(name) for name in found[0]}


def _checked(callback: Callback, num_rows: int) -> Callback:
    """A callback after which tensors that held the rows still hold each of them."""

    def check(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> Any:
        with_rows = [name for name, value in tensors.items() if _has_rows(value, num_rows)]
        returned = callback(pipe, step, timestep, tensors)
        for name in with_rows if isinstance(returned, Mapping) else ():
            value = returned.get(name)
            if isinstance(value, Tensor) and not _has_rows(value, num_rows):
                raise ValueError(
                    f"`callback_on_step_end` returned `{name}` with {len(value)} rows at step {step}, where the batch "
                    f"has {num_rows} particles. Keep one row for each, for example the conditional half, "
                    f"`{name}.chunk(2)[-1]`."
                )
        return returned

    return check


def _has_rows(value: Any, num_rows: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) > 0 and len(value) % num_rows == 0

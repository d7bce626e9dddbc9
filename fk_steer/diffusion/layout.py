"""Where the rows of a batch are in the arguments of a call: known by name, or learned from the same call of one row.

Denoisers take most things with a row per sample in the first dimension, but not all: some hold the rows in another
dimension, several entries for each row (the frames of a video, one after another), a list with an entry per row, or
none at all (position ids, whose number may equal that of the rows). Sizes alone do not tell these apart. Two calls
do: what grows with the rows holds them. Objects that hold tensors, such as the keys and values that a denoiser keeps
for later steps, are taken apart like mappings.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """A tensor that has `size` entries for each row, one row after another, in dimension `dim`."""

    dim: int = 0
    size: int = 1


@dataclass(frozen=True)
class Entries:
    """A list with `size` entries for each row, one row after another."""

    size: int = 1


Layout = Block | Entries | dict[Any, "Layout | None"] | None
"""Where rows are: in a tensor, in a list, in the members of a mapping, sequence or object (by key, position or name),
or nowhere."""

ROWS_FIRST = frozenset(
    {
        "sample",
        "hidden_states",
        "timestep",
        "encoder_hidden_states",
        "encoder_attention_mask",
        "encoder_hidden_states_mask",
        "class_labels",
        "timestep_cond",
        "guidance",
        "pooled_projections",
        "text_embeds",
        "time_ids",
        "image_embeds",
        "controlnet_cond",
        "down_block_additional_residuals",
        "mid_block_additional_residual",
        "down_intrablock_additional_residuals",
        "block_controlnet_hidden_states",
        "controlnet_block_samples",
        "controlnet_single_block_samples",
        "conditioning_scale",
    }
)
"""Arguments whose tensors hold a row per sample in the first dimension, where they have the size for it."""

WITHOUT_ROWS = frozenset({"img_ids", "txt_ids", "skip_layers", "image_rotary_emb"})
"""Arguments without rows, whatever their size: position ids and embeddings, numbers of layers."""


class UnknownLayoutError(ValueError):
    """It cannot be told where the rows of an argument are.

    Args:
        name: of the argument.
    """

    def __init__(self, name: str) -> None:
        super().__init__(
            f"It cannot be told which part of the denoiser's argument `{name}` belongs to which particle, so particles "
            "cannot be computed apart. Use a search that neither prunes nor copies, without a `denoise_batch_size`."
        )


def known_layout(arguments: Mapping[str, Any], num_rows: int) -> Layout:
    """The layout of a call all of whose arguments are known by name.

    Args:
        arguments: of the call, by name.
        num_rows: of its batch.

    Raises:
        UnknownLayoutError: if the name of an argument, or its size, does not say where its rows are.
    """
    return {name: _known(name, value, num_rows) for name, value in arguments.items()}


def _known(name: str, value: Any, num_rows: int) -> Layout:
    if name in WITHOUT_ROWS or value is None or isinstance(value, (bool, int, float, str)):
        return None
    if isinstance(value, Tensor):
        if value.ndim == 0 or value.numel() == 1 and num_rows > 1:
            return None
        if name in ROWS_FIRST and value.shape[0] in (1, num_rows):
            return Block() if value.shape[0] == num_rows else None  # one for all rows
    elif isinstance(value, Mapping):
        return {key: _known(str(key), item, num_rows) for key, item in value.items()}
    elif isinstance(value, (list, tuple)):
        return {index: _known(name, item, num_rows) for index, item in enumerate(value)}
    raise UnknownLayoutError(name)


def members_of(value: Any) -> dict[str, Any] | None:
    """What an object holds that is neither a tensor nor a container; None if there are no tensors in it."""
    if isinstance(value, (Tensor, Mapping, list, tuple, torch.nn.Module, type)) or not hasattr(value, "__dict__"):
        return None
    members = vars(value)
    return members if any(True for _ in tensors_of(members)) else None


def tensors_of(value: Any, depth: int = 6) -> Iterator[Tensor]:
    """The tensors in containers and objects, one after another."""
    if isinstance(value, Tensor):
        yield value
    elif depth and not isinstance(value, (torch.nn.Module, type, str, bytes)):
        items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
        for item in items or getattr(value, "__dict__", {}).values():
            yield from tensors_of(item, depth - 1)


def as_containers(value: Any) -> Any:
    """The same with dictionaries in place of objects that hold tensors."""
    if isinstance(value, Mapping):
        return {key: as_containers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_containers(item) for item in value]
    members = members_of(value)
    return value if members is None else as_containers(members)


def rebuilt(value: Any, members: Mapping[str, Any]) -> Any:
    """A copy of an object that holds other things."""
    made = copy.copy(value)
    vars(made).update(members)
    return made


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same with `function` of each tensor in containers and objects."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        made = {key: map_tensors(function, item) for key, item in value.items()}
        return made if type(value) is dict else type(value)(**made)
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(function, item) for item in value)
    members = members_of(value)
    if members is None:
        return value
    return rebuilt(value, {key: map_tensors(function, item) for key, item in members.items()})


def learned_layout(one: Any, many: Any, num_rows: int, copies: int = 1, name: str = "") -> Layout:
    """The layout of a call, by comparison with the same call of one row.

    Args:
        one: what the call holds for one row, or for `copies` that belong to it.
        many: what it holds for `num_rows` as many, `num_rows` > 1.
        name: of the argument, for messages.

    Raises:
        UnknownLayoutError: if something depends on the number of rows in another way than by holding so many entries
            for each.
    """
    if one is None and name in ROWS_FIRST and isinstance(many, Tensor) and len(many) == num_rows * copies:
        return Block()  # a mask that nothing needs where there is one text
    if isinstance(many, Tensor) and isinstance(one, Tensor):
        if name in WITHOUT_ROWS or one.ndim != many.ndim or one.shape == many.shape:
            return None
        for dim, (first, second) in enumerate(zip(one.shape, many.shape)):
            if first * num_rows == second and first % copies == 0:
                return Block(dim, first // copies)
    elif isinstance(many, Mapping) and isinstance(one, Mapping):
        return {key: learned_layout(one.get(key), item, num_rows, copies, str(key)) for key, item in many.items()}
    elif isinstance(many, (list, tuple)) and isinstance(one, (list, tuple)):
        if len(one) == len(many):
            pairs = enumerate(zip(one, many))
            return {index: learned_layout(a, b, num_rows, copies, name) for index, (a, b) in pairs}
        if len(one) * num_rows == len(many) and len(one) % copies == 0:
            return Entries(len(one) // copies)
    elif type(one) is type(many) and (members := members_of(many)) is not None:
        return {key: learned_layout(vars(one).get(key), item, num_rows, copies, name) for key, item in members.items()}
    elif type(one) is type(many):
        return None
    raise UnknownLayoutError(name)


def take_units(value: Any, layout: Layout, index: Tensor) -> Any:
    """The part of `value` that belongs to some rows.

    Args:
        layout: of `value`.
        index: (M,) numbers of rows, on any device.
    """
    if layout is None:
        return value
    if isinstance(layout, Block):
        index = index.to(value.device)
        if layout.size == 1:
            return value.index_select(layout.dim, index)
        units = value.unflatten(layout.dim, (-1, layout.size)).index_select(layout.dim, index)
        return units.flatten(layout.dim, layout.dim + 1)
    if isinstance(layout, Entries):
        size = layout.size
        return type(value)(entry for row in index.tolist() for entry in value[row * size : (row + 1) * size])
    members = members_of(value)
    if isinstance(value, Mapping) or members is not None:
        taken = {key: take_units(item, layout.get(key), index) for key, item in (members or value).items()}
        return rebuilt(value, taken) if members else taken if type(value) is dict else type(value)(**taken)
    return type(value)(take_units(item, layout.get(position), index) for position, item in enumerate(value))


def num_units(value: Any, layout: Layout) -> int | None:
    """How many rows `value` holds; None if its layout does not say."""
    if isinstance(layout, Block):
        return int(value.shape[layout.dim]) // layout.size
    if isinstance(layout, Entries):
        return len(value) // layout.size
    return None


def output_layout(output: Any, num_rows: int, as_list: bool = False) -> Layout:
    """The layout of what a call of `num_rows` rows returned, whose tensors hold the rows first.

    Args:
        as_list: whether a list holds an entry per row, as it does where the samples came as one.
    """
    if isinstance(output, Tensor):
        whole = output.ndim > 0 and output.shape[0] > 0 and output.shape[0] % num_rows == 0
        return Block(0, output.shape[0] // num_rows) if whole else None
    if isinstance(output, Mapping):
        return {key: output_layout(item, num_rows, as_list) for key, item in output.items()}
    if isinstance(output, (list, tuple)):
        if as_list and isinstance(output, list) and len(output) == num_rows:
            return Entries()
        return {index: output_layout(item, num_rows, as_list) for index, item in enumerate(output)}
    members = members_of(output)
    return None if members is None else {key: output_layout(item, num_rows) for key, item in members.items()}


def combine(parts: Sequence[Any], layout: Layout, function: Callable[[list[Tensor]], Tensor]) -> Any:
    """One value from several of the same layout, as one tensor from several.

    Args:
        function: makes one tensor of the parts' rows, (rows, ...) or (rows, entries of a row, ...).
    """
    first = parts[0]
    if isinstance(layout, Block):
        if layout.size == 1:
            return function(list(parts))
        return function([part.unflatten(0, (-1, layout.size)) for part in parts]).flatten(0, 1)
    if isinstance(layout, Entries):
        return list(function([torch.stack(part) for part in parts]))
    if layout is None:
        return first
    if isinstance(first, Mapping):
        made = {key: combine([part[key] for part in parts], layout.get(key), function) for key in first}
        return made if type(first) is dict else type(first)(**made)
    if members_of(first) is not None:
        made = {key: combine([vars(part)[key] for part in parts], layout.get(key), function) for key in vars(first)}
        return rebuilt(first, made)
    return type(first)(combine(column, layout.get(index), function) for index, column in enumerate(zip(*parts)))

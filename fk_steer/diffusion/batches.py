"""Running the denoiser on the rows that are alive and distinct only, in chunks, whatever batch it is handed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .layout import Layout, combine, members_of, output_layout, take_units, tensors_of
from .ranks import Ranks
from .rows import Rows


class Batch(NamedTuple):
    """How the rows of a denoiser's batch are computed.

    Attributes:
        number: rows computed, by all ranks.
        units: of which a call takes one or more: a row, or all that the batch holds of a particle.
        chunks: one per call of this rank: indices (rows of a unit, units of the chunk) into the batch.
        scatter: (batch,) which of the computed rows each row of the batch gets; None for each its own.
    """

    number: int
    units: int
    chunks: list[Tensor]
    scatter: Tensor | None


def run_on_live_rows(
    denoiser: Callable[..., Any],
    rows: Rows,
    ranks: Ranks,
    parameters: list[str],
    chunk_size: int | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    layout_of: Callable[[Mapping[str, Any], int], Layout],
    together: bool = False,
    size_of_row: int = 1,
    half: int | None = None,
) -> tuple[Any, int, int]:
    """Call the denoiser on the distinct live rows of its arguments and scatter the outputs to all rows.

    The batch may hold the rows several times over (twice under classifier-free guidance, in the order
    [unconditional rows, conditional rows]).

    Args:
        denoiser: the forward function; its first argument is the batch of samples.
        ranks: who shares these rows.
        parameters: names of the denoiser's positional parameters.
        chunk_size: rows per call; None for all at once.
        layout_of: says where the rows are in the arguments (by name), which hold them so many times.
        together: keep all that the batch holds of a row in one call, whose size may then exceed `chunk_size`.
        size_of_row: samples of the batch that are one row, one after another: the frames of a video.
        half: of a batch that holds the rows twice, the half whose output both get; None for each its own.

    Returns:
        The denoiser's output for all rows, the number of rows it was run on by all ranks, and how often the batch held
        the rows.
    """
    sample = args[0] if args else kwargs[parameters[0]]
    size, as_list = len(sample), isinstance(sample, list)
    copies, rest = divmod(size, rows.total * size_of_row)
    if rest or not copies:
        # Not the particles' batch: some other use of the module.
        return denoiser(*args, **kwargs), size, 0
    first = sample[: rows.total * size_of_row]
    rows.part_by(first if size_of_row == 1 else first.unflatten(0, (rows.total, size_of_row)))
    device = sample[0].device
    half = half if copies == 2 else None
    batch: Batch = rows.kept(
        ("batch", copies, chunk_size, together, device, half),
        lambda: _batch(rows, ranks, copies, chunk_size, together, device, half),
    )
    arguments = {**dict(zip(parameters, args)), **kwargs}
    objects = {name: value for name, value in arguments.items() if members_of(value) is not None}
    whole = batch.chunks[0].numel() * size_of_row == size
    layout = layout_of(arguments, copies) if objects or not whole else {}
    assert isinstance(layout, dict)
    if rows.moves:
        for name, value in objects.items():
            rows.kept(("common", name), functools.partial(_check_common, name, value, layout[name], rows, copies))
    if whole:
        return denoiser(*args, **kwargs), size, copies

    def call(chunk: Tensor) -> Any:
        index = chunk.flatten()
        some = {name: take_units(value, layout[name], index) for name, value in arguments.items()}
        held = {name: list(tensors_of(some[name])) for name in objects}
        output = denoiser(*(some[name] for name in parameters[: len(args)]), **{name: some[name] for name in kwargs})
        for name, tensors in held.items():
            now = list(tensors_of(some[name]))
            if len(now) != len(tensors) or any(a is not b for a, b in zip(tensors, now)):
                raise ValueError(_CHANGED.format(name))
        return output

    def finish(parts: list[Tensor]) -> Tensor:
        by_unit = [part.unflatten(0, (len(chunk), -1)).transpose(0, 1) for part, chunk in zip(parts, batch.chunks)]
        output = ranks.gather(torch.cat(by_unit), batch.units).transpose(0, 1).flatten(0, 1)
        return output if batch.scatter is None else output[batch.scatter.to(output.device)]

    outputs = [call(chunk) for chunk in batch.chunks]
    return combine(outputs, output_layout(outputs[0], batch.chunks[0].numel(), as_list), finish), batch.number, copies


_CHANGED = (
    "The denoiser changes what its argument `{}` holds from step to step, which cannot be put together of calls on "
    "some of the rows. Use a search that neither prunes nor copies, without a `denoise_batch_size`."
)


def _check_common(name: str, value: Any, layout: Layout, rows: Rows, copies: int) -> None:
    """Check that an object made in an earlier step holds the same for all rows of a population, as what they are
    conditioned on is. Where it does not, it has not followed the particles.

    Raises:
        ValueError: if it does not.
    """
    row = torch.arange(rows.total * copies)
    first = take_units(value, layout, row - row % rows.num_slots)
    for one, other in zip(tensors_of(value), tensors_of(first)):
        if not torch.allclose(one.float(), other.float(), rtol=1e-3, atol=1e-3):
            raise ValueError(
                f"What the denoiser keeps in its argument `{name}` differs between particles, and does not follow "
                "those that are resampled. Use a search that neither prunes nor copies."
            )


def _batch(
    rows: Rows,
    ranks: Ranks,
    copies: int,
    chunk_size: int | None,
    together: bool,
    device: torch.device,
    half: int | None,
) -> Batch:
    distinct = rows.distinct
    computed = torch.arange(copies) if half is None else torch.tensor([half])
    needed = distinct + rows.total * computed[:, None]
    units = needed if together else needed.view(1, -1)
    mine = units[:, ranks.rows(units.shape[1])]
    chunks = mine.split(max(1, chunk_size // len(mine)) if chunk_size else mine.shape[1], dim=1)
    scatter = None
    if needed.numel() < rows.total * copies:
        position = torch.empty(rows.total, dtype=torch.long)
        position[distinct] = torch.arange(len(distinct))
        place = torch.arange(copies) if half is None else torch.zeros(copies, dtype=torch.long)
        scatter = (position[rows.source] + len(distinct) * place[:, None]).flatten().to(device)
    return Batch(needed.numel(), units.shape[1], [chunk.to(device) for chunk in chunks], scatter)

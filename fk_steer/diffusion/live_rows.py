"""Run the denoiser and the decoder on the rows that are alive and distinct only, in chunks, whatever batch the pipeline
hands them.

A pipeline's batch keeps its size for the whole loop, so pruned particles leave rows behind, and a copy of a particle is
the same row twice until noise parts them. `Rows` says which rows have to be computed; `map_rows` finds the arguments
that carry rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .parallel import Ranks


WITHOUT_ROWS = frozenset({"img_ids", "txt_ids", "skip_layers", "image_rotary_emb"})
"""Arguments of denoisers whose first dimension is not the batch, whatever its size: position ids and embeddings,
numbers of layers."""


class Rows:
    """Which rows of a pipeline's batch are alive, and which of those are still equal to another.

    The batch holds `num_slots` rows for each of P prompts, prompt by prompt: row p * num_slots + slot.

    Attributes:
        total: B = P * num_slots.
        live: (L,) ascending, the rows that are alive.
        source: (B,) for each row the live row whose denoiser output it takes: itself if it is alive and distinct, the
            first of its copies if it is alive and a copy, some live row of its prompt if it is not alive.
    """

    def __init__(self, num_populations: int, num_slots: int) -> None:
        self.total = num_populations * num_slots
        self.live = torch.arange(self.total)
        self.source = torch.arange(self.total)
        self._first_row = num_slots * torch.arange(num_populations)[:, None]
        self._num_slots = num_slots

    def of(self, slots: Tensor) -> Tensor:
        """Rows (P, M) of slots (P, M)."""
        return slots + self._first_row

    def positions(self) -> Tensor:
        """(B,) for each row its position among the live ones, of a stand-in if it is not alive."""
        stand_in = self.source.clone()
        stand_in[self.live] = self.live
        return torch.searchsorted(self.live, stand_in)

    def resample(self, slots: Tensor, parents: Tensor, collapsed: Tensor) -> Tensor | None:
        """After a scoring event.

        Args:
            slots: (P, M) the slots of the particles that go on, ascending.
            parents: (P, M) the slot that each of them continues.
            collapsed: (P,) prompts whose particles are all the same from now on; one row stands for them.

        Returns:
            (L,) for each live row the position, among the rows alive before, of the one that it continues; None if all
            go on as they are.
        """
        rows, kept = self.of(slots), torch.ones_like(slots, dtype=torch.bool)
        kept[collapsed, 1:] = False
        before, live = self.live, rows[kept]
        moved = self.positions()[self.of(parents)[kept]]
        if torch.equal(live, before) and torch.equal(moved, torch.arange(len(before))):
            return None
        origins = self.source[before[moved]]
        self.live = live
        self.source = rows[:, :1].repeat(1, self._num_slots).flatten()
        first_of: dict[int, int] = {}
        for row, origin in zip(live.tolist(), origins.tolist()):
            self.source[row] = first_of.setdefault(origin, row)
        return moved

    def part(self, values: Tensor) -> None:
        """Drop the claims of equality that do not hold for `values` (B, ...)."""
        for row, first in zip(self.live.tolist(), self.source[self.live].tolist()):
            if row != first and not torch.equal(values[row], values[first]):
                self.source[row] = row

    @property
    def distinct(self) -> Tensor:
        """(D,) ascending, the rows the denoiser has to run on."""
        return self.source.unique()

    def distinct_live(self) -> tuple[Tensor, Tensor]:
        """Positions (D,) of the distinct rows among the live ones, and (L,) which of the D each live row equals."""
        distinct, inverse = self.source[self.live].unique(return_inverse=True)
        return torch.searchsorted(self.live, distinct), inverse


def map_rows(function: Callable[[Tensor], Tensor], value: Any, num_rows: int, name: str = "") -> Any:
    """Apply `function` to every tensor in `value` that has `num_rows` rows, inside tuples, lists and mappings too.

    Entries of mappings named in `WITHOUT_ROWS` are left alone, and so are scalars, tensors of other sizes and anything
    that is not a tensor.
    """
    if name in WITHOUT_ROWS:
        return value
    if isinstance(value, Tensor):
        return function(value) if value.ndim and value.shape[0] == num_rows else value
    if isinstance(value, Mapping):
        mapped = {key: map_rows(function, item, num_rows, str(key)) for key, item in value.items()}
        return mapped if type(value) is dict else type(value)(**mapped)
    if type(value) in (tuple, list):
        return type(value)(map_rows(function, item, num_rows) for item in value)
    return value


def run_on_live_rows(
    denoiser: Callable[..., Any],
    rows: Rows,
    ranks: Ranks,
    parameters: list[str],
    chunk_size: int | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    together: bool = False,
) -> tuple[Any, int, int]:
    """Call the denoiser on the distinct live rows of its arguments and scatter the outputs to all rows.

    The batch may hold the rows several times over (twice under classifier-free guidance, in the order
    [unconditional rows, conditional rows]).

    Args:
        denoiser: the forward function; its first argument is the batch of samples.
        ranks: who shares these rows.
        parameters: names of the denoiser's positional parameters.
        chunk_size: rows per call; None for all at once.
        together: keep all that the batch holds of a row in one call, whose size may then exceed `chunk_size`.

    Returns:
        The denoiser's output for all rows, the number of rows it was run on by all ranks, and how often the batch held
        the rows.
    """
    sample = args[0] if args else kwargs[parameters[0]]
    batch = sample.shape[0]
    copies, rest = divmod(batch, rows.total)
    if rest or not copies:
        # Not the particles' batch: some other use of the module.
        return denoiser(*args, **kwargs), batch, 0
    rows.part(sample[: rows.total])
    distinct = rows.distinct
    needed = distinct + rows.total * torch.arange(copies)[:, None]
    # Units (rows of a unit, number of units), of which each goes into one call.
    units = needed if together else needed.view(1, -1)
    mine = units[:, ranks.rows(units.shape[1])]
    chunks = mine.split(max(1, chunk_size // len(mine)) if chunk_size else mine.shape[1], dim=1)
    if chunks[0].numel() == batch:
        return denoiser(*args, **kwargs), batch, copies

    def call(chunk: Tensor) -> Any:
        index = chunk.flatten().to(sample.device)

        def take(tensor: Tensor) -> Tensor:
            return tensor[index.to(tensor.device)]

        def by_unit(tensor: Tensor) -> Tensor:
            return tensor.unflatten(0, chunk.shape).transpose(0, 1)

        some_args = [map_rows(take, value, batch, name) for name, value in zip(parameters, args)]
        return map_rows(by_unit, denoiser(*some_args, **map_rows(take, kwargs, batch)), len(index))

    position = torch.empty(rows.total, dtype=torch.long)
    position[distinct] = torch.arange(len(distinct))
    scatter = (position[rows.source] + len(distinct) * torch.arange(copies)[:, None]).flatten()

    def finish(tensor: Tensor) -> Tensor:
        output = ranks.gather(tensor, units.shape[1]).transpose(0, 1).flatten(0, 1)
        return output if len(output) == batch else output[scatter.to(output.device)]

    outputs = [call(chunk) for chunk in chunks]
    return join_rows(outputs, [chunk.shape[1] for chunk in chunks], finish), needed.numel(), copies


def join_rows(outputs: list[Any], sizes: list[int], finish: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Any:
    """Concatenate the row tensors of several equally structured outputs, and apply `finish` to each.

    Args:
        outputs: what calls on `sizes` rows returned: a tensor, a tuple, list or mapping of them.
    """
    first = outputs[0]
    if isinstance(first, Tensor):
        with_rows = first.ndim and all(output.shape[0] == size for output, size in zip(outputs, sizes))
        return finish(torch.cat(outputs)) if with_rows else first
    if isinstance(first, Mapping):
        joined = {key: join_rows([output[key] for output in outputs], sizes, finish) for key in first}
        return joined if type(first) is dict else type(first)(**joined)
    if type(first) in (tuple, list):
        return type(first)(join_rows(list(parts), sizes, finish) for parts in zip(*outputs))
    return first

"""Which rows of a pipeline's batch have to be computed, and finding the arguments that carry rows.

A pipeline's batch keeps its size for the whole loop, so pruned particles leave rows behind, and a copy of a particle is
the same row twice until noise parts them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor


T = TypeVar("T")


class Rows:
    """Where the particles live in a pipeline's batch, which of its rows are alive, and which of those are still equal.

    The batch holds `num_slots` rows for each of P prompts, prompt by prompt: row p * num_slots + slot. Everything here
    is on the CPU; indices that are needed on a device are made once and kept until the particles move.

    Attributes:
        total: B = P * num_slots.
        slots: (P, K) the slots of the particles alive, ascending. One slot several times is one row that stands for
            several particles.
        live: (L,) ascending, the rows that are alive.
        source: (B,) for each row the live row whose denoiser output it takes: itself if it is alive and distinct, the
            first of its copies if it is alive and a copy, some live row if it is not alive or asleep.
        asleep: (B,) the rows that need not be computed until their states are replaced.
    """

    def __init__(self, num_populations: int, num_slots: int) -> None:
        self.total = num_populations * num_slots
        self.num_slots = num_slots
        self.slots = torch.arange(num_slots).expand(num_populations, num_slots)
        self.live = torch.arange(self.total)
        self.source = torch.arange(self.total)
        self._first_row = num_slots * torch.arange(num_populations)[:, None]
        self.asleep = torch.zeros(self.total, dtype=torch.bool)
        self.moves = 0
        """How often particles have moved to other rows."""
        self._kept: dict[Hashable, Any] = {}

    def kept(self, key: Hashable, make: Callable[[], T]) -> T:
        """`make()`, computed once until the particles move or part."""
        if key not in self._kept:
            self._kept[key] = make()
        return cast(T, self._kept[key])

    @property
    def all_live(self) -> bool:
        return len(self.live) == self.total

    def live_on(self, device: torch.device) -> Tensor:
        """`live` on a device."""
        return self.kept(("live", device), lambda: self.live.to(device))

    def positions_on(self, device: torch.device) -> Tensor:
        """`positions()` on a device."""
        return self.kept(("positions", device), lambda: self.positions().to(device))

    def of(self, slots: Tensor) -> Tensor:
        """Rows (P, M) of slots (P, M)."""
        return slots + self._first_row

    @property
    def particles(self) -> Tensor:
        """(P, K) for each particle the position of its row among the live ones."""
        return self.positions()[self.of(self.slots)]

    def populations(self) -> list[int]:
        """For each live row the population that it belongs to."""
        return self.kept("populations", lambda: (self.live // self.num_slots).tolist())

    def positions(self) -> Tensor:
        """(B,) for each row its position among the live ones, of a stand-in if it is not alive."""
        stand_in = self.source.clone()
        stand_in[self.live] = self.live
        return torch.searchsorted(self.live, stand_in)

    def move(self, slots: Tensor, states: Tensor, asleep: Tensor | None = None, noised: bool = False) -> Tensor | None:
        """Let particles continue others.

        Args:
            slots: (P, M) where they live from now on, ascending; of a slot that is there twice the first counts.
            states: (P, M) the state that each continues: the position of a live row, or one from L on for states that
                are not those of rows.
            asleep: (P,) populations whose rows need not be computed.
            noised: whether all get noise of their own at once, so that none are equal.

        Returns:
            (L',) for each row that is alive now the state that it continues; None if all go on as they are.
        """
        rows, before = self.of(slots).flatten(), self.live
        live, first = _unique(rows)
        moved = states.flatten()[first]
        sleeping = torch.zeros(self.total, dtype=torch.bool)
        if asleep is not None:
            sleeping = asleep.repeat_interleave(self.num_slots)
        same = torch.equal(live, before) and torch.equal(moved, torch.arange(len(before)))
        if same and torch.equal(sleeping, self.asleep) and torch.equal(slots, self.slots) and not noised:
            return None
        # Equal states have equal origins; those that are not of rows have numbers of their own.
        origins = [int(self.source[before[m]]) if m < len(before) else self.total + m for m in moved.tolist()]
        self.slots, self.live, self.asleep = slots, live, sleeping
        self.source = rows.view(slots.shape)[:, :1].repeat(1, self.num_slots).flatten()
        first_of: dict[int, int] = {}
        for row, origin in zip(live.tolist(), origins):
            self.source[row] = row if noised else first_of.setdefault(origin, row)
        self.source[sleeping] = live[~sleeping[live]][0]
        self._kept.clear()
        self.moves += not same
        return None if same else moved

    @property
    def has_copies(self) -> bool:
        """Whether live rows are held to be equal to others."""
        return self.kept("copies", lambda: bool((self.source[self.live] != self.live)[~self.asleep[self.live]].any()))

    def part(self, quiet: Tensor | None = None) -> None:
        """Noise has parted the copies, but those among the rows `quiet` (L,), which got none."""
        if not self.has_copies:
            return
        first_of: dict[int, int] = {}
        for position, (row, source) in enumerate(zip(self.live.tolist(), self.source[self.live].tolist())):
            if not self.asleep[row]:
                still = quiet is not None and bool(quiet[position])
                self.source[row] = first_of.setdefault(source, row) if still else row
        self._kept.clear()

    def part_by(self, values: Tensor | Sequence[Tensor]) -> None:
        """Drop the claims of equality that do not hold for `values` (B, ...). Waits for their device if there are
        claims."""
        if not self.has_copies:
            return
        claims = [row for row in self.live.tolist() if self.source[row] != row and not self.asleep[row]]
        first = self.source[claims].tolist()
        if not isinstance(values, Tensor):
            values = torch.stack(list(values))
        equal = (values[claims] == values[first]).flatten(1).all(1).tolist()
        parted = [row for row, same in zip(claims, equal) if not same]
        if parted:
            self.source[parted] = torch.tensor(parted)
            self._kept.clear()

    @property
    def distinct(self) -> Tensor:
        """(D,) ascending, the rows the denoiser has to run on."""
        distinct: Tensor = self.kept("distinct", lambda: torch.unique(self.source))
        return distinct

    def distinct_live(self) -> tuple[Tensor, Tensor]:
        """Positions (D,) of the distinct rows among the live ones, and (L,) which of the D each live row equals."""
        distinct, inverse = self.source[self.live].unique(return_inverse=True)
        return torch.searchsorted(self.live, distinct), inverse


def _unique(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The different entries of `rows`, ascending, and the index of the first occurrence of each."""
    live, inverse = rows.unique(return_inverse=True)
    index = torch.arange(len(rows)).flip(0)
    return live, torch.empty_like(live).scatter_(0, inverse.flip(0), index)


def map_rows(function: Callable[[Tensor], Tensor], value: Any, num_rows: int) -> Any:
    """Apply `function` to every tensor in `value` that has `num_rows` rows, inside tuples, lists and mappings too.

    Scalars, tensors of other sizes and anything that is not a tensor are left alone.
    """
    if isinstance(value, Tensor):
        return function(value) if value.ndim and value.shape[0] == num_rows else value
    if isinstance(value, Mapping):
        mapped = {key: map_rows(function, item, num_rows) for key, item in value.items()}
        return mapped if type(value) is dict else type(value)(**mapped)
    if type(value) in (tuple, list):
        return type(value)(map_rows(function, item, num_rows) for item in value)
    return value


def overwrite(whole: Tensor, values: Tensor) -> None:
    """Let a pipeline's own tensor (B, ...) hold `values`, for what it takes from it after a step."""
    if all(stride or size == 1 for stride, size in zip(whole.stride(), whole.shape)):  # no row stands for several
        whole.copy_(values)

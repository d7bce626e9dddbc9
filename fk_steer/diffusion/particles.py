"""What a plan does to the particles of a run: where they live, whom they continue, which states are remembered."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..search import Plan, place
from .rows import Rows
from .solver import Solver, States


class Memory(NamedTuple):
    """R particles of each population as they were at a step.

    Attributes:
        states: P * R, population by population.
        lineage: (P, R, 3) root, slot and number of the event at which each was seen.
    """

    states: States
    lineage: Tensor


class Followed(NamedTuple):
    """What came of a plan.

    Attributes:
        states: of the rows alive now; where the particles move after the noise, of those alive before.
        moved: (L,) which of the rows alive before each continues; None if all go on as they are.
        ancestors: (P, M) those of the plan, in the order of the slots.
        lineage: (P, M, 3) root, slot and event of each particle's ancestor.
        directions: (L, ...) of the noise of the rows alive now; None for none.
    """

    states: States
    moved: Tensor | None
    ancestors: Tensor
    lineage: Tensor
    directions: Tensor | None = None


class Particles:
    """The particles of P populations in a pipeline's batch.

    Attributes:
        rows: where they live.
        stopped: (P,) populations that go on as one particle, without noise.
    """

    def __init__(self, num_populations: int, num_slots: int) -> None:
        self.num_slots = num_slots
        self.rows = Rows(num_populations, num_slots)
        self.stopped = torch.zeros(num_populations, dtype=torch.bool)
        self._roots = self.rows.slots
        """(P, K) the initial particle that each descends from."""
        self._quiet: Tensor | None = None
        """(P, K) which go without noise until the next plan, beside those of populations that have stopped."""
        self._memory: dict[int, Memory] = {}

    @property
    def number(self) -> int:
        """K, the number of particles alive in each population."""
        return self.rows.slots.shape[1]

    @property
    def origins(self) -> Tensor | None:
        """(B,) for each row of a particle the row in which that began; None if none has moved."""
        slots = self.rows.slots
        if torch.equal(self._roots, slots):
            return None
        origins = torch.arange(self.rows.total)
        origins[self.rows.of(slots)] = self.rows.of(self._roots)
        return origins

    def lineage(self, event: int) -> Tensor:
        """(P, K, 3) root and slot of each particle, and the number of the event at which it is seen."""
        slots = self.rows.slots
        return torch.stack([self._roots, slots, torch.full_like(slots, event)], 2)

    def follow(self, plan: Plan, states: States, solver: Solver, index: int, event: int, late: bool) -> Followed:
        """Let the particles go on as the plan says.

        Args:
            states: of the rows alive.
            solver: whose memory of past steps follows the rows.
            index: of the step.
            event: its number.
            late: whether the states are to move after the step's noise.

        Raises:
            ValueError: if particles are continued that are not remembered.
        """
        K = self.number
        slots, order = place(plan.ancestors, self.rows.slots, self.num_slots)
        ancestors = plan.ancestors.gather(1, order)
        if plan.stopped is not None and plan.stopped.any():
            slots = torch.where(plan.stopped[:, None], slots[:, :1], slots)

        elsewhere = plan.resume is not None and plan.by == "memory"
        memory = self._memory.get(plan.resume if elsewhere and plan.resume is not None else index)
        remembered = [entry for entry in (plan.ancestors, plan.remember) if entry is not None and (entry >= K).any()]
        if remembered and memory is None:
            raise ValueError("The search continues remembered particles, but none are remembered at this step.")
        if elsewhere and (plan.ancestors < K).any():
            raise ValueError("The search goes back by memory, but continues particles of the present step.")
        seen = self.rows.particles
        where, lineage, known = seen, self.lineage(event), states
        if memory is not None:
            R = memory.lineage.shape[1]
            numbers = len(states.sample) + torch.arange(len(memory.states.sample)).view(-1, R)
            where, lineage = torch.cat([where, numbers], 1), torch.cat([lineage, memory.lineage], 1)
            if remembered:
                known = memory.states.after(len(states.sample)) if elsewhere else states.join(memory.states)
        if plan.remember is not None:
            kept = where.gather(1, plan.remember).flatten()
            self._memory[index] = Memory(known.take(kept), _pick(lineage, plan.remember))

        ways = None if plan.directions is None else _mixed(_pick(plan.directions, order), states.sample, seen)
        renoised = plan.resume is not None and plan.by == "renoise"
        moved = self.rows.move(slots, where.gather(1, ancestors), plan.asleep, renoised)
        lineage = _pick(lineage, ancestors)
        self._roots = lineage[:, :, 0]
        self.stopped = self.stopped if plan.stopped is None else plan.stopped
        self._quiet = None if plan.quiet is None else plan.quiet.gather(1, order)
        directions = None if ways is None else self._of_live(ways)
        if moved is None or late:
            return Followed(states, moved, ancestors, lineage, directions)
        if known is states:
            moved = moved.to(states.sample.device)
            solver.gather(states.sample.shape, moved)
            return Followed(states.take(moved), moved, ancestors, lineage, directions)
        states = known.take(moved)
        solver.restore(states.history)
        solver.guiders.restore(states.guidance)
        return Followed(states, moved, ancestors, lineage, directions)

    def _of_live(self, values: Tensor) -> Tensor:
        """(L, ...) of the rows alive, from those of the particles (P, M, ...) in the order of their slots."""
        rows = values.new_zeros(self.rows.total, *values.shape[2:])
        rows[self.rows.of(self.rows.slots).to(values.device)] = values
        return rows[self.rows.live_on(values.device)]

    def quiet(self, rows: Tensor) -> Tensor | None:
        """(L,) which of some rows get no noise; None if all get theirs."""
        mask = self.stopped[rows // self.num_slots]
        if self._quiet is not None:
            quiet = torch.zeros(self.rows.total, dtype=torch.bool)
            quiet[self.rows.of(self.rows.slots)[self._quiet]] = True
            mask = mask | quiet[rows]
        return mask if mask.any() else None


def _pick(lineage: Tensor, index: Tensor) -> Tensor:
    return lineage.gather(1, index[:, :, None].expand(-1, -1, lineage.shape[2]))


def _mixed(coefficients: Tensor, samples: Tensor, positions: Tensor) -> Tensor:
    """(P, M, ...) sums of samples (L, ...): those at positions (P, K), by coefficients (P, M, K)."""
    of_each = samples.float()[positions.to(samples.device)]
    mixed: Tensor = torch.bmm(coefficients.to(of_each), of_each.flatten(2))
    return mixed.view(*mixed.shape[:2], *samples.shape[1:])

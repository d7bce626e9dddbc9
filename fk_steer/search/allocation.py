"""Passes where they promise most: a budget shared between prompts by expected improvement."""

from __future__ import annotations

from dataclasses import dataclass

from ..smc import real
from .around import Around
from .improvement import Seen, allocate
from .passes import Passes


@dataclass(frozen=True)
class Allocation(Around):
    """First some passes over all prompts, then one whole pass after another, from other noise, of the prompt that
    promises most. The best images of all passes are kept, so none is worse than after the first.

    The next pass goes to argmax_p E[(Z - b_p)+] with Z ~ N(m_p, v_p^2): b_p is the best reward seen of prompt p, m_p
    and v_p are mean and standard deviation of its final rewards, shrunk to the batch's (`improvement.Seen.moments`).
    Explore all prompts a little, then allocate, as adaptive best-of-n does (arXiv 2505.12050); it needs no target.

    Other settings are those of `Around`.

    Attributes:
        passes: the budget: whole passes per image on average, at least 1. Counted in denoiser rows, those of the first
            pass for one; what a pass saves (see `Stop`) is spent too.
        first: share of the budget that all prompts get alike, in [0, 1]; one pass at least.

    Raises:
        ValueError: for values out of range.
    """

    passes: float = 4.0
    first: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(passes=real("passes", self.passes, 1.0), first=real("first", self.first, 0.0, 1.0))

    def cost(self, num_steps: int) -> int:
        return int(self.passes * self.inner.cost(num_steps))

    def conduct(self, passes: Passes) -> None:
        seen, P = Seen(passes.num_populations), passes.num_populations
        made = passes.run(self.inner)
        seen.add(made)
        whole = made.rows + made.saved
        rows = int(self.passes * whole) - made.rows
        cost = -(-whole // P)
        stop = getattr(self.inner, "stop", None)
        target = None if stop is None else stop.target_reward
        for _ in range(int(self.passes * self.first + 1e-9) - 1):
            best = seen.best.tolist()
            below = [p for p in range(P) if target is None or best[p] < target]
            if not below or cost * len(below) > rows:
                break
            made = passes.run(self.inner, below)
            seen.add(made)
            rows -= made.rows
            cost = max(cost, -(-made.rows // len(below)))
        allocate(seen, rows, cost, lambda populations: passes.run(self.inner, populations), target)

"""Search rules as functions on stored rewards, each with its cost in denoiser rows.

Notation: P prompts with pools of S seeds, a loop of T steps, L loops of which the first is the full one; R times a rule
is given the seeds of each pool in another order, of which it takes the first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.offline.stored import FULL, Stored
from fk_steer.search import Pass
from fk_steer.search.improvement import Seen, allocate
from fk_steer.smc import Schedule


@dataclass(frozen=True)
class Chosen:
    """What a rule takes, R times for each prompt.

    Attributes:
        loop: (P, R) which loop made the image.
        seed: (P, R) of which seed.
        rows: (P, R) float64, denoiser rows spent.
    """

    loop: Tensor
    seed: Tensor
    rows: Tensor

    @classmethod
    def of(cls, loop: int, seed: Tensor, rows: float | Tensor) -> Chosen:
        """Images of one loop; seeds (P, R)."""
        return cls(torch.full_like(seed, loop), seed, torch.as_tensor(rows, dtype=torch.float64).expand(seed.shape))


Rule = Callable[[Stored, Tensor], Chosen]
"""What a rule chooses, given (P, R, S) the seeds of each pool in the order in which it may take them."""


def at(values: Tensor, seeds: Tensor) -> Tensor:
    """(P, R, n): of values (P, S) those of seeds (P, R, n)."""
    return values[:, None].expand(-1, seeds.shape[1], -1).gather(2, seeds)


def best_among(values: Tensor, seeds: Tensor, number: int) -> Tensor:
    """(P, R, number): the seeds of highest value, best first; ties go to the earlier one.

    Args:
        values: (P, S).
        seeds: (P, R, n).
    """
    order = at(values, seeds).argsort(dim=2, descending=True, stable=True)
    return seeds.gather(2, order[:, :, :number])


def best_of(stored: Stored, pools: Tensor, number: int, loop: int = FULL) -> Chosen:
    """The best of `number` images of one loop."""
    seeds = best_among(stored.rewards[loop], pools[:, :, :number], 1)[:, :, 0]
    return Chosen.of(loop, seeds, number * stored.rows[loop])


def prune(stored: Stored, pools: Tensor, number: int, schedule: Schedule) -> Chosen:
    """Of `number` seeds the full loop keeps those of the best x0 predictions, as the schedule says (PSP, arXiv
    2607.21591)."""
    T = stored.steps[FULL]
    seeds, rows, done = pools[:, :, :number], 0.0, 0
    for step, alive in schedule.events(T, number).items():
        rows += seeds.shape[2] * (step + 1 - done)
        done = step + 1
        seeds = best_among(stored.predictions[:, :, step], seeds, alive)
    rows += seeds.shape[2] * (T - done)
    best = best_among(stored.rewards[FULL], seeds, 1)[:, :, 0]
    return Chosen.of(FULL, best, rows * stored.rows[FULL] / T)


def screen(stored: Stored, pools: Tensor, number: int, loop: int, keep: int) -> Chosen:
    """Few steps for `number` seeds, all steps for the best `keep` of them; the best of all these images, the full one
    where they are equal (see `fk_steer.search.Screen`)."""
    seeds = best_among(stored.rewards[loop], pools[:, :, :number], max(keep, 1))
    few = Chosen.of(loop, seeds[:, :, 0], number * stored.rows[loop])
    if not keep:
        return few
    best = best_among(stored.rewards[FULL], seeds, 1)
    fewer = at(stored.rewards[loop], seeds[:, :, :1]) > at(stored.rewards[FULL], best)
    full, is_few = best[:, :, 0], fewer[:, :, 0]
    return Chosen(
        torch.where(is_few, few.loop, torch.full_like(few.loop, FULL)),
        torch.where(is_few, few.seed, full),
        few.rows + keep * stored.rows[FULL],
    )


def stop(stored: Stored, pools: Tensor, number: int, target: float, loop: int = FULL) -> Chosen:
    """One image after another until one has the reward `target`, at most `number`; the best of those made."""
    seeds = pools[:, :, :number]
    rewards = at(stored.rewards[loop], seeds)
    reached = rewards >= target
    reached[:, :, -1] = True
    made = reached.int().argmax(dim=2) + 1
    unmade = torch.arange(number) >= made[:, :, None]
    best = rewards.masked_fill(unmade, -torch.inf).argmax(dim=2, keepdim=True)
    return Chosen.of(loop, seeds.gather(2, best)[:, :, 0], made.double() * stored.rows[loop])


class SeenOfPools(Seen):
    """Rewards seen of prompts whose pools can run out.

    Args:
        sizes: images in the pool of each prompt.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__(len(sizes))
        self.sizes = sizes

    def index(self) -> Tensor:
        """That of a prompt with no image left is -inf."""
        empty = torch.tensor([len(rewards) >= size for rewards, size in zip(self.rewards, self.sizes)])
        return super().index().masked_fill(empty, -torch.inf)


def improvement(stored: Stored, pools: Tensor, number: int, first: int, loop: int = FULL) -> Chosen:
    """`number` images per prompt on average: `first` for each, then one at a time for the prompt of highest expected
    improvement (see `fk_steer.search.Allocation`), until its pool is empty."""
    P, R, S = pools.shape
    rewards, cost = at(stored.rewards[loop], pools), stored.rows[loop]
    best, rows = torch.empty(P, R, dtype=torch.long), torch.empty(P, R, dtype=torch.float64)
    for r in range(R):
        own = rewards[:, r].tolist()
        seen = SeenOfPools([S] * P)
        begun, slots = [some[:first] for some in own], [range(first)] * P
        seen.add(Pass(range(P), begun, slots, rows=P * first * cost, saved=0))

        def again(populations: Sequence[int], own: list[list[float]] = own, seen: SeenOfPools = seen) -> Pass:
            (p,) = populations
            position = len(seen.rewards[p])
            return Pass(populations, [[own[p][position]]], [[position]], rows=cost, saved=0)

        allocate(seen, P * (number - first) * cost, cost, again)
        for p, some in enumerate(seen.rewards):
            best[p, r] = pools[p, r, some.index(max(some))]
            rows[p, r] = len(some) * cost
    return Chosen.of(loop, best, rows)


PRUNINGS = (
    (8, Schedule(at=(0.25, 0.5), alive=(4, 2))),
    (16, Schedule(at=(0.12, 0.4), alive=(4, 1))),
    (8, Schedule(at=(0.33,), alive=(2,))),
    (6, Schedule(at=(0.5,), alive=(2,))),
    (5, Schedule(at=(0.75,), alive=(1,))),
)
"""Seeds, and when how many go on; the full loops of four or fewer."""

KEPT = (1, 2, 3)
SHARES = (0.5, 0.75, 0.9)
"""Of full images with less than the reward at which to stop."""

REFERENCE = 4
"""Full images: the budget that rules are compared at, and with."""


def rules_of(stored: Stored) -> dict[str, Rule]:
    """All that are compared, by what a table calls them: those that the pools have seeds for."""
    S, T = stored.num_seeds, stored.steps[FULL]
    found: dict[str, Rule] = {}

    def best_ofs(numbers: Sequence[int], loop: int, ending: str = "") -> None:
        for number in sorted({number for number in numbers if 1 <= number <= S}):
            found[f"best-of-{number}{ending}"] = partial(best_of, number=number, loop=loop)

    few = [(loop, steps) for loop, steps in enumerate(stored.steps) if loop != FULL]
    best_ofs((1, 2, reference_of(stored), 8, 16), FULL)
    for loop, steps in few:
        best_ofs((REFERENCE, 8, min(REFERENCE * T // steps, S)), loop, f" in {steps} steps")
    for number, schedule in PRUNINGS:
        if number <= S:
            sizes = "-".join(str(size) for size in (number, *(schedule.alive or ())))
            shares = ", ".join(f"{100 * share:g}" for share in schedule.at)
            found[f"prune {sizes} at {shares}%"] = partial(prune, number=number, schedule=schedule)
    for (loop, steps), keep in itertools.product(few, KEPT):
        number = min((REFERENCE - keep) * T // steps, S)
        if number > keep:
            found[f"screen {number} in {steps} steps, keep {keep}"] = partial(
                screen, number=number, loop=loop, keep=keep
            )
    most = min(2 * REFERENCE, S)
    for share in SHARES:
        target = stored.rewards[FULL].quantile(share).item()
        found[f"stop at {target:.3f}, at most {most}"] = partial(stop, number=most, target=target)
    if S > REFERENCE:
        found[f"expected improvement, {REFERENCE} on average"] = partial(
            improvement, number=REFERENCE, first=REFERENCE // 2
        )
    return found


def reference_of(stored: Stored) -> int:
    """Images of the best-of-n that all are compared with."""
    return min(REFERENCE, stored.num_seeds)


def pools_of(stored: Stored, repeats: int, seed: int) -> Tensor:
    """(P, repeats, S): the seeds of each pool in random orders."""
    P, S = stored.predictions.shape[:2]
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(P, repeats, S, generator=generator, dtype=torch.float64).argsort(dim=2)

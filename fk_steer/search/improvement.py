"""Expected improvement: which prompt of a call the next pass promises most."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .passes import Pass


def expected_improvement(best: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """E[(Z - b)+] of a normal Z (Mockus 1974; Jones et al. 1998, equation 15): s (phi(z) + z Phi(z)), z = (m - b) / s.

    Below the mean's tail the two terms cancel; there phi(z) is taken out of them, by Mills' ratio.

    Args:
        best, mean, deviation: b, m and s >= 0, of one shape. With s = 0 it is (m - b)+.
    """
    gap = mean - best
    scale = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    z = gap / scale
    density = (-0.5 * z * z).exp() / math.sqrt(2 * math.pi)
    mills = math.sqrt(math.pi / 2) * torch.special.erfcx(-z.clamp(max=0.0) / math.sqrt(2))
    below = density * (1 + z * mills)
    above = density + z * torch.special.ndtr(z)
    return torch.where(deviation > 0, scale * torch.where(z < 0, below, above), gap.clamp(min=0.0))


class Seen:
    """The final rewards that have been seen of each of P prompts.

    Args:
        num_populations: P.
        prior: how many rewards the batch's spread counts for in a prompt's own.
    """

    def __init__(self, num_populations: int, prior: float = 4.0) -> None:
        self.rewards: list[list[float]] = [[] for _ in range(num_populations)]
        self.passes = [0] * num_populations
        self.prior = prior

    def add(self, made: Pass) -> None:
        """Another pass."""
        for population, rewards in zip(made.populations, made.rewards, strict=True):
            self.rewards[population] += rewards
            self.passes[population] += 1

    @property
    def best(self) -> Tensor:
        """(P,) float64, b."""
        return torch.tensor([max(rewards) for rewards in self.rewards], dtype=torch.float64)

    def moments(self) -> tuple[Tensor, Tensor]:
        """(P,) float64 twice: mean m and standard deviation v of a prompt's rewards, shrunk to the batch's.

        With n rewards of mean x and sum of squares S around it, s^2 pooled within the prompts and t^2 between their
        means (moment estimates of a two-level normal model):

            v^2 = (S + c s^2) / (n - 1 + c),    m = (n t^2 x + s^2 M) / (n t^2 + s^2),

        where c is `prior` and M the mean over the prompts. Where every prompt has one reward, s is their spread.
        """
        number = torch.tensor([len(rewards) for rewards in self.rewards], dtype=torch.float64)
        mean = torch.tensor([sum(rewards) / len(rewards) for rewards in self.rewards], dtype=torch.float64)
        squares = torch.tensor(
            [sum((reward - m) ** 2 for reward in rewards) for rewards, m in zip(self.rewards, mean.tolist())],
            dtype=torch.float64,
        )
        free = (number - 1).sum()
        between = mean.var() if len(mean) > 1 else mean.new_zeros(())
        within = squares.sum() / free if free > 0 else between
        between = (between - within * (1 / number).mean()).clamp(min=0.0)
        variance = (squares + self.prior * within) / (number - 1 + self.prior)
        trust = number * between
        shrunk = (trust * mean + within * mean.mean()) / (trust + within)
        return torch.where(trust + within > 0, shrunk, mean), variance.sqrt()

    def index(self) -> Tensor:
        """(P,) float64, what one more image of each prompt promises: E[(Z - b)+], Z ~ N(m, v^2)."""
        return expected_improvement(self.best, *self.moments())


def allocate(
    seen: Seen, rows: int, cost: int, again: Callable[[list[int]], Pass], target: float | None = None
) -> int:
    """Run prompts again, one whole pass after another, each of the prompt that promises most, while there are rows.

    Of prompts that promise the same, the one that was run least comes first, then the first.

    Args:
        seen: of every prompt the rewards of a pass at least; goes on counting.
        rows: denoiser rows there are to spend.
        cost: the most that a whole pass of one prompt has taken; 0 if none was made.
        again: runs prompts again, from other noise.
        target: prompts whose best reward has reached it are left alone; None for none.

    Returns:
        The rows that are left.
    """
    while cost and rows >= cost:
        index, best = seen.index().tolist(), seen.best.tolist()
        open_ = [p for p in range(len(best)) if target is None or best[p] < target]
        if not open_:
            break
        made = again([max(open_, key=lambda p: (index[p], -seen.passes[p], -p))])
        seen.add(made)
        rows -= made.rows
        cost = max(cost, made.rows)
    return rows

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
    """

    def __init__(self, num_populations: int) -> None:
        self.rewards: list[list[float]] = [[] for _ in range(num_populations)]
        self.passes = [0] * num_populations

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
        """(P,) float64 twice: mean m and standard deviation v of the next reward of each prompt.

        Both are shrunk to the batch's: rewards are normal within a prompt, with a variance s_p^2 of its own; the means
        of the prompts are normal too, with variance t^2. With n rewards of mean x and sum of squares S around it:

            s_p^2 = (S + d s^2) / (n - 1 + d),
            m = (n t^2 x + s_p^2 M) / (n t^2 + s_p^2),    v^2 = s_p^2 + s_p^2 t^2 / (n t^2 + s_p^2).

        s^2 and the number d of rewards that it counts for are those of `pooled_variance`; M is the mean over the
        prompts weighted by its precision, and t^2 what the spread of their means x exceeds that of noise by.
        """
        number = torch.tensor([len(rewards) for rewards in self.rewards], dtype=torch.float64)
        mean = torch.tensor([sum(rewards) / len(rewards) for rewards in self.rewards], dtype=torch.float64)
        squares = torch.tensor(
            [sum((reward - m) ** 2 for reward in rewards) for rewards, m in zip(self.rewards, mean.tolist())],
            dtype=torch.float64,
        )
        spread = mean.var() if len(mean) > 1 else mean.new_zeros(())
        pooled = pooled_variance(squares, number - 1)
        if pooled is None:  # there is no spread but that between prompts, if any
            return mean, (spread if (number == 1).all() else spread * 0.0).sqrt().expand_as(mean)
        scale, count = pooled
        variance = (squares + count * scale) / (number - 1 + count)
        between = (spread - (variance / number).mean()).clamp(min=0.0)
        precision = 1 / (between + variance / number)
        middle = (precision * mean).sum() / precision.sum()
        trust = number * between
        shrunk = (trust * mean + variance * middle) / (trust + variance)
        return shrunk, (variance + variance * between / (trust + variance)).sqrt()

    def index(self) -> Tensor:
        """(P,) float64, what one more image of each prompt promises: E[(Z - b)+], Z ~ N(m, v^2)."""
        return expected_improvement(self.best, *self.moments())


def pooled_variance(squares: Tensor, free: Tensor) -> tuple[float, float] | None:
    """What the variances of several prompts have in common: a scaled inverse chi-squared law, by the moments of their
    logarithms (Smyth 2004, section 6.2).

    The spread of the log variances beyond that of chance says how many degrees of freedom the law has. It is averaged
    with that of `TYPICAL` degrees, which counts for `WEIGHT` prompts, so that few prompts, or one, do as well.

    Args:
        squares: (P,) sums of squares around the prompts' means.
        free: (P,) their degrees of freedom.

    Returns:
        The scale s^2 and the degrees of freedom d; None if no prompt has a spread.
    """
    known = (squares > 0) & (free > 0)
    if not known.any():
        return None
    half = free[known] / 2
    logs = (squares[known] / free[known]).log() - torch.digamma(half) + half.log()
    chance = torch.polygamma(1, half)
    prompts = len(logs) - 1
    excess = WEIGHT * torch.polygamma(1, torch.tensor(TYPICAL / 2, dtype=torch.float64))
    if prompts:
        excess = excess + prompts * (logs.var() - chance.mean())
    excess = (excess / (prompts + WEIGHT)).clamp(min=0.02)
    precision = 1 / (excess + chance)
    middle = (precision * logs).sum() / precision.sum()
    degrees = _inverse_trigamma(excess)
    scale = (middle + torch.digamma(degrees) - degrees.log()).exp()
    return scale.item(), 2 * degrees.item()


TYPICAL, WEIGHT = 4.0, 8.0
"""Degrees of freedom of the law of variances where nothing is known of it (standard deviations that differ by a factor
of 1.5), and the number of prompts that this counts for."""


def _inverse_trigamma(value: Tensor) -> Tensor:
    """Newton's method on 1 / psi', which is convex (Smyth 2004, appendix)."""
    found = 0.5 + 1 / value
    for _ in range(6):
        trigamma = torch.polygamma(1, found)
        found = found + trigamma * (1 - trigamma / value) / torch.polygamma(2, found)
    return found


def allocate(seen: Seen, rows: int, cost: int, again: Callable[[list[int]], Pass], target: float | None = None) -> int:
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

"""Denoiser rows that prompts have saved by being good enough, spent on those that are not: a loop over whole passes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


Again = Callable[[list[int]], tuple[Tensor, int]]
"""Runs some populations again from other noise and keeps the better images: populations -> the best rewards (P,) of all
populations now, and the denoiser rows that it took."""


def roll_over(best: Tensor, target: float, cost: int, saved: int, again: Again) -> int:
    """Run populations that have not reached the target again while the rows saved pay for it, the nearest to it first.

    Args:
        best: (P,) the best reward of each population.
        target: the reward wanted.
        cost: denoiser rows of a whole pass of one population; 0 if none was made.
        saved: rows there are to spend.
        again: see `Again`.

    Returns:
        The rows that are left.
    """
    while cost:
        missing = [p for p in best.argsort(descending=True, stable=True).tolist() if best[p] < target]
        chosen = sorted(missing[: saved // cost])
        if not chosen:
            break
        best, rows = again(chosen)
        saved -= rows
    return saved

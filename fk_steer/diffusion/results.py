"""What a run gives, and the results of several runs: joined, and by population."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .rows import Rows


class Result(NamedTuple):
    """What a run gives: images, the pipeline's other outputs, rewards (P, k) and normalised log-weights (P, k); best
    first in each population, by reward unless the search ranks them otherwise. `origins` (P, k, 2) are the pass over
    the population, counted from zero, and the slot in which each was made."""

    images: Any
    others: list[Any]
    rewards: Tensor
    log_weights: Tensor
    origins: Tensor


def of_particles(values: Any, rows: Rows, order: Tensor) -> Any:
    """What a pipeline returned, of the particles in this order (P, K); values that do not have one entry for each row,
    or for each that is alive, as they are."""
    live = rows.particles.gather(1, order).flatten()
    if _holds(values, rows.total):
        return _pick(values, rows.live[live])
    return _pick(values, live) if _holds(values, len(rows.live)) else values


def best_particles(result: Result, number: int) -> Result:
    """The best of each population alone."""
    P, size = result.rewards.shape
    if number == size:
        return result
    order = torch.arange(P * size).view(P, size)[:, :number].flatten()
    log_weights = result.log_weights[:, :number]
    return Result(
        _pick(result.images, order),
        [_pick(other, order) if _holds(other, P * size) else other for other in result.others],
        result.rewards[:, :number],
        log_weights - log_weights.logsumexp(1, keepdim=True),
        result.origins[:, :number],
    )


def better_of(result: Result, retry: Result, populations: Sequence[int]) -> Result:
    """`result` with some populations taken from `retry`, which holds those alone, where its best reward is higher."""
    P, size = result.rewards.shape
    rows = torch.arange(P * size).view(P, size)
    retried = P * size + torch.arange(len(populations) * size).view(-1, size)
    better = retry.rewards[:, 0] > result.rewards[list(populations), 0]
    rows[torch.tensor(populations)[better]] = retried[better]
    order = rows.flatten()
    return Result(
        _pick(_join(result.images, retry.images), order),
        [
            _pick(_join(first, second), order) if _holds(first, P * size) else first
            for first, second in zip(result.others, retry.others)
        ],
        _pick(_join(result.rewards.flatten(), retry.rewards.flatten()), order).view(P, size),
        _pick(_join(result.log_weights.flatten(), retry.log_weights.flatten()), order).view(P, size),
        _pick(_join(result.origins.flatten(0, 1), retry.origins.flatten(0, 1)), order).view(P, size, 2),
    )


def best_of_each(result: Result) -> tuple[Any, list[Any]]:
    """The best image of each population, and what the pipeline says beside it of those."""
    P, size = result.rewards.shape
    first = size * torch.arange(P)
    return _pick(result.images, first), [
        _pick(other, first) if _holds(other, P * size) else other for other in result.others
    ]


def by_population(result: Result) -> Any:
    """The images population by population: P lists of k, or an array or tensor (P, k, ...)."""
    P, size = result.rewards.shape
    images = result.images
    if isinstance(images, (Tensor, np.ndarray)):
        return images.reshape(P, size, *images.shape[1:])
    return [images[p * size : (p + 1) * size] for p in range(P)]


def _holds(values: Any, number: int) -> bool:
    return isinstance(values, (Tensor, np.ndarray, list)) and len(values) == number


def _join(first: Any, second: Any) -> Any:
    if isinstance(first, Tensor):
        return torch.cat([first, second])
    if isinstance(first, np.ndarray):
        return np.concatenate([first, second])
    return [*first, *second] if isinstance(first, list) else first


def _pick(values: Any, rows: Tensor) -> Any:
    if isinstance(values, Tensor):
        return values[rows.to(values.device)]
    if isinstance(values, np.ndarray):
        return values[rows.numpy()]
    return [values[row] for row in rows.tolist()] if isinstance(values, list) else values

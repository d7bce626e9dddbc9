"""Weights of particles in log space, the one place that knows what infinite ones mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """Weights of K particles in each of P populations; a value, which operations leave as it is.

    A weight of zero, log-weight -inf, stays zero whatever is added to it. Entries of +inf outweigh all finite ones and
    share the weight of their population.

    Attributes:
        log: (P, K) log-weights, float64 on the CPU, any additive constant per population.
    """

    log: Tensor

    @classmethod
    def uniform(cls, num_populations: int, num_particles: int) -> Weights:
        """Equal weights for K particles in each of P populations."""
        return cls(torch.zeros(num_populations, num_particles, dtype=torch.float64))

    @property
    def normalized(self) -> Tensor:
        """The weights (P, K), which sum to one in each population."""
        return normalize(self.log)

    @property
    def log_normalized(self) -> Tensor:
        """The logarithms (P, K) of the normalised weights."""
        return _finite(self.log).log_softmax(1)

    @property
    def ess(self) -> Tensor:
        """The effective sample sizes (P,), from 1 to K."""
        return effective_sample_size(self.log)

    @property
    def alive(self) -> Tensor:
        """Which particles (P, K) have any weight."""
        return self.log > -torch.inf

    def add(self, log_potential: Tensor) -> Reweighted:
        """The weights times exp(log_potential), (P, K).

        Populations in which no particle keeps any weight start again from uniform weights.
        """
        infinite = self.alive & (log_potential == torch.inf)
        applied = torch.where(infinite.any(1, keepdim=True), torch.where(infinite, 0.0, -torch.inf), log_potential)
        weighed = add(self.log, applied)
        dead = (weighed == -torch.inf).all(1)
        increment = weighed.logsumexp(1) - self.log.logsumexp(1)
        return Reweighted(Weights(weighed.masked_fill(dead[:, None], 0.0)), applied, increment, dead)

    def follow(self, ancestors: Tensor, reset: Tensor) -> Weights:
        """The weights of the particles that continue `ancestors` (P, M), equal in the populations `reset` (P,)."""
        return Weights(self.log.gather(1, ancestors).masked_fill(reset[:, None], 0.0))


class Reweighted(NamedTuple):
    """What came of `Weights.add`.

    Attributes:
        weights: the new weights.
        log_potential: (P, K) as it was applied: where some are +inf, those are 0 and the others -inf.
        log_mean: (P,) logarithm of the potential's mean under the old weights.
        dead: (P,) populations that have started again from uniform weights.
    """

    weights: Weights
    log_potential: Tensor
    log_mean: Tensor
    dead: Tensor


def add(log_weights: Tensor, increment: Tensor) -> Tensor:
    """Sum in which a weight of zero stays zero: -inf + inf = -inf."""
    return torch.where(log_weights == -torch.inf, -torch.inf, log_weights + increment)


def checked(lw: Tensor) -> Tensor:
    """Log-weights (P, K) as float64 on the CPU.

    Raises:
        ValueError: if `lw` is not of shape (P, K) or holds NaN.
    """
    if lw.ndim != 2:
        raise ValueError(f"Expected log-weights of shape (P, K), but got {tuple(lw.shape)}.")
    lw = lw.detach().to("cpu", torch.float64)
    if lw.isnan().any():
        raise ValueError("Expected log-weights without NaN.")
    return lw


def normalize(lw: Tensor) -> Tensor:
    """Normalised weights `W` (P, K), float64, of log-weights `lw` (P, K).

    Infinite entries are allowed: `-inf` is a weight of zero, rows that are `-inf` throughout become uniform, and in a
    row that holds `+inf` those entries share the weight equally.

    Raises:
        ValueError: if `lw` is not of shape (P, K) or holds NaN.
    """
    return torch.softmax(_finite(checked(lw)), dim=1)


def effective_sample_size(lw: Tensor) -> Tensor:
    """Effective sample size `1 / sum_k W[k]^2` of log-weights (P, K): (P,), from 1 (one particle has all the weight)
    to K (uniform weights)."""
    return 1.0 / normalize(lw).square().sum(1)


def _finite(lw: Tensor) -> Tensor:
    infinite = lw == torch.inf
    lw = torch.where(infinite.any(1, keepdim=True), torch.where(infinite, 0.0, -torch.inf), lw)
    dead = (lw == -torch.inf).all(1, keepdim=True)
    return lw.masked_fill(dead, 0.0)

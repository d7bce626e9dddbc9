"""Potentials: how the rewards seen so far become the log-weight increment of a scoring event.

Along a path x_T, ..., x_0 the potentials G_t multiply to exp(lambda r(x_0)), so that the particles target
p(x_0) exp(lambda r(x_0)) whichever potential is chosen; the choice only says how early the pressure is applied
(Singhal et al., arXiv 2501.06848, section 3.2). With r_t the reward of the x0 prediction at event t and lambda_t the
lambda in force there:

| name | log G_t |
|---|---|
| `difference` | lambda_t r_t - (sum of log G so far), which is lambda (r_t - r_{t+1}) when lambda is constant |
| `max` | lambda_t max_{s >= t} r_s |
| `sum` | lambda_t sum_{s >= t} r_s |
| `current` | lambda_t r_t |

and for all of them, at the end of the path, log G_0 = lambda r(x_0) - (sum of log G so far).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .checks import flag, real
from .names import Keywords


@dataclass(frozen=True)
class Potential(Keywords, ABC):
    """A running statistic of the rewards on a path, times lambda.

    Attributes:
        exact_terminal: weigh the end of the path with lambda r(x_0); if False with the running statistic instead, as
            the reference implementation does, whose target is then not p(x_0) exp(lambda r(x_0)).
    """

    exact_terminal: bool = True
    name: ClassVar[str]
    telescopes: ClassVar[bool] = False
    """Whether the sum of log G so far is subtracted at every event and not only at the last."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "exact_terminal", flag("exact_terminal", self.exact_terminal))

    @property
    def initial(self) -> float:
        """The statistic of an empty path."""
        return 0.0

    @abstractmethod
    def combine(self, statistic: Tensor, rewards: Tensor) -> Tensor:
        """The new statistic (P, K) from the old one and the rewards (P, K) of an event."""

    def log_potential(self, level: Tensor, path: Tensor) -> Tensor:
        """Make log G (P, K) of lambda times the statistic (P, K) and the sum of log G on the path (P, K)."""
        return remainder(level, path) if self.telescopes else level


@dataclass(frozen=True)
class Difference(Potential):
    """The gain in reward since the last event."""

    name: ClassVar[str] = "difference"
    telescopes: ClassVar[bool] = True

    def combine(self, statistic: Tensor, rewards: Tensor) -> Tensor:
        return rewards


@dataclass(frozen=True)
class Max(Potential):
    """The highest reward on the path so far.

    Attributes:
        floor: lower rewards count as this; None for no floor.
    """

    floor: float | None = None
    name: ClassVar[str] = "max"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "floor", real("floor", self.floor, optional=True))

    @property
    def initial(self) -> float:
        return -torch.inf if self.floor is None else self.floor

    def combine(self, statistic: Tensor, rewards: Tensor) -> Tensor:
        return torch.maximum(statistic, rewards)


@dataclass(frozen=True)
class Sum(Potential):
    """The sum of the rewards on the path so far."""

    name: ClassVar[str] = "sum"

    def combine(self, statistic: Tensor, rewards: Tensor) -> Tensor:
        dead = (statistic == -torch.inf) | (rewards == -torch.inf)
        return torch.where(dead, -torch.inf, statistic + rewards)


@dataclass(frozen=True)
class Current(Potential):
    """The reward at this event alone."""

    name: ClassVar[str] = "current"

    def combine(self, statistic: Tensor, rewards: Tensor) -> Tensor:
        return rewards


POTENTIALS: dict[str, type[Potential]] = {kind.name: kind for kind in (Difference, Max, Sum, Current)}


def tilt(rewards: Tensor, lmbda: Tensor) -> Tensor:
    """lambda * rewards, (P, K), with 0 * inf = 0: at lambda = 0 no reward matters."""
    lmbda = lmbda.reshape(-1, 1)
    return torch.where(lmbda == 0, 0.0, lmbda * rewards)


def remainder(level: Tensor, path: Tensor) -> Tensor:
    """level - path, (P, K), the log-weight that is missing on a path; -inf for paths that are dead already."""
    return torch.where(path == -torch.inf, -torch.inf, level - path)

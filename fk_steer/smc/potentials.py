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

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Potential:
    """A potential is a running statistic of the rewards on a path, times lambda.

    Attributes:
        name: its name in `POTENTIALS`.
        combine: (statistic (P, K), rewards (P, K)) -> the new statistic (P, K).
        initial: the statistic of an empty path.
        telescopes: whether the sum of log G so far is subtracted at every event and not only at the last.
    """

    name: str
    combine: Callable[[Tensor, Tensor], Tensor]
    initial: float = 0.0
    telescopes: bool = False

    def log_potential(self, level: Tensor, path: Tensor) -> Tensor:
        """log G (P, K) from lambda times the statistic (P, K) and the sum of log G on the path (P, K)."""
        return remainder(level, path) if self.telescopes else level


def tilt(rewards: Tensor, lmbda: Tensor) -> Tensor:
    """lambda * rewards, (P, K), with 0 * inf = 0: at lambda = 0 no reward matters."""
    lmbda = lmbda.reshape(-1, 1)
    return torch.where(lmbda == 0, 0.0, lmbda * rewards)


def remainder(level: Tensor, path: Tensor) -> Tensor:
    """level - path, (P, K), the log-weight that is missing on a path; -inf for paths that are dead already."""
    return torch.where(path == -torch.inf, -torch.inf, level - path)


def _sum(statistic: Tensor, rewards: Tensor) -> Tensor:
    dead = (statistic == -torch.inf) | (rewards == -torch.inf)
    return torch.where(dead, -torch.inf, statistic + rewards)


POTENTIALS: dict[str, Potential] = {
    "difference": Potential("difference", lambda statistic, rewards: rewards, telescopes=True),
    "max": Potential("max", torch.maximum, initial=-torch.inf),
    "sum": Potential("sum", _sum),
    "current": Potential("current", lambda statistic, rewards: rewards),
}

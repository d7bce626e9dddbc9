"""Tempering: the lambda in force at a scoring event.

Early x0 predictions say little about the final image, so weighing them as heavily as late ones discards good
particles on noise. A tempering maps the progress of the loop, from 0 (the initial noise) to 1 (the final image), to
lambda. Temperings of the first kind scale a given lambda and reach it at the final image; `TargetESS` finds lambda
from the weights themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .resampling import effective_sample_size


@dataclass(frozen=True)
class Constant:
    """lambda at every event: the published setting."""

    name: ClassVar[str] = "constant"

    def scale(self, progress: float) -> float:
        return 1.0


@dataclass(frozen=True)
class Rising:
    """lambda_t = lambda * end * progress^power.

    Attributes:
        end: multiplier just before the final image; 2.0 is the "increase" temperature of BFS (arXiv 2505.23614),
            whose intermediate lambdas are right on average.
        power: 1 rises linearly; larger is later.
    """

    end: float = 1.0
    power: float = 1.0
    name: ClassVar[str] = "rising"

    def __post_init__(self) -> None:
        if not (self.end > 0 and self.power > 0):
            raise ValueError(f"Expected `end` and `power` above 0, but got {self.end} and {self.power}.")

    def scale(self, progress: float) -> float:
        return self.end * progress**self.power


@dataclass(frozen=True)
class Geometric:
    """lambda_t = lambda * min((1 + gamma)^(100 progress) - 1, 1): the schedule of DAS (arXiv 2501.05803, gamma 0.008
    at 100 steps), written in progress so that it does not depend on the number of steps."""

    gamma: float = 0.008
    name: ClassVar[str] = "geometric"

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise ValueError(f"Expected `gamma` above 0, but got {self.gamma}.")

    def scale(self, progress: float) -> float:
        return min((1 + self.gamma) ** (100 * progress) - 1, 1.0)


@dataclass(frozen=True)
class TargetESS:
    """The largest lambda that keeps the effective sample size at `ess` times the number of particles that have any
    weight, found per population by bisection.

    The answer does not change when the reward is scaled, so it needs no lambda of its own; one that is given is an
    upper limit, and the final image is then weighed with it.

    Attributes:
        ess: target as a fraction of the number of particles that have any weight, in (0, 1).
    """

    ess: float = 0.5
    name: ClassVar[str] = "target-ess"

    def __post_init__(self) -> None:
        if not 0 < self.ess < 1:
            raise ValueError(f"Expected `ess` between 0 and 1, but got {self.ess}.")

    def solve(self, log_weights_at: Callable[[Tensor], Tensor], lowest: Tensor, highest: Tensor) -> Tensor:
        """Lambda (P,) in [lowest, highest].

        Args:
            log_weights_at: lambda (P,) -> log-weights (P, K) under that lambda.
            lowest: (P,) returned where even that is too much.
            highest: (P,) returned where even that leaves the effective sample size above the target.
        """

        def keeps_target(lmbda: Tensor) -> Tensor:
            lw = log_weights_at(lmbda)
            return effective_sample_size(lw) >= self.ess * (lw > -torch.inf).sum(1)

        low, high = lowest.clone(), highest.clone()
        reached_highest = keeps_target(highest)
        for _ in range(50):
            middle = (low + high) / 2
            keeps = keeps_target(middle)
            low, high = torch.where(keeps, middle, low), torch.where(keeps, high, middle)
        return torch.where(reached_highest, highest, low)


Tempering = Constant | Rising | Geometric | TargetESS

TEMPERINGS: dict[str, type[Constant] | type[Rising] | type[Geometric] | type[TargetESS]] = {
    kind.name: kind for kind in (Constant, Rising, Geometric, TargetESS)
}

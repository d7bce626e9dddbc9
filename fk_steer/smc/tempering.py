"""Tempering: the lambda in force at a scoring event.

Early x0 predictions say little about the final image, so weighing them as heavily as late ones discards good
particles on noise. A tempering maps the progress of the loop, from 0 (the initial noise) to 1 (the final image), to
lambda. `Constant`, `Rising` and `Geometric` scale a given lambda and reach it at the final image; `TargetESS` finds
lambda from the weights themselves.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .checks import real
from .names import Keywords
from .weights import effective_sample_size


@dataclass(frozen=True)
class Situation:
    """What a tempering is asked about.

    Attributes:
        progress: of the loop, in [0, 1]; 1 is the final images.
        limit: lambda as it was set; None if it was not.
        statistic: (P, K) of the potential.
        alive: (P, K) which particles have any weight.
        lowest: (P,) the least lambda that makes sense here.
        log_weights_at: lambda (P,) -> log-weights (P, K) under that lambda.
    """

    progress: float
    limit: float | None
    statistic: Tensor
    alive: Tensor
    lowest: Tensor
    log_weights_at: Callable[[Tensor], Tensor]

    def everywhere(self, lmbda: float) -> Tensor:
        """(P,) the same lambda in all populations."""
        return torch.full((len(self.statistic),), lmbda, dtype=torch.float64)


class Tempering(Keywords, ABC):
    """The lambda in force at each scoring event."""

    name: ClassVar[str]
    needs_lmbda: ClassVar[bool] = True
    """Whether a lambda has to be given; otherwise one that is given is a limit."""

    @abstractmethod
    def lmbda(self, situation: Situation) -> Tensor:
        """(P,) lambda at an event."""

    def infinities_decide(self, limit: float | None) -> bool:
        """Whether infinite rewards count as infinite log-weights whatever lambda is."""
        return False


class Scaled(Tempering):
    """A given lambda, scaled along the way."""

    @abstractmethod
    def scale(self, progress: float) -> float:
        """What lambda is multiplied with before the final image."""

    def lmbda(self, situation: Situation) -> Tensor:
        assert situation.limit is not None
        final = situation.progress >= 1.0
        return situation.everywhere(situation.limit if final else situation.limit * self.scale(situation.progress))


@dataclass(frozen=True)
class Constant(Scaled):
    """lambda at every event: the published setting."""

    name: ClassVar[str] = "constant"

    def scale(self, progress: float) -> float:
        return 1.0


@dataclass(frozen=True)
class Rising(Scaled):
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
        for field in ("end", "power"):
            object.__setattr__(self, field, real(field, getattr(self, field)))
        if not (self.end > 0 and self.power > 0):
            raise ValueError(f"Expected `end` and `power` above 0, but got {self.end} and {self.power}.")

    def scale(self, progress: float) -> float:
        return self.end * math.pow(progress, self.power)


@dataclass(frozen=True)
class Geometric(Scaled):
    """lambda_t = lambda * min((1 + gamma)^(100 progress) - 1, 1): the schedule of DAS (arXiv 2501.05803, gamma 0.008
    at 100 steps), written in progress so that it does not depend on the number of steps."""

    gamma: float = 0.008
    name: ClassVar[str] = "geometric"

    def __post_init__(self) -> None:
        object.__setattr__(self, "gamma", real("gamma", self.gamma))
        if not self.gamma > 0:
            raise ValueError(f"Expected `gamma` above 0, but got {self.gamma}.")

    def scale(self, progress: float) -> float:
        return min(math.pow(1 + self.gamma, 100 * progress) - 1, 1.0)


@dataclass(frozen=True)
class TargetESS(Tempering):
    """The largest lambda that keeps the effective sample size at 1 + ess * (n - 1), n being the number of particles
    that have any weight: found per population by bisection.

    The answer does not change when the reward is scaled, so it needs no lambda of its own; one that is given is an
    upper limit, and the final image is then weighed with it.

    Attributes:
        ess: the target's place between 1 (one particle) and n (all), in (0, 1).
    """

    ess: float = 1 / 3
    name: ClassVar[str] = "target-ess"
    needs_lmbda: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "ess", real("ess", self.ess))
        if not 0 < self.ess < 1:
            raise ValueError(f"Expected `ess` between 0 and 1, but got {self.ess}.")

    def infinities_decide(self, limit: float | None) -> bool:
        # The lambda found is that of the finite ones, 0 if they tie.
        return limit != 0

    def lmbda(self, situation: Situation) -> Tensor:
        if situation.progress >= 1.0 and situation.limit is not None:
            return situation.everywhere(situation.limit)
        statistic, lowest = situation.statistic, situation.lowest
        counts = situation.alive & statistic.isfinite()
        best = torch.where(counts, statistic, -torch.inf).amax(1)
        worst = torch.where(counts, statistic, torch.inf).amin(1)
        second = torch.where(counts & (statistic < best[:, None]), statistic, -torch.inf).amax(1)

        def parted(gap: Tensor) -> Tensor:
            # 50 nats between two rewards leave the lower one no weight.
            lmbda = torch.where(gap > 0, lowest + 50.0 / gap, lowest)
            return lmbda if situation.limit is None else lmbda.clamp(max=situation.limit)

        # The best and the worst parted is nearly always more than enough, but not where several are close to the best.
        near, far = parted(best - worst), parted(best - second)
        found = self.solve(situation.log_weights_at, lowest.minimum(near), near)
        further = (found == near) & (near < far)
        if not further.any():
            return found
        return torch.where(further, self.solve(situation.log_weights_at, near, far, rounds=100), found)

    def solve(
        self, log_weights_at: Callable[[Tensor], Tensor], lowest: Tensor, highest: Tensor, rounds: int = 50
    ) -> Tensor:
        """Lambda (P,) in [lowest, highest].

        Args:
            log_weights_at: lambda (P,) -> log-weights (P, K) under that lambda.
            lowest: (P,) returned where even that is too much.
            highest: (P,) returned where even that leaves the effective sample size above the target.
            rounds: of bisection.
        """

        def keeps_target(lmbda: Tensor) -> Tensor:
            lw = log_weights_at(lmbda)
            return effective_sample_size(lw) >= 1 + self.ess * ((lw > -torch.inf).sum(1).double() - 1)

        low, high = lowest.clone(), highest.clone()
        reached_highest = keeps_target(highest)
        for _ in range(rounds):
            middle = (low + high) / 2
            keeps = keeps_target(middle)
            low, high = torch.where(keeps, middle, low), torch.where(keeps, high, middle)
        return torch.where(reached_highest, highest, low)


TEMPERINGS: dict[str, type[Tempering]] = {kind.name: kind for kind in (Constant, Rising, Geometric, TargetESS)}

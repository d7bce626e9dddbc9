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
from .weights import effective_sample_size, normalize


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
        """The lambda (P,) at an event."""

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
    """The full lambda at every event: the published setting."""

    name: ClassVar[str] = "constant"

    def scale(self, progress: float) -> float:
        return 1.0


@dataclass(frozen=True)
class Rising(Scaled):
    """A lambda that rises along the loop: lambda_t = lambda * end * progress^power.

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
    """Geometric growth of lambda: lambda_t = lambda * min((1 + gamma)^(100 progress) - 1, 1).

    The schedule of DAS (arXiv 2501.05803, gamma 0.008 at 100 steps), written in progress so that it does not depend on
    the number of steps.
    """

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
    that have any weight: solved for in each population.

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
            lmbda = torch.where(gap > 0, lowest + (50.0 / gap).clamp(max=_LARGEST), lowest)
            return lmbda if situation.limit is None else lmbda.clamp(max=situation.limit)

        # The best and the worst parted is nearly always more than enough, but not where several are close to the best.
        near, far = parted(best - worst), parted(best - second)
        found = self.solve(situation.log_weights_at, lowest.minimum(near), near)
        further = (found == near) & (near < far)
        if not further.any():
            return found
        return torch.where(further, self.solve(situation.log_weights_at, near, torch.where(further, far, near)), found)

    def solve(self, log_weights_at: Callable[[Tensor], Tensor], lowest: Tensor, highest: Tensor) -> Tensor:
        """Lambda (P,) in [lowest, highest] at which the effective sample size is the target.

        Bisection until one of its midpoints keeps the target, so that of several solutions it is the one that bisection
        finds; then Newton's method with the second derivative, within the bracket. About eight looks at the weights,
        however many populations there are, for an answer that is exact to rounding.

        Args:
            log_weights_at: lambda (P,) -> log-weights (P, K) under that lambda, continuous. The fewest looks are needed
                where they are linear in lambda, as those of all potentials are.
            lowest: (P,) returned where even that is too much.
            highest: (P,) returned where even that leaves the effective sample size above the target.
        """
        ends = log_weights_at(highest)
        target = 1 + self.ess * ((ends > -torch.inf).sum(1).double() - 1)
        enough = effective_sample_size(ends) >= target
        answer = torch.where(enough, highest, lowest)
        done = enough | (highest <= lowest)
        low, high, lw = lowest, highest, ends

        # Whether `low` keeps the target, or nothing does.
        known = done
        for count in range(2 * _HALVINGS):
            if known.all():
                break
            at = torch.where(known, low, lowest if count == _HALVINGS else low + (high - low) / 2)
            lw = log_weights_at(at)
            keeps = ~known & (effective_sample_size(lw) >= target)
            low = torch.where(keeps, at, low)
            if count == _HALVINGS:
                # Too much already, unless the effective sample size rises from here.
                _, step = _excess_and_step(lw, _slope(ends - lw, highest - lowest), target)
                done = done | ~(known | keeps | (step > 0))
                known = known | done
            else:
                high = torch.where(known | keeps, high, at)
            known = known | keeps
        done = done | ~known
        if done.all():
            return answer

        at, before = low, highest
        for count in range(1, _ROUNDS):
            excess, step = _excess_and_step(lw, _slope(lw - ends, at - before), target)
            exact = excess.abs() <= _EXACT
            if count > 1:
                low, high = torch.where(excess >= 0, at, low), torch.where(excess >= 0, high, at)
            there = torch.where(exact, at, at + step)
            # The first slope is one over half of the bracket or more.
            close = (step.abs() <= _CLOSE * at) & (count > 1)
            found = ~done & (exact | close | (high - low <= _EXACT * high))
            answer = torch.where(found, there.maximum(low).minimum(high), answer)
            done = done | found
            if done.all():
                break
            # Every fourth step halves the bracket, whatever the function is like.
            inside = (there > low) & (there < high) if count % 4 else torch.zeros_like(done)
            before, at, ends = at, torch.where(done, at, torch.where(inside, there, low + (high - low) / 2)), lw
            lw = log_weights_at(at)
        return torch.where(done, answer, low)


def _slope(rise: Tensor, run: Tensor) -> Tensor:
    """(P, K) by how much log-weights grow with lambda; 0 where they are infinite."""
    return torch.nan_to_num(rise / run[:, None], 0.0, 0.0, 0.0)


def _excess_and_step(lw: Tensor, slope: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The logarithm (P,) of the effective sample size over its target, and the step (P,) from the lambda at hand to
    where it would be 0 if it went on as the parabola that it is like here.

    With log-weights (P, K) that grow by `slope` s, and E of the weights W and of those in proportion to W^2,

        d log ESS = 2 (E_W[s] - E_W2[s]),    d^2 log ESS = 2 Var_W[s] - 4 Var_W2[s].
    """
    W = normalize(lw)
    squares = W.square()
    ess = 1.0 / squares.sum(1, keepdim=True)
    excess = (ess.squeeze(1) / target).log()
    both = torch.stack([W, squares * ess], 1)
    means = (both * slope[:, None]).sum(2, keepdim=True)
    variances = (both * (slope[:, None] - means).square()).sum(2)
    first = 2 * (means[:, 0, 0] - means[:, 1, 0])
    second = 2 * variances[:, 0] - 4 * variances[:, 1]
    root = (first.square() - 2 * second * excess).clamp(min=0).sqrt()
    # The one of two solutions where the excess falls, without cancellation.
    return excess, torch.where(first > 0, -(first + root) / second, 2 * excess / (root - first))


_LARGEST = 1e300
"""Lambda that may be added to and multiplied with."""

_HALVINGS = 6
"""Bisections until the least lambda is tried itself."""

_CLOSE = 1e-9
"""Relative size of a step after which the error, which is of a higher order, is below rounding."""

_EXACT = 4e-16
"""Relative differences that rounding makes."""

_ROUNDS = 200
"""More than halving every fourth time takes."""


TEMPERINGS: dict[str, type[Tempering]] = {kind.name: kind for kind in (Constant, Rising, Geometric, TargetESS)}

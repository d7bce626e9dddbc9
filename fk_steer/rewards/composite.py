"""Rewards made of rewards, any of any."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..smc import brief, integer, real, scalar, standardize
from .base import Reward, RewardFunction
from .functions import as_reward


Z_LMBDA = 2.0
"""A lambda that suits standardised scores, whose spread is one."""


class Composite(Reward):
    """A reward that is computed from those of its parts; subclasses define `of_parts`.

    A part whose z-scores steering would weigh, a `Cascade`, enters with them.

    Args:
        parts: rewards or functions.

    Attributes:
        parts: the rewards.
    """

    def __init__(self, parts: Sequence[RewardFunction]) -> None:
        rewards = [as_reward(part) for part in parts]
        self.parts = tuple(Standardized(reward) if reward.standardize else reward for reward in rewards)
        self.relative = any(part.relative for part in self.parts)
        self._in_force: dict[tuple[Reward, ...], Composite] = {}

    def of_parts(self, rewards: Sequence[Tensor]) -> Tensor:
        """The rewards (P, K), or (K,), from those of each part."""
        raise NotImplementedError

    @property
    def leaves(self) -> tuple[Reward, ...]:
        return tuple(dict.fromkeys(leaf for part in self.parts for leaf in part.leaves))

    def combine(self, scores: Mapping[Reward, Tensor]) -> Tensor:
        return self.of_parts([part.combine(scores) for part in self.parts])

    def missing(self, scores: Mapping[Reward, Tensor], among: Tensor) -> dict[Reward, Tensor]:
        found: dict[Reward, Tensor] = {}
        for part in self.parts:
            for leaf, mask in part.missing(scores, among).items():
                found[leaf] = found[leaf] | mask if leaf in found else mask
        return found

    def at(self, progress: float) -> Reward:
        """The same made of the parts in force at a progress of the loop."""
        parts = tuple(part.at(progress) for part in self.parts)
        if all(one is other for one, other in zip(parts, self.parts)):
            return self
        if parts not in self._in_force:
            other = copy.copy(self)
            other.parts, other._in_force = parts, {}
            self._in_force[parts] = other
        return self._in_force[parts]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name})"


class Standardized(Composite):
    """The z-scores of a reward over the particles of a prompt: mean 0 and standard deviation 1, all 0 where they tie.

    The value of an image depends on the other particles, so this is for steering, not for scoring single images.

    Args:
        reward: what is standardised.
        default_lmbda: None for 2, which suits z-scores, or that of a `Cascade`.
    """

    def __init__(self, reward: RewardFunction, default_lmbda: float | None = None) -> None:
        part = as_reward(reward)
        self.parts: tuple[Reward, ...] = (part,)
        self.relative = True
        self.name = f"z({part.name})"
        self.default_lmbda = default_lmbda or (part.default_lmbda if part.standardize else Z_LMBDA)
        self._in_force = {}

    def of_parts(self, rewards: Sequence[Tensor]) -> Tensor:
        return standardize(rewards[0])


class WeightedSum(Composite):
    """The weighted sum of rewards, sum_i weight_i * reward_i.

    ```py
    WeightedSum({clip: 1.0, aesthetic: 0.05})
    ```

    Args:
        weights: reward or function -> weight, finite. A `Cascade` enters with its z-scores.
        default_lmbda: None derives one from those of the parts: a lambda is about one over a reward's spread, and
            spreads add in squares. If a part has none, neither has the sum.

    Attributes:
        weights: of the parts, in their order.

    Raises:
        ValueError: for no rewards, or a weight that is not finite.
        TypeError: for a key that is no reward.
    """

    def __init__(self, weights: Mapping[RewardFunction, float], default_lmbda: float | None = None) -> None:
        self.weights = _finite(weights)
        super().__init__(list(weights))
        self.name = _sum_of(self.weights, self.parts)
        lmbdas = [part.default_lmbda for part in self.parts]
        if default_lmbda is None and None not in lmbdas and any(self.weights):
            spreads = [weight / lmbda for weight, lmbda in zip(self.weights, lmbdas) if lmbda]
            default_lmbda = 1.0 / math.hypot(*spreads)
        self.default_lmbda = default_lmbda

    def of_parts(self, rewards: Sequence[Tensor]) -> Tensor:
        total = torch.zeros_like(rewards[0])
        for weight, values in zip(self.weights, rewards):
            total = total + weight * values
        return total


class ZScoreSum(Composite):
    """The weighted sum of z-scores, sum_i weight_i * z_i, where z_i is the score of reward i standardised over the
    particles of a prompt.

    For rewards of unlike scales, none of which is to rule because its numbers are large. The value of an image depends
    on the other particles, so this is for steering, not for scoring single images.

    ```py
    ZScoreSum({clip: 1.0, aesthetic: 0.5})
    ```

    Args:
        weights: reward or function -> weight, finite.
        default_lmbda: None for 2 over the root of the summed squares of the weights; there is none if all are 0.

    Attributes:
        weights: of the parts, in their order.

    Raises:
        ValueError: for no rewards, or a weight that is not finite.
        TypeError: for a key that is no reward.
    """

    def __init__(self, weights: Mapping[RewardFunction, float], default_lmbda: float | None = None) -> None:
        self.weights = _finite(weights)
        super().__init__([Standardized(reward) for reward in weights])
        self.name = _sum_of(self.weights, self.parts)
        if default_lmbda is None and any(self.weights):
            default_lmbda = Z_LMBDA / math.hypot(*self.weights)
        self.default_lmbda = default_lmbda

    def of_parts(self, rewards: Sequence[Tensor]) -> Tensor:
        return torch.stack([weight * values for weight, values in zip(self.weights, rewards)]).sum(0)


class Ensemble(Composite):
    """The mean of the z-scores of several rewards, less kappa times their standard deviation across the rewards.

    For choosing by rewards none of which is to be trusted alone: with kappa above 0 an image that one of them likes and
    another does not gets less than one that all of them find fairly good. The value of an image depends on the other
    particles, so this is for steering, not for scoring single images.

    ```py
    Ensemble([clip, image_reward, llava_reward], kappa=0.5)
    ```

    Args:
        parts: rewards or functions, at least one.
        kappa: finite and at least 0; 0 is the mean.
        default_lmbda: None for 2 times the root of the number of parts, which suits the mean of as many unrelated
            z-scores.

    Raises:
        ValueError: for no rewards, or a kappa out of range.
        TypeError: for what is no reward, or no list of rewards.
    """

    def __init__(self, parts: Sequence[RewardFunction], kappa: float = 0.0, default_lmbda: float | None = None) -> None:
        if isinstance(parts, (str, Mapping)) or not isinstance(parts, Sequence):
            raise TypeError(f"Expected a list of rewards, but got {brief(parts)}. `ZScoreSum` takes weights.")
        if not parts:
            raise ValueError("Expected at least one reward, but got none.")
        self.kappa = real("kappa", kappa, 0.0)
        super().__init__([Standardized(part) for part in parts])
        mean = f"mean({', '.join(part.name for part in self.parts)})"
        self.name = f"{mean} - {self.kappa:g} * sd" if self.kappa else mean
        self.default_lmbda = Z_LMBDA * math.sqrt(len(parts)) if default_lmbda is None else default_lmbda

    def of_parts(self, rewards: Sequence[Tensor]) -> Tensor:
        scores = torch.stack(list(rewards))
        mean = scores.mean(0)
        if not self.kappa:
            return mean
        # Infinite rewards decide by themselves.
        spread = torch.where(mean.isinf(), 0.0, (scores - mean).square().mean(0).sqrt())
        return mean - self.kappa * spread


class Clipped(Composite):
    """A reward held within bounds, so that particles gain nothing from pushing a flawed scorer beyond the scores that
    good images get.

    ```py
    Clipped(clip, high=0.33)
    ```

    Args:
        reward: what is clipped; of a `Cascade` its z-scores are.
        low: the lower bound.
        high: the upper bound, above `low`.

    Raises:
        ValueError: unless low < high.
        TypeError: for what is no reward.
    """

    def __init__(self, reward: RewardFunction, low: float = -math.inf, high: float = math.inf) -> None:
        if not low < high:
            raise ValueError(f"Expected `low` below `high`, but got {low} and {high}.")
        super().__init__([reward])
        (part,) = self.parts
        self.low, self.high = low, high
        self.name = f"clip({part.name}, {low:g}, {high:g})"
        self.default_lmbda = part.default_lmbda

    def of_parts(self, rewards: Sequence[Tensor]) -> Tensor:
        return rewards[0].clamp(self.low, self.high)


class Cascade(Reward):
    """A cheap reward for early events and an expensive one for late events and the final images.

    Both are on record in the trace. Their scores are standardised within each prompt before they are weighed, so that
    it does not matter that they have different scales.

    ```py
    Cascade(clip, llava_reward, switch=0.5)
    ```

    Args:
        cheap: the reward of early events.
        expensive: the reward of late events and the final images.
        switch: progress in [0, 1] of the loop from which the expensive one is used.
        default_lmbda: for standardised scores.

    Raises:
        ValueError: for a switch outside [0, 1].
        TypeError: for what is no reward.
    """

    standardize = True

    def __init__(
        self, cheap: RewardFunction, expensive: RewardFunction, switch: float = 0.5, default_lmbda: float = Z_LMBDA
    ) -> None:
        self.switch = real("switch", switch, 0.0, 1.0)
        self.cheap, self.expensive = as_reward(cheap), as_reward(expensive)
        self.name = f"{self.cheap.name} -> {self.expensive.name}"
        self.default_lmbda = default_lmbda
        self.relative = self.expensive.relative

    @property
    def leaves(self) -> tuple[Reward, ...]:
        """The leaves of both rewards."""
        return tuple(dict.fromkeys((*self.cheap.leaves, *self.expensive.leaves)))

    def combine(self, scores: Mapping[Reward, Tensor]) -> Tensor:
        """The reward of the final images."""
        return self.at(1.0).combine(scores)

    def at(self, progress: float) -> Reward:
        """The reward in force at a progress in [0, 1]; 1 is the final images."""
        late = progress >= self.switch or progress >= 1.0
        return (self.expensive if late else self.cheap).at(progress)

    def __repr__(self) -> str:
        return f"Cascade({self.name})"


class Finalists(Composite):
    """A cheap reward for all particles and an expensive one that only sees the final images that the cheap one likes
    best.

    Along the loop the cheap one counts. Of the final images each prompt's best `keep` by it are scored by the expensive
    one, which decides among them; the others rank behind them, by the cheap one. A reward that compares the particles
    of a prompt compares the finalists.

    The values of the final images are z-scores of the expensive reward over the finalists of a prompt, and for the
    others 1, 2, ... below the lowest of these; images that the cheap one gives -inf keep that. Steering weighs
    z-scores of either.

    ```py
    Finalists(clip, llava_reward, keep=3)
    ```

    Args:
        cheap: the reward or function that chooses the finalists.
        expensive: the reward or function that decides among them.
        keep: finalists of each prompt, at least 1.
        default_lmbda: for standardised scores.

    Raises:
        ValueError: for a `keep` below 1.
        TypeError: for what is no reward.
    """

    standardize = True

    def __init__(
        self,
        cheap: RewardFunction,
        expensive: RewardFunction,
        keep: int,
        default_lmbda: float = Z_LMBDA,
    ) -> None:
        self.keep = integer("keep", keep, 1)
        super().__init__([cheap, expensive])
        self.relative = True
        self.name = f"{self.parts[0].name} -> best {self.keep} by {self.parts[1].name}"
        self.default_lmbda = default_lmbda

    def missing(self, scores: Mapping[Reward, Tensor], among: Tensor) -> dict[Reward, Tensor]:
        cheap, expensive = self.parts
        if found := cheap.missing(scores, among):
            return found
        places = _places(cheap.combine(scores).masked_fill(~among, torch.nan))
        return expensive.missing(scores, among & (places < self.keep))

    def of_parts(self, rewards: Sequence[Tensor]) -> Tensor:
        cheap, expensive = rewards
        places = _places(cheap)
        chosen = (places < self.keep) & ~cheap.isnan()
        scores = standardize(torch.where(chosen, expensive, torch.nan))
        low = torch.where(scores.isfinite(), scores, torch.inf).amin(-1, keepdim=True)
        behind = torch.where(low.isfinite(), low, 0.0) - (places - self.keep + 1)
        values = torch.where(chosen, scores, torch.where(cheap.isnan(), torch.nan, behind))
        return torch.where(cheap == -torch.inf, -torch.inf, values)

    def at(self, progress: float) -> Reward:
        """The cheap one before the end, then both, each as it is in force."""
        return super().at(1.0) if progress >= 1.0 else self.parts[0].at(progress)


def _places(rewards: Tensor) -> Tensor:
    """(..., K) the place of each particle, 0 for the best; ties go to the lower index, NaN comes last."""
    values = torch.where(rewards.isnan(), -torch.inf, rewards)
    # Of those that are -inf, the ones that are there come first.
    order = rewards.isnan().long().argsort(dim=-1, stable=True)
    order = order.gather(-1, values.gather(-1, order).argsort(dim=-1, descending=True, stable=True))
    return order.argsort(dim=-1)


def _finite(weights: Mapping[RewardFunction, float]) -> tuple[float, ...]:
    if not isinstance(weights, Mapping):
        raise TypeError(f"Expected rewards with their weights, {{reward: weight, ...}}, but got {brief(weights)}.")
    found = tuple(scalar(weight) for weight in weights.values())
    numbers = all(isinstance(weight, (int, float)) and not isinstance(weight, bool) for weight in found)
    if not found or not numbers or not all(map(math.isfinite, found)):
        raise ValueError(f"Expected rewards with finite weights, but got {brief(list(weights.values()))}.")
    return found


def _sum_of(weights: Sequence[float], parts: Sequence[Reward]) -> str:
    return " + ".join(f"{weight:g} * {part.name}" for weight, part in zip(weights, parts))

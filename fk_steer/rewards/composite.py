"""Rewards made of rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .base import CompositeReward, GroupReward, Images, RewardFunction, device_of, evaluate, name_of, standardize


Z_LMBDA = 2.0
"""A lambda that suits standardised scores, whose spread is one."""


class WeightedSum:
    """sum_i weight_i * reward_i.

    ```py
    WeightedSum({clip: 1.0, aesthetic: 0.05})
    ```

    The rewards may be group rewards: steering then shows them all particles of a prompt.

    Args:
        weights: reward -> weight, finite.
        default_lmbda: None derives one from those of the parts: a lambda is about one over a reward's spread, and
            spreads add in squares. If a part has none, neither has the sum.

    Raises:
        ValueError: for no rewards, a weight that is not finite, or a `ZScoreSum` or `Cascade` among the rewards.
    """

    def __init__(self, weights: Mapping[RewardFunction, float], default_lmbda: float | None = None) -> None:
        _check_weights(weights)
        self.weights = dict(weights)
        self.name = " + ".join(f"{weight:g} * {name_of(reward)}" for reward, weight in self.weights.items())
        lmbdas = [getattr(reward, "default_lmbda", None) for reward in self.weights]
        if default_lmbda is None and None not in lmbdas and any(self.weights.values()):
            spreads = [weight / lmbda for weight, lmbda in zip(self.weights.values(), lmbdas) if lmbda]
            default_lmbda = 1.0 / math.hypot(*spreads)
        self.default_lmbda = default_lmbda

    def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor:
        """See `Reward`."""
        device = device_of(images, torch.device("cpu"))
        total = torch.zeros(len(prompts), device=device)
        for reward, weight in self.weights.items():
            total = total + weight * torch.as_tensor(reward(images, prompts)).to(device, torch.float32)
        return total

    @property
    def relative(self) -> bool:
        """See `GroupReward`."""
        return any(getattr(reward, "relative", False) for reward in self.weights)

    def encode(self, images: Images, prompts: Sequence[str]) -> Sequence[Any]:
        """For each image what its parts need: rewards, or encodings of group rewards."""
        parts = [_encode(reward, images, prompts, self.name) for reward in self.weights]
        return list(zip(*parts, strict=True))

    def reward_groups(
        self, encodings: Sequence[Any], members: Sequence[Tensor], prompts: Sequence[str]
    ) -> Sequence[Tensor]:
        """See `GroupReward`."""
        totals = [torch.zeros(len(group), dtype=torch.float64) for group in members]
        for (reward, weight), part in zip(self.weights.items(), zip(*encodings)):
            groups = _reward_groups(reward, part, members, prompts)
            totals = [total + weight * values for total, values in zip(totals, groups)]
        return totals


class ZScoreSum:
    """sum_i weight_i * z_i, where z_i is the score of reward i standardised over the particles of a prompt.

    For rewards of unlike scales, none of which is to rule because its numbers are large. The value of an image depends
    on the other particles, so this is for steering, not for scoring single images.

    ```py
    ZScoreSum({clip: 1.0, aesthetic: 0.5})
    ```

    Args:
        weights: reward -> weight, finite.
        default_lmbda: None for 2 over the root of the summed squares of the weights; there is none if all are 0.

    Raises:
        ValueError: for no rewards, a weight that is not finite, a `ZScoreSum` or `Cascade` among the rewards, or two
            of one name.
    """

    relative = True

    def __init__(self, weights: Mapping[RewardFunction, float], default_lmbda: float | None = None) -> None:
        _check_weights(weights)
        self.parts = {name_of(reward): reward for reward in weights}
        self._weights = {name_of(reward): weight for reward, weight in weights.items()}
        if len(self.parts) < len(weights):
            raise ValueError(f"Expected rewards of different names, but got {[name_of(reward) for reward in weights]}.")
        self.name = " + ".join(f"{weight:g} * z({name})" for name, weight in self._weights.items())
        if default_lmbda is None and any(self._weights.values()):
            default_lmbda = Z_LMBDA / math.hypot(*self._weights.values())
        self.default_lmbda = default_lmbda

    def combine(self, scores: Mapping[str, Tensor]) -> Tensor:
        """See `CompositeReward`."""
        return torch.stack([weight * standardize(scores[name]) for name, weight in self._weights.items()]).sum(0)


class Cascade:
    """A cheap reward for early events and an expensive one for late events and the final images.

    Both are on record in the trace. Their scores are standardised within each prompt before they are weighed, so that
    it does not matter that they have different scales.

    ```py
    Cascade(clip, llava_reward, switch=0.5)
    ```

    Args:
        cheap, expensive: the rewards.
        switch: progress in [0, 1] of the loop from which the expensive one is used.
        default_lmbda: for standardised scores.

    Raises:
        ValueError: for a switch outside [0, 1].
    """

    standardize = True

    def __init__(
        self, cheap: RewardFunction, expensive: RewardFunction, switch: float = 0.5, default_lmbda: float = Z_LMBDA
    ) -> None:
        if not 0.0 <= switch <= 1.0:
            raise ValueError(f"Expected `switch` to be between 0.0 and 1.0, but got {switch}.")
        self.cheap, self.expensive, self.switch = cheap, expensive, switch
        self.name = f"{name_of(cheap)} -> {name_of(expensive)}"
        self.default_lmbda = default_lmbda

    def at(self, progress: float) -> RewardFunction:
        """The reward in use at a progress in [0, 1]; 1 is the final images."""
        return self.expensive if progress >= self.switch or progress >= 1.0 else self.cheap

    def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor:
        """The expensive reward."""
        return self.expensive(images, prompts)


class Clipped:
    """A reward held within bounds, so that particles gain nothing from pushing a flawed scorer beyond the scores that
    good images get.

    ```py
    Clipped(clip, high=0.33)
    ```

    Args:
        reward: what is clipped; scored image by image, so not a `ZScoreSum`, a `Cascade` or one that compares.
        low, high: bounds, low < high.

    Raises:
        ValueError: unless low < high, or for a reward that is not scored image by image.
    """

    relative = False

    def __init__(self, reward: RewardFunction, low: float = -math.inf, high: float = math.inf) -> None:
        if not low < high:
            raise ValueError(f"Expected `low` below `high`, but got {low} and {high}.")
        _check_part(reward, may_compare=False)
        self.reward, self.low, self.high = reward, low, high
        self.name = f"clip({name_of(reward)}, {low:g}, {high:g})"
        self.default_lmbda = getattr(reward, "default_lmbda", None)

    def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor:
        """See `Reward`."""
        return torch.as_tensor(self.reward(images, prompts)).clamp(self.low, self.high)

    def encode(self, images: Images, prompts: Sequence[str]) -> Sequence[Any]:
        """For each image its reward, or the encoding of a group reward."""
        return _encode(self.reward, images, prompts, self.name)

    def reward_groups(
        self, encodings: Sequence[Any], members: Sequence[Tensor], prompts: Sequence[str]
    ) -> Sequence[Tensor]:
        """See `GroupReward`."""
        groups = _reward_groups(self.reward, encodings, members, prompts)
        return [values.clamp(self.low, self.high) for values in groups]


def _check_weights(weights: Mapping[RewardFunction, float]) -> None:
    if not weights or not all(math.isfinite(weight) for weight in weights.values()):
        raise ValueError(f"Expected rewards with finite weights, but got {list(weights.values())}.")
    for reward in weights:
        _check_part(reward)


def _check_part(reward: RewardFunction, may_compare: bool = True) -> None:
    compares = not may_compare and getattr(reward, "relative", False)
    if compares or isinstance(reward, CompositeReward) or hasattr(reward, "at"):
        raise ValueError(f"Expected a reward that scores image by image, but got {name_of(reward)!r}.")


def _encode(reward: RewardFunction, images: Images, prompts: Sequence[str], name: str) -> Sequence[Any]:
    if isinstance(reward, GroupReward):
        return reward.encode(images, prompts)
    return evaluate(reward, images, prompts, f"in '{name}'").unbind()


def _reward_groups(
    reward: RewardFunction, encodings: Sequence[Any], members: Sequence[Tensor], prompts: Sequence[str]
) -> Sequence[Tensor]:
    if isinstance(reward, GroupReward):
        return reward.reward_groups(encodings, members, prompts)
    return [torch.stack(list(encodings))[group] for group in members]

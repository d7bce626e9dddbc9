"""Rewards made of rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .base import Images, RewardFunction, device_of, name_of


class WeightedSum:
    """sum_i weight_i * reward_i.

    ```py
    WeightedSum({clip: 1.0, aesthetic: 0.05})
    ```

    Args:
        weights: reward -> weight, finite.
        default_lmbda: None derives one from those of the parts: a lambda is about one over a reward's spread, and
            spreads add in squares. If a part has none, neither has the sum.

    Raises:
        ValueError: for no rewards or a weight that is not finite.
    """

    def __init__(self, weights: Mapping[RewardFunction, float], default_lmbda: float | None = None) -> None:
        if not weights or not all(math.isfinite(weight) for weight in weights.values()):
            raise ValueError(f"Expected rewards with finite weights, but got {list(weights.values())}.")
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

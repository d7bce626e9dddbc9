"""Several rewards that vote on every pair of particles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..smc import brief
from .base import RewardFunction
from .composite import Composite


class Majority(Composite):
    """The share of a prompt's other particles that most of several rewards like less, Copeland's score.

    For every pair of particles each reward has one vote, by its sign alone; a pair with as many votes either way is a
    half for both. Neither the scales of the rewards nor how far one of them runs off matter. The value of an image
    depends on the other particles, so this is for steering, not for scoring single images; alone it has 0.5.

    ```py
    Majority([clip, image_reward, llava_reward])
    ```

    Args:
        parts: rewards or functions, at least one; an odd number leaves no pair undecided.
        default_lmbda: for values in [0, 1].

    Raises:
        ValueError: for no rewards.
        TypeError: for what is no reward, or no list of rewards.
    """

    def __init__(self, parts: Sequence[RewardFunction], default_lmbda: float = 2 * math.sqrt(12.0)) -> None:
        if isinstance(parts, (str, Mapping)) or not isinstance(parts, Sequence):
            raise TypeError(f"Expected a list of rewards, but got {brief(parts)}.")
        if not parts:
            raise ValueError("Expected at least one reward, but got none.")
        super().__init__(parts)
        self.name = f"majority({', '.join(part.name for part in self.parts)})"
        self.default_lmbda = default_lmbda
        self.relative = True

    def of_parts(self, rewards: Sequence[Tensor]) -> Tensor:
        votes = sum(((one[..., :, None] > one[..., None, :]).double() for one in rewards), torch.zeros(()))
        wins = 0.5 + 0.5 * (votes - votes.mT).sign()
        number = wins.shape[-1]
        # Against itself every particle has a half.
        return (wins.sum(-1) - 0.5) / (number - 1) if number > 1 else wins[..., 0]

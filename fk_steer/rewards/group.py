"""What rewards that look at all particles of a prompt together have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Images, check_one_prompt_per_image, device_of


class GroupedReward:
    """A `GroupReward` that can be called like any reward: images with the same prompt form a group.

    Subclasses define `encode` and `reward_groups`.
    """

    name: str
    default_lmbda: float | None
    relative = False

    def encode(self, images: Images, prompts: Sequence[str]) -> Sequence[Any]:
        """See `GroupReward`."""
        raise NotImplementedError

    def reward_groups(
        self, encodings: Sequence[Any], members: Sequence[Tensor], prompts: Sequence[str]
    ) -> Sequence[Tensor]:
        """See `GroupReward`."""
        raise NotImplementedError

    @torch.no_grad()
    def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor:
        """See `Reward`.

        Raises:
            ValueError: unless there is one prompt per image.
        """
        check_one_prompt_per_image(images, prompts)
        of_prompt: dict[str, list[int]] = {}
        for index, prompt in enumerate(prompts):
            of_prompt.setdefault(prompt, []).append(index)
        members = [torch.tensor(indices) for indices in of_prompt.values()]
        groups = self.reward_groups(self.encode(images, prompts), members, list(of_prompt))
        rewards = torch.empty(len(prompts), dtype=torch.float32, device=device_of(images, torch.device("cpu")))
        for indices, values in zip(members, groups, strict=True):
            rewards[indices.to(rewards.device)] = values.to(rewards)
        return rewards

"""z-scores of rewards within a prompt."""

from __future__ import annotations

import torch
from torch import Tensor


def standardize(rewards: Tensor) -> Tensor:
    """Make z-scores (..., K) within each prompt: mean 0 and standard deviation 1 over its particles, all 0 where they
    tie.

    Infinite rewards stay as they are and do not enter the mean.
    """
    finite = rewards.isfinite()
    count = finite.sum(-1, keepdim=True).clamp(min=1)
    values = torch.where(finite, rewards, 0.0)
    centred = torch.where(finite, rewards - values.sum(-1, keepdim=True) / count, 0.0)
    spread = (centred.square().sum(-1, keepdim=True) / count).sqrt()
    scores = torch.where(spread > 1e-12 * values.abs().amax(-1, keepdim=True), centred / spread, 0.0)
    return torch.where(finite, scores, rewards)

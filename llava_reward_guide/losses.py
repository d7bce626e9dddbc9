"""Losses of LLaVA-Reward (arXiv 2507.21391): Bradley-Terry (eq. 1), general preference (eq. 2), cross entropy."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .config import RewardConfig
from .preference import preference_score


def preference_loss(chosen: Tensor, rejected: Tensor, tau: float, margin: Tensor | float = 0.0) -> Tensor:
    """-log sigmoid((s - margin) / tau) of each pair, s being `preference_score`: r_c - r_r for one number
    (Bradley-Terry), the skew-symmetric form for embeddings (general preference).

    Args:
        chosen, rejected: (B, dim), dim 1 or even.
        tau: temperature.
        margin: (B,), what a preference has to exceed.

    Returns:
        (B,) float32.
    """
    return -F.logsigmoid((preference_score(chosen.float(), rejected.float()) - margin) / tau)


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropy of logits (B,) for labels (B,) in {0, 1}, 1 being good or safe; (B,) float32."""
    return F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")


def reward_loss(config: RewardConfig, rewards: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Loss and correctness of each item of a batch, for the objective of the reward.

    Args:
        rewards: (2 B, dim), the chosen first and then the rejected; (B, 1) with labels.
        labels: (B,) for classification; None for pairs.

    Returns:
        (B,) float32 loss; (B,) float32, 1 for an item that is told right, a half for a tie.
    """
    if labels is not None:
        logits = rewards[:, 0]
        return classification_loss(logits, labels), ((logits >= 0) == (labels == 1)).float()
    chosen, rejected = rewards.float().chunk(2)
    sign = preference_score(chosen, rejected).detach().sign()
    return preference_loss(chosen, rejected, config.tau), 0.5 + 0.5 * sign

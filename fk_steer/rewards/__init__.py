"""Rewards: how good an image is for a prompt."""

from .base import Reward, RewardError
from .card import RewardCard
from .composite import Cascade, Clipped, WeightedSum, ZScoreSum
from .loading import RewardLoadError
from .registry import available_rewards, load_reward


__all__ = [
    "Cascade",
    "Clipped",
    "Reward",
    "RewardCard",
    "RewardError",
    "RewardLoadError",
    "WeightedSum",
    "ZScoreSum",
    "available_rewards",
    "load_reward",
]

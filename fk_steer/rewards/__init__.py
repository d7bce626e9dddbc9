"""Rewards: how good an image is for a prompt."""

from .base import Reward, RewardError
from .composite import Cascade, WeightedSum, ZScoreSum
from .loading import RewardLoadError
from .registry import available_rewards, load_reward


__all__ = [
    "Cascade",
    "Reward",
    "RewardError",
    "RewardLoadError",
    "WeightedSum",
    "ZScoreSum",
    "available_rewards",
    "load_reward",
]

"""Rewards: how good an image is for a prompt."""

from .base import Reward, RewardError
from .composite import WeightedSum
from .loading import RewardLoadError
from .registry import available_rewards, load_reward


__all__ = ["Reward", "RewardError", "RewardLoadError", "WeightedSum", "available_rewards", "load_reward"]

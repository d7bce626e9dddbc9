"""Rewards: how good an image is for a prompt."""

from .base import GroupReward, Reward, RewardError
from .card import RewardCard
from .composite import Cascade, Clipped, WeightedSum, ZScoreSum
from .general_preference import GeneralPreferenceReward
from .group import GroupedReward
from .loading import RewardLoadError
from .pairwise import PairwiseReward
from .registry import available_rewards, load_reward


__all__ = [
    "Cascade",
    "Clipped",
    "GeneralPreferenceReward",
    "GroupReward",
    "GroupedReward",
    "PairwiseReward",
    "Reward",
    "RewardCard",
    "RewardError",
    "RewardLoadError",
    "WeightedSum",
    "ZScoreSum",
    "available_rewards",
    "load_reward",
]

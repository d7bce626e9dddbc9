"""Rewards: how good an image is for a prompt."""

from .base import MissingScoreError, Reward, RewardError
from .card import RewardCard
from .composite import Cascade, Clipped, Composite, Ensemble, Finalists, Standardized, WeightedSum, ZScoreSum
from .frames import FrameReward
from .functions import as_pil, as_reward
from .general_preference import GeneralPreferenceReward
from .latent import LatentReward, Latents
from .loading import RewardLoadError
from .majority import Majority
from .pairwise import PairwiseReward
from .registry import available_rewards, load_reward, markdown_table


__all__ = [
    "FrameReward",
    "Cascade",
    "Clipped",
    "Composite",
    "Ensemble",
    "Finalists",
    "GeneralPreferenceReward",
    "LatentReward",
    "Latents",
    "Majority",
    "MissingScoreError",
    "PairwiseReward",
    "Reward",
    "RewardCard",
    "RewardError",
    "RewardLoadError",
    "Standardized",
    "WeightedSum",
    "ZScoreSum",
    "as_pil",
    "as_reward",
    "available_rewards",
    "load_reward",
    "markdown_table",
]

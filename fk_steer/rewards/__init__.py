"""Rewards: how good an image is for a prompt."""

from .base import Reward, RewardError


__all__ = ["Reward", "RewardError"]

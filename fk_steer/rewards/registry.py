"""Rewards by name: those that come with the package and those of installed plugins."""

from __future__ import annotations

import inspect
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from .base import RewardFunction


ENTRY_POINTS = "fk_steer.rewards"

_BUILT_IN = {
    "aesthetic": "fk_steer.rewards.aesthetic:Aesthetic",
    "clip-score": "fk_steer.rewards.clip_score:CLIPScore",
    "hps": "fk_steer.rewards.hps:HPS",
    "image-reward": "fk_steer.rewards.image_reward:ImageReward",
    "llm-grader": "fk_steer.rewards.llm_grader:LLMGrader",
    "pickscore": "fk_steer.rewards.pickscore:PickScore",

"""LLaVA-Reward (arXiv 2507.21391): a multimodal LLM as a reward model for text-to-image generation."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .config import RewardConfig
    from .files import CheckpointError
    from .images import ImageError, load_image
    from .model import LlavaReward
    from .preference import preference_probability, preference_score
    from .untrained import new_perspective, random_reward

_WHERE = {
    "CheckpointError": "files",
    "ImageError": "images",
    "LlavaReward": "model",
    "RewardConfig": "config",
    "load_image": "images",
    "new_perspective": "untrained",
    "preference_probability": "preference",
    "preference_score": "preference",
    "random_reward": "untrained",
}


def __getattr__(name: str) -> Any:
    # transformers takes seconds to import, so nothing is imported before it is asked for.
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_WHERE[name]}", __name__), name)


__all__ = [
    "CheckpointError",
    "ImageError",
    "LlavaReward",
    "RewardConfig",
    "load_image",
    "new_perspective",
    "preference_probability",
    "preference_score",
    "random_reward",
]

"""Feynman-Kac steering and inference-time scaling for Hugging Face Diffusers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .config import PRESETS, FKSteering
    from .diffusion import SteeredOutput, steer
    from .report.trace import Trace
    from .rewards import Reward, RewardError, load_reward
    from .smc import Schedule


__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "FKSteering",
    "Reward",
    "RewardError",
    "Schedule",
    "SteeredOutput",
    "Trace",
    "load_reward",
    "steer",
]

_MODULES = {
    "PRESETS": "config",
    "FKSteering": "config",
    "Reward": "rewards",
    "RewardError": "rewards",
    "Schedule": "smc",
    "SteeredOutput": "diffusion",
    "Trace": "report.trace",
    "load_reward": "rewards",
    "steer": "diffusion",
}
"""Name -> where it is. PyTorch, Diffusers and Transformers take seconds to import: not before something needs them."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

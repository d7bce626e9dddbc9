"""Feynman-Kac steering and inference-time scaling for Hugging Face Diffusers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .diffusion import Execution, ScoringEvent, SteeredOutput, steer
    from .modular import RewardModel
    from .pipelines import (
        FKFluxPipeline,
        FKStableDiffusion3Pipeline,
        FKStableDiffusionPipeline,
        FKStableDiffusionXLPipeline,
        FKWanPipeline,
    )
    from .report.trace import Trace
    from .rewards import FrameReward, Reward, RewardError, as_pil, load_reward
    from .search import PRESETS, Finish, FKSteering, Look, Noise, Plan, Preview, Search, Start, Stop, Strategy, preset
    from .smc import Resampling, Schedule


__version__ = "0.1.0"

__all__ = [
    "FrameReward",
    "PRESETS",
    "Execution",
    "Finish",
    "FKFluxPipeline",
    "FKStableDiffusion3Pipeline",
    "FKStableDiffusionPipeline",
    "FKStableDiffusionXLPipeline",
    "FKSteering",
    "FKWanPipeline",
    "Look",
    "Noise",
    "Plan",
    "Preview",
    "Resampling",
    "Reward",
    "RewardError",
    "RewardModel",
    "Schedule",
    "ScoringEvent",
    "Search",
    "Start",
    "SteeredOutput",
    "Stop",
    "Strategy",
    "Trace",
    "as_pil",
    "load_reward",
    "preset",
    "steer",
]

_PLACES = {
    "diffusion": ("Execution", "ScoringEvent", "SteeredOutput", "steer"),
    "pipelines": (
        "FKFluxPipeline", "FKStableDiffusion3Pipeline", "FKStableDiffusionPipeline", "FKStableDiffusionXLPipeline",
        "FKWanPipeline",
    ),
    "modular": ("RewardModel",),
    "report.trace": ("Trace",),
    "rewards": ("FrameReward", "Reward", "RewardError", "as_pil", "load_reward"),
    "search": (
        "PRESETS", "Finish", "FKSteering", "Look", "Noise", "Plan", "Preview", "Search", "Start", "Stop", "Strategy",
        "preset",
    ),
    "smc": ("Resampling", "Schedule"),
}  # fmt: skip
_MODULES = {name: module for module, names in _PLACES.items() for name in names}
"""Name -> where it is. PyTorch, Diffusers and Transformers take seconds to import: not before something needs them."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

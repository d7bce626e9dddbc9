"""Feynman-Kac steering and inference-time scaling for Hugging Face Diffusers."""

from .diffusion import Execution, ScoringEvent, SteeredOutput, steer
from .rewards import Reward, RewardError, load_reward
from .search import PRESETS, FKSteering, Noise, Preview, Stop, Strategy
from .smc import Resampling, Schedule
from .trace import Trace


__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "Execution",
    "FKSteering",
    "Noise",
    "Preview",
    "Resampling",
    "ScoringEvent",
    "Stop",
    "Strategy",
    "Reward",
    "RewardError",
    "Schedule",
    "SteeredOutput",
    "Trace",
    "load_reward",
    "steer",
]

"""Feynman-Kac steering and inference-time scaling for Hugging Face Diffusers."""

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

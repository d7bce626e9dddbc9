"""Searches: what becomes of the particles at a scoring event. Tensors only; one algorithm, one file."""

from .base import Look, Outcome, Plan, RewardFacts, Search, Start, Wrapper, place
from .depth_first import DepthFirst
from .evolution import Evolution
from .feynman_kac import SMC, FKSteering, Stop
from .lookahead import Lookahead
from .metropolis import Metropolis
from .presets import DEFAULT_PRESET, PRESETS, Preset, preset
from .registry import STRATEGIES
from .strategy import Noise, Preview, Strategy
from .wrappers import Averaged, EarlyStop, Elite, Standardized


__all__ = [
    "DEFAULT_PRESET",
    "PRESETS",
    "SMC",
    "STRATEGIES",
    "Averaged",
    "DepthFirst",
    "EarlyStop",
    "Elite",
    "Evolution",
    "FKSteering",
    "Look",
    "Lookahead",
    "Metropolis",
    "Noise",
    "Outcome",
    "Plan",
    "Preset",
    "Preview",
    "RewardFacts",
    "Search",
    "Standardized",
    "Start",
    "Stop",
    "Strategy",
    "Wrapper",
    "place",
    "preset",
]

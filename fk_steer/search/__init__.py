"""Searches: what becomes of the particles at a scoring event. Tensors only; one algorithm, one file."""

from .base import Look, Outcome, Plan, RewardFacts, Search, Start, Wrapper, place
from .depth_first import DepthFirst
from .evolution import Evolution
from .feynman_kac import SMC, FKSteering, Stop
from .finish import Finish
from .lookahead import Lookahead
from .metropolis import Metropolis
from .presets import DEFAULT_PRESET, PRESETS, Preset, preset
from .refine import Refine
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
    "Finish",
    "Look",
    "Lookahead",
    "Metropolis",
    "Noise",
    "Outcome",
    "Plan",
    "Preset",
    "Preview",
    "Refine",
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

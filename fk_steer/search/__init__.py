"""Searches: what becomes of the particles at a scoring event. Tensors only; one algorithm, one file."""

from .allocation import Allocation
from .around import Around
from .base import Look, Outcome, Plan, RewardFacts, Search, Start, Wrapper, place
from .depth_first import DepthFirst
from .evolution import Evolution
from .feynman_kac import SMC, FKSteering, Stop
from .lookahead import Lookahead
from .metropolis import Metropolis
from .passes import Pass, Passes
from .presets import DEFAULT_PRESET, PRESETS, Preset, preset
from .registry import STRATEGIES
from .screen import Screen
from .strategy import Noise, Preview, Strategy
from .wrappers import EarlyStop, Elite, Standardized


__all__ = [
    "DEFAULT_PRESET",
    "PRESETS",
    "SMC",
    "STRATEGIES",
    "Allocation",
    "Around",
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
    "Pass",
    "Passes",
    "Plan",
    "Preset",
    "Preview",
    "RewardFacts",
    "Screen",
    "Search",
    "Standardized",
    "Start",
    "Stop",
    "Strategy",
    "Wrapper",
    "place",
    "preset",
]

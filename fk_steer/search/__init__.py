"""Searches: what becomes of the particles at a scoring event. Tensors only; one algorithm, one file."""

from .allocation import Allocation
from .around import Around
from .base import Look, Outcome, Plan, RewardFacts, Search, Start, Wrapper, place
from .depth_first import DepthFirst
from .evolution import Evolution
from .feynman_kac import SMC, FKSteering, Stop
from .finish import Finish
from .lookahead import Lookahead
from .metropolis import Metropolis
from .passes import Pass, Passes
from .presets import DEFAULT_PRESET, PRESETS, Preset, preset
from .refine import Refine
from .registry import STRATEGIES
from .screen import Screen
from .strategy import Noise, Preview, Strategy
from .wrappers import Averaged, EarlyStop, Elite, Standardized


__all__ = [
    "DEFAULT_PRESET",
    "PRESETS",
    "SMC",
    "STRATEGIES",
    "Allocation",
    "Around",
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
    "Pass",
    "Passes",
    "Plan",
    "Preset",
    "Preview",
    "Refine",
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

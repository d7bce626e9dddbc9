"""Preference data: which of the candidates of a prompt is better, by any reward or judge, as a dataset to train on."""

from .rules import RULES, Comparison, Pair, Sifted, sift
from .run import Preference, prefer


__all__ = ["RULES", "Comparison", "Pair", "Preference", "Sifted", "prefer", "sift"]

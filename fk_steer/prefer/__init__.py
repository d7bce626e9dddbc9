"""Preference data: which of the candidates of a prompt is better, by any reward or judge, as a dataset to train on."""

from .rules import RULES, Comparison, Judge, Pair, Sifted, sift


__all__ = ["RULES", "Comparison", "Judge", "Pair", "Sifted", "sift"]

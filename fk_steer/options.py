"""Options of rewards as they are written on command lines."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from .combinations import joined, names_in


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """`--help` of scripts: their text as it stands, and the default of each option behind it."""


def reward_options(pairs: list[str], name: str, names: list[str]) -> dict[str, Any]:
    """The options of one reward among [NAME:]KEY=VALUE; true, false, null and numbers are what JSON makes of them.

    Args:
        pairs: as given.
        name: of the reward whose options are wanted.
        names: of all rewards.

    Raises:
        ValueError: for a pair of another form, or of a reward that is not asked for.
    """
    options = {}
    for pair in pairs:
        given, equals, text = pair.partition("=")
        owner, colon, key = given.rpartition(":")
        if not equals or not key:
            raise ValueError(f"Expected --reward-option as KEY=VALUE, but got {pair!r}.")
        if colon and owner not in names:
            from .smc import suggestion  # PyTorch is not imported before something needs it

            raise ValueError(
                f"--reward-option {pair!r} is for a reward that is not scored by: {', '.join(names)}."
                f"{suggestion(owner, names)}"
            )
        if not colon or owner == name:
            try:
                options[key] = json.loads(text)
            except ValueError:
                options[key] = text
    return options


def options_of(pairs: list[str], reward: str, among: Sequence[str] = ()) -> dict[str, Any]:
    """The options of a reward, or by their names of several combined, among [NAME:]KEY=VALUE.

    Args:
        pairs: as given; NAME is a reward's, or the whole text of a combination.
        reward: a name, or several combined, see `combinations.combination`.
        among: all that is scored or steered by; empty for `reward` alone.

    Raises:
        ValueError: see `reward_options`, and for a reward of another form.
    """
    everyone = list(among or (reward,))
    names = list(dict.fromkeys([*everyone, *(name for one in everyone for name in names_in(one))]))
    return joined(reward, {name: reward_options(pairs, name, names) for name in names_in(reward)})

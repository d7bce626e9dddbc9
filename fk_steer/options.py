"""Options of rewards as they are written on command lines."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from typing import Any


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
            raise ValueError(f"--reward-option {pair!r} is for a reward that is not scored by: {', '.join(names)}.")
        if not colon or owner == name:
            try:
                options[key] = json.loads(text)
            except ValueError:
                options[key] = text
    return options


def suggest(name: str, known: Iterable[str]) -> str:
    """' Did you mean "x"?' with the known name most like another, '' if none is."""
    near = difflib.get_close_matches(name.lower(), list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""

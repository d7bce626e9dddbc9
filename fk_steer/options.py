"""Options of rewards, and settings, as they are written on command lines."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
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


def read_assignments(texts: Iterable[str]) -> dict[str, Any]:
    """What 'FIELD=VALUE' texts assign.

    Args:
        texts: each a setting, dotted for a part of one ('schedule.at', 'noise.eta'), and a value as YAML has it; values
            divided by commas are a list.

    Returns:
        Field -> value, in the order given.

    Raises:
        ValueError: for another form, a value that is no YAML, or a field twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        field, equals, value = text.partition("=")
        field = field.strip()
        if not equals or not all(part.strip() for part in field.split(".")):
            raise ValueError(f"Expected --set as FIELD=VALUE, such as schedule.at=0.4,0.6, but got {text!r}.")
        if field in found:
            raise ValueError(f"Expected --set {field} once, but got it twice.")
        found[field] = _value(value, text)
    return found


def _value(text: str, whole: str) -> Any:
    import yaml

    try:
        value = yaml.safe_load(text)
        if isinstance(value, str) and "," in value:
            value = yaml.safe_load(f"[{text}]")
    except yaml.YAMLError as error:
        why = " ".join(str(error).split())
        raise ValueError(f"Expected --set {whole!r} with a value that YAML can read, but it cannot: {why}.") from None
    return [_number(entry) for entry in value] if isinstance(value, list) else _number(value)


def _number(value: Any) -> Any:
    """YAML takes '1e-3' for a text."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value

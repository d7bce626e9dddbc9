"""Settings with some of them replaced, by name: 'schedule.at' is a part of one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from ..smc import brief, unknown
from .strategy import Strategy


OPTIONS = {
    "num_particles": "--particles",
    "calls": "--budget",
    "lmbda": "--lmbda",
    "steps": "--steps",
    "sampler": "--scheduler",
}
"""Settings that commands have an option of their own for."""


def check_once(changes: Mapping[str, Any], given: Iterable[str]) -> None:
    """Make sure that no setting is given in two ways.

    Args:
        changes: see `changed`.
        given: settings that are given otherwise, by the names that `OPTIONS` has.

    Raises:
        ValueError: naming both ways.
    """
    given = set(given)
    for field in changes:
        name = field.partition(".")[0]
        if name in given:
            raise ValueError(f"Expected `{name}` by {OPTIONS[name]} or by --set {field}=..., but got both.")
        if name == "num_particles" and "calls" in given or name == "calls" and "num_particles" in given:
            other = "calls" if name == "num_particles" else "num_particles"
            raise ValueError(
                f"A budget chooses the particles, so --set {field}=... does not go with {OPTIONS[other]}. Give one of "
                "the two."
            )
        if name == "seed":
            raise ValueError(
                "The noise of a command follows from its own seed: give --seed or --seeds, not --set seed."
            )
    if "num_particles" in changes and changes.get("calls") is not None:
        raise ValueError("A budget chooses the particles: leave out --set num_particles=... or --set calls=...")


def changed(strategy: Strategy, changes: Mapping[str, Any]) -> Strategy:
    """Settings with some of them replaced.

    Args:
        strategy: the settings.
        changes: setting -> value, in the forms that the settings themselves take. Dotted names are parts of settings:
            'schedule.at', 'tempering.end'; what else a part holds stays.

    Raises:
        ValueError: for a setting that there is not, with those nearest to it, or a value that does not fit.
    """
    for field in changes:
        _check(strategy, field.partition(".")[0])
    before = strategy.describe()
    whole = {field: _alike(before[field], value) for field, value in changes.items() if "." not in field}
    made = strategy.replace(**whole) if whole else strategy
    parts: dict[str, Any] = {}
    for field, value in changes.items():
        name, dot, rest = field.partition(".")
        if dot:
            parts.setdefault(name, made.describe()[name])
            parts[name] = _with(parts[name], rest, value, name)
    return made.replace(**parts) if parts else made


def _check(strategy: Strategy, name: str) -> None:
    known = [entry.name for entry in dataclasses.fields(strategy)]
    if name not in known:
        raise unknown("setting", name, known, of=f" of '{strategy.name}'")


def _with(part: Any, path: str, value: Any, where: str) -> dict[str, Any]:
    """A part of some settings with an entry replaced."""
    if part is None:
        part = {}
    if not isinstance(part, Mapping):
        raise ValueError(f"`{where}` is {brief(part)}, which has no parts, so `{where}.{path}` cannot be set.")
    name, dot, rest = path.partition(".")
    if dot:
        value = _with(part.get(name), rest, value, f"{where}.{name}")
    return {**part, name: _alike(part.get(name), value)}


def _alike(before: Any, value: Any) -> Any:
    """One number in the place of several is a list of one."""
    several = isinstance(before, list) and isinstance(value, (int, float)) and not isinstance(value, bool)
    return [value] if several else value

"""What a page takes from those who look at it, and numbers as they are typed."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The most that can be asked for.

    Attributes:
        particles, steps, budget: of a run.
        side: of a picture, in pixels.
        letters: of a prompt.
        images: uploaded at a time.
        megabytes: of an uploaded file.
        fixed: whether models and rewards that come with the package are all that is offered, without options and
            without paths, as for a page that strangers can reach.
    """

    particles: int = 32
    steps: int = 250
    budget: int = 5000
    side: int = 2048
    letters: int = 2000
    images: int = 32
    megabytes: int = 20
    fixed: bool = False


def whole(name: str, text: object, low: int, high: int, default: str = "or nothing") -> int | None:
    """A whole number as it was typed; None for nothing.

    Args:
        name: of the field, for messages.
        default: what may be there instead of a number, for messages.

    Raises:
        ValueError: for anything else, or a number out of range.
    """
    typed = str("" if text is None else text).strip()
    if not typed:
        return None
    try:
        number = float(typed)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number != int(number) or not low <= number <= high:
        raise ValueError(
            f"{name}: expected a whole number from {low} to {high}{_otherwise(default)}, but got {typed!r}."
        )
    return int(number)


def decimal(name: str, text: object, default: str = "or nothing") -> float | None:
    """A number as it was typed, with a point or a comma; None for nothing.

    Raises:
        ValueError: for anything else, naming the field.
    """
    typed = str("" if text is None else text).strip()
    if not typed:
        return None
    try:
        number = float(typed.replace(",", "."))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name}: expected a number such as 12 or 0.5{_otherwise(default)}, but got {typed!r}.")
    return number


def _otherwise(default: str) -> str:
    return f", {default}" if default else ""

"""Numbers as users give them: Python's, NumPy's and torch's scalars alike."""

from __future__ import annotations

import math
from typing import Any


_DIGITS = {2: 3, 4: 7}
"""Bytes of a floating-point number -> the decimal digits that are meant."""


def scalar(value: Any) -> Any:
    """The Python number in a NumPy or torch scalar, 0.7 if it is a single-precision 0.7; anything else as it is."""
    if getattr(value, "ndim", None) != 0 or not hasattr(value, "item"):
        return value
    number = value.item()
    digits = _DIGITS.get(value.dtype.itemsize) if isinstance(number, float) else None
    return number if digits is None else float(f"{number:.{digits}g}")


def real(name: str, value: Any, low: float = -math.inf, high: float = math.inf, optional: bool = False) -> Any:
    """A finite number in [low, high].

    Args:
        name: of the setting, for messages.
        value: a number of any library.
        optional: let None through.

    Raises:
        ValueError: for anything else.
    """
    number = scalar(value)
    if number is None and optional:
        return None
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not _within(number, low, high):
        raise ValueError(
            f"Expected `{name}` to be {'None or ' if optional else ''}{_range(low, high)}, but got {value!r}."
        )
    return number


def integer(name: str, value: Any, low: int, optional: bool = False) -> Any:
    """An integer of at least `low`.

    Raises:
        ValueError: for anything else.
    """
    number = scalar(value)
    if number is None and optional:
        return None
    if isinstance(number, bool) or not isinstance(number, int) or number < low:
        kind = f"{'None or ' if optional else ''}an integer of at least {low}"
        raise ValueError(f"Expected `{name}` to be {kind}, but got {value!r}.")
    return number


def flag(name: str, value: Any) -> Any:
    """True or False.

    Raises:
        ValueError: for anything else; "False" is true to Python.
    """
    truth = scalar(value)
    if not isinstance(truth, bool):
        raise ValueError(f"Expected `{name}` to be True or False, but got {value!r}.")
    return truth


def _within(number: float, low: float, high: float) -> bool:
    return math.isfinite(number) and low <= number <= high


def _range(low: float, high: float) -> str:
    if low == -math.inf and high == math.inf:
        return "a finite number"
    if high == math.inf:
        return f"finite and at least {low}"
    if low == -math.inf:
        return f"at most {high}"
    return f"between {low} and {high}"

"""Numbers as users give them: Python's, NumPy's, torch's, fractions and decimals alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set
from decimal import Decimal
from fractions import Fraction
from typing import Any

from .names import brief


_DIGITS = {2: 3, 4: 7}
"""Bytes of a floating-point number -> the decimal digits that are meant."""


def scalar(value: Any) -> Any:
    """The Python number in a NumPy or torch scalar, 0.7 if it is a single-precision 0.7, or that of a `Fraction` or
    `Decimal`; anything else as it is."""
    if isinstance(value, (Fraction, Decimal)):
        return float(value)
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
            f"Expected `{name}` to be {'None or ' if optional else ''}{_range(low, high)}, but got {brief(value)}."
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
        raise ValueError(f"Expected `{name}` to be {kind}, but got {brief(value)}.")
    return number


def flag(name: str, value: Any) -> Any:
    """True or False.

    Raises:
        ValueError: for anything else; "False" is true to Python.
    """
    truth = scalar(value)
    if not isinstance(truth, bool):
        raise ValueError(f"Expected `{name}` to be True or False, but got {brief(value)}.")
    return truth


def numbers(name: str, values: Any) -> tuple[float | int, ...]:
    """The Python numbers in a sequence of any library, in its order.

    Raises:
        ValueError: for anything else, a set or a mapping too, which have no order.
    """
    unordered = isinstance(values, (str, bytes, Set, Mapping)) or scalar(values) is not values
    if unordered or not isinstance(values, Iterable):
        raise ValueError(f"Expected `{name}` to be a sequence of numbers, but got {brief(values)}.")
    found = tuple(scalar(value) for value in values)
    if any(isinstance(number, bool) or not isinstance(number, (int, float)) for number in found):
        raise ValueError(f"Expected `{name}` to hold numbers, but got {brief(values)}.")
    return found


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

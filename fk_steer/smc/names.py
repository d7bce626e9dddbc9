"""What to say where a name is not known: which are, and which of them may have been meant."""

from __future__ import annotations

import difflib
import inspect
import math
import os
import reprlib
from collections.abc import Iterable
from typing import Any


_ALIKE = 0.6
"""The least likeness, from 0 to 1, at which a name is suggested."""
_PART = 4
"""Letters from which on a part of a name stands for it."""


def suggestion(given: object, known: Iterable[object]) -> str:
    """The words ' Did you mean ...?' with the known name that is most like another, '' if none is.

    Upper and lower case, `_`, `-`, blanks and dots make no difference, and a name within a longer one is like it.
    """
    wanted = _letters(given)
    if not isinstance(given, str) or not wanted:
        return ""
    names = [name for name in known if isinstance(name, str)]
    likeness = {name: _likeness(wanted, _letters(name)) for name in names}
    # Among names that are about as like, the one that begins like it: 'resampling' for 'resample', not 'sampler'.
    best = max(names, key=lambda name: likeness[name] + 0.1 * _beginning(wanted, _letters(name)), default=None)
    return "" if best is None or likeness[best] < _ALIKE else f" Did you mean {best!r}?"


def unknown(what: str, given: object, known: Iterable[object], of: str = "") -> ValueError:
    """The error for a name that is not among those known, which lists these and says which one is most like it.

    Args:
        what: is named, for example 'preset'.
        given: what was asked for, of any type.
        known: names.
        of: whose, for example ' of Schedule'.
    """
    names = list(known)
    has = f"Known: {', '.join(map(str, names))}." if names else "It has none."
    return ValueError(f"Unknown {what} {brief(given)}{of}. {has}{suggestion(given, names)}")


def is_named(name: object, known: Iterable[str]) -> bool:
    """Whether a value of any type is one of some names."""
    return isinstance(name, str) and name in known


def brief(value: object) -> str:
    """A value in a line of a message: tensors and arrays by their shape, classes by their name, the rest cut short."""
    shape = getattr(value, "shape", None)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(shape, tuple) and math.prod(shape) > 8:
        kind = "a tensor" if hasattr(value, "requires_grad") else "an array"
        return f"{kind} of shape {tuple(shape)}"
    text = _BRIEF.repr(value) if isinstance(value, (list, tuple, dict, set, frozenset)) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


class Keywords:
    """A class that answers an unknown keyword with the known ones."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        known = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_POSITIONAL]
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        for name in kwargs:
            if name not in known and not takes_any:
                has = f"Known: {', '.join(known)}." if known else "It has none."
                raise TypeError(f"{cls.__name__} has no setting {name!r}. {has}{suggestion(name, known)}")
        return super().__new__(cls)


_LONGEST = 200
_BRIEF = reprlib.Repr()
_BRIEF.maxlist = _BRIEF.maxtuple = _BRIEF.maxdict = _BRIEF.maxset = _BRIEF.maxfrozenset = 8
_BRIEF.maxother = _BRIEF.maxstring = 80


def _letters(name: object) -> str:
    return "".join(letter for letter in str(name).casefold() if letter.isalnum())


def _beginning(one: str, other: str) -> float:
    """How much of the shorter one is the same at the beginning of both."""
    return len(os.path.commonprefix([one, other])) / max(1, min(len(one), len(other)))


def _likeness(one: str, other: str) -> float:
    if one == other:
        return 2.0
    ratio = difflib.SequenceMatcher(None, one, other).ratio()
    short, long = sorted((one, other), key=len)
    # Long names come first among equals in which a short one is: by how much of them it is.
    return max(ratio, 0.8 + 0.1 * ratio) if len(short) >= _PART and short in long else ratio

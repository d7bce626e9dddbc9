"""Rewards combined in a name, as command lines and studies write them: 'a+b', '2*a+b', 'a+b-0.5*sd', 'a|b|c', 'a>b'."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Mean:
    """A mean of the z-scores of rewards over the particles of a prompt; of one reward, that reward.

    Attributes:
        weights: name of a reward -> its weight, finite and not 0.
        kappa: so many of their standard deviations are taken off, above 0 only with weights of 1.
    """

    weights: Mapping[str, float]
    kappa: float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """Of its rewards."""
        return tuple(self.weights)


@dataclass(frozen=True)
class Votes:
    """A vote of rewards on every pair of particles.

    Attributes:
        names: of its rewards, two or more.
    """

    names: tuple[str, ...]


@dataclass(frozen=True)
class Combination:
    """What a name stands for.

    Attributes:
        guide: what scores x0 predictions.
        chooser: what chooses among the final images; None for the guide.
    """

    guide: Mean | Votes
    chooser: Mean | Votes | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of all rewards in it, each once."""
        return tuple(dict.fromkeys((*self.guide.names, *(self.chooser.names if self.chooser else ()))))

    @property
    def single(self) -> bool:
        """Whether it is a single reward's own name."""
        return self.chooser is None and len(self.guide.names) == 1


def combination(text: str) -> Combination:
    """Read the name of a reward, or of several.

    Args:
        text: 'a' is a reward; 'a+b' the mean of the z-scores of two or more; '2*a+b' a weighted mean; 'a+b-0.5*sd' the
            mean less half their standard deviation; 'a|b|c' a vote on every pair of particles; 'a>b' guides by 'a' and
            lets 'b' choose among the final images, where either may be of several.

    Raises:
        ValueError: for another form, saying which there are.
    """
    sides = text.split(">")
    if len(sides) > 2:
        raise _misread(text, "'>' stands once at most, between what guides and what chooses")
    guide, *rest = (_votes(side, text) if "|" in side else _mean(side, text) for side in sides)
    return Combination(guide, rest[0] if rest else None)


def names_in(text: str | None) -> tuple[str, ...]:
    """The names of the rewards in a text, see `combination`; none in None."""
    return () if text is None else combination(text).names


def by_reward(text: str, options: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The options of each reward in a text, where those of a combination are kept by the name of the reward.

    Raises:
        ValueError: for options of a combination that are of none of its rewards.
    """
    found = combination(text)
    if found.single:
        return {found.names[0]: options}
    for name, given in options.items():
        if name not in found.names or not isinstance(given, Mapping):
            raise ValueError(
                f"Expected the options of the combination {text!r} by reward, such as "
                f"{{{found.names[0]}: {{path: FOLDER}}}}, but got {name!r}. Its rewards: {', '.join(found.names)}."
            )
    return {name: options.get(name, {}) for name in found.names}


def joined(text: str, options: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Inverse of `by_reward`; rewards without options are left out."""
    found = combination(text)
    if found.single:
        return dict(options.get(found.names[0], {}))
    return {name: dict(options[name]) for name in found.names if options.get(name)}


_SPREAD = re.compile(r"-\s*([^\s*-]+)\s*\*\s*sd\s*$")
"""What takes off standard deviations."""


def _votes(side: str, text: str) -> Votes:
    names = tuple(part.strip() for part in side.split("|"))
    if not all(names):
        raise _misread(text, "a reward is missing")
    if any(mark in name for name in names for mark in "+*"):
        raise _misread(text, "votes have no weights, and no means beside them")
    if len(set(names)) < len(names):
        raise _misread(text, "a reward has one vote")
    return Votes(names)


def _mean(side: str, text: str) -> Mean:
    weights: dict[str, float] = {}
    kappa = 0.0
    if spread := _SPREAD.search(side):
        side, kappa = side[: spread.start()], _weight(spread[1], text)
        if kappa < 0.0:
            raise _misread(text, "standard deviations are taken off, not added")
    parts = side.split("+")
    if kappa and (len(parts) == 1 or "*" in side):
        raise _misread(text, "standard deviations are those of two rewards or more, without weights")
    for part in parts:
        factor, star, name = part.rpartition("*")
        name = name.strip()
        if not name or "*" in factor:
            raise _misread(text, "a reward is missing" if not name else "a reward has one weight")
        if name in weights:
            raise _misread(text, f"{name!r} stands twice on one side; give it a weight")
        if star and len(parts) == 1:
            raise _misread(text, "a weight says how much a reward counts beside others, and here is none")
        weights[name] = _weight(factor, text) if star else 1.0
    return Mean(weights, kappa)


def _weight(factor: str, text: str) -> float:
    try:
        weight = float(factor)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight) or weight == 0.0:
        raise _misread(text, f"the weight {factor.strip()!r} is no finite number other than 0")
    return weight


def _misread(text: str, why: str) -> ValueError:
    return ValueError(
        f"Cannot read the reward {text!r}: {why}. Expected a name, 'a+b' for the mean of z-scores, '2*a+b' for a "
        "weighted one, 'a+b-0.5*sd' for the mean less half the standard deviation, 'a|b|c' for a vote on every pair, "
        "or 'a>b', where a guides and b chooses among the final images."
    )

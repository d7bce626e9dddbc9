"""Strategies around another, which they run in several passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from ..smc import brief
from .base import RewardFacts, Search, Start
from .feynman_kac import FKSteering
from .strategy import Noise, Preview, Strategy


Self = TypeVar("Self", bound="Around")


@dataclass(frozen=True)
class Around(Strategy):
    """Passes of another strategy, which says what becomes of the particles in them.

    Of the settings of every `Strategy`, `num_particles`, `noise`, `preview` and `seed` take those of `inner` where they
    are None; anything else replaces them.

    Attributes:
        inner: what is run: settings, the name of a preset, or the mapping that `to_dict` makes of settings.

    Raises:
        ValueError: for an `inner` that is no strategy.
    """

    inner: Strategy = field(default_factory=FKSteering)
    num_particles: int = field(default=None, kw_only=True)  # type: ignore[assignment]
    noise: Noise = field(default=None, kw_only=True)  # type: ignore[assignment]
    preview: Preview | None = field(default=None, kw_only=True)
    seed: int | None = field(default=None, kw_only=True)

    own: ClassVar[frozenset[str]] = frozenset({"calls"})
    """Settings of every strategy that this one has for itself, beside those of `inner`."""

    def __post_init__(self) -> None:
        inner = strategy_of(self.inner)
        shared = [entry.name for entry in dataclasses.fields(Strategy) if entry.name not in self.own]
        given = {name: value for name in shared if (value := getattr(self, name)) is not None}
        inner = inner.replace(**given)
        self._set(inner=inner, **{name: getattr(inner, name) for name in shared})
        super().__post_init__()

    def start(self, start: Start) -> Search:
        return self.inner.start(start)

    def events(self, num_steps: int) -> Collection[int]:
        return self.inner.events(num_steps)

    @property
    def looks(self) -> bool:
        return self.inner.looks

    def copying(self, num_steps: int) -> list[int]:
        return self.inner.copying(num_steps)

    def check(self, reward: RewardFacts) -> None:
        self.inner.check(reward)
        if reward.relative:
            raise ValueError(
                f"'{self.name}' compares images of several passes, but '{reward.name}' only compares the particles of "
                "one with one another. Use a reward with a scale of its own."
            )

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "inner": self.inner.describe()}

    def replace(self: Self, **overrides: Any) -> Self:
        if "inner" in overrides:  # whose own settings count, unless they are given too
            shared = {entry.name for entry in dataclasses.fields(Strategy)} - self.own
            overrides = {**dict.fromkeys(shared), **overrides}
        return super().replace(**overrides)


def strategy_of(value: Any) -> Strategy:
    """A strategy from one, from the name of a preset, or from the mapping that `to_dict` makes of it.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(value, str):
        from .presets import preset

        return preset(value)
    if isinstance(value, Mapping):
        return Strategy.from_dict(value)
    if not isinstance(value, Strategy):
        raise ValueError(
            f"Expected `inner` to be an `FKSteering`, another `Strategy` or the name of a preset, but got "
            f"{brief(value)}."
        )
    return value

"""What searches share that judge x0 predictions at one step and go back from it by the forward process."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar

from ..smc import real, step_of
from .base import RewardFacts, Search, Start
from .strategy import Strategy


@dataclass(frozen=True)
class Renoising(Strategy):
    """Settings of a search that goes back and forth over one stretch of the loop.

    Attributes:
        at: when x0 predictions are judged: a share of the loop in (0, 1], or a step.
        back: how many steps are taken again: a share of the loop in (0, 1), or a number.

    Raises:
        ValueError: for a value out of range.
    """

    at: float | int = field(default=0.6, kw_only=True)
    back: float | int = field(default=0.3, kw_only=True)

    goes_back: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(at=real("at", self.at, 0.0), back=real("back", self.back, 0.0))

    def copying(self, num_steps: int) -> list[int]:
        return []  # the forward process parts what it copies

    def check(self, reward: RewardFacts) -> None:
        if reward.relative:
            raise ValueError(
                f"'{self.name}' compares rewards of different moments, but '{reward.name}' only those of particles "
                "that are there together."
            )

    @property
    def rounds(self) -> int:
        """How often it goes back, at most."""
        raise NotImplementedError(f"{type(self).__name__} has to say how often it goes back.")

    def cost(self, num_steps: int) -> int:
        step, earlier = self.span(num_steps)
        return self.num_particles * (num_steps + self.rounds * (step + 1 - earlier))

    def span(self, num_steps: int) -> tuple[int, int]:
        """The step to judge at and the one to go back to, from which on `back` steps are taken again.

        Raises:
            ValueError: if either lies outside the loop.
        """
        step = step_of(self.at, num_steps)
        earlier = step + 1 - (round(self.back * num_steps) if isinstance(self.back, float) else self.back)
        if not 0 <= earlier <= step < num_steps:
            raise ValueError(
                f"Expected to go back within the loop of {num_steps} steps, but got from step {step} to step {earlier}."
            )
        return step, earlier


class RenoisingSearch(Search):
    """Looks at one step until it is over.

    Attributes:
        at, earlier: the step it looks at, and the one it goes back to.
        over: whether it has looked for the last time.
    """

    def __init__(self, settings: Renoising, start: Start) -> None:
        self.at, self.earlier = settings.span(start.num_steps)
        self.over = False

    @property
    def events(self) -> Collection[int]:  # type: ignore[override]
        return () if self.over else (self.at,)

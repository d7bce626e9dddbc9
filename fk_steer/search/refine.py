"""Refine: the best image so far is noised again and denoised by all particles, round by round."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..smc import integer, numbers, real
from .base import Look, Outcome, Plan, RewardFacts, Search, Start
from .finish import Finish, FinishSearch


@dataclass(frozen=True)
class Refine(Finish):
    """The images of `Finish`, and then rounds: the best image so far is brought back to an earlier noise level by the
    forward process, with noise of its own for each particle, and denoised again. It is replaced where a child is
    better, so no round makes things worse.

    As CoHP (arXiv 2508.03789) and depth-first search do it. A round costs the denoiser rows of its share of the loop.

    Attributes:
        rounds: how much of the loop each round takes again: shares in (0, 1), the first round first.
        children: particles of the rounds, at most `num_particles`; None for as many. A float is a share of them.
        greedy_from: see `Finish`; 1.0 leaves that out, and rounds do without it as well.

    Raises:
        ValueError: for a value out of range.
    """

    rounds: tuple[float, ...] = field(default=(0.5,), kw_only=True)
    children: int | float | None = field(default=None, kw_only=True)

    goes_back: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        rounds = tuple(float(share) for share in numbers("rounds", self.rounds))
        if not all(0 < share < 1 for share in rounds):
            raise ValueError(f"Expected `rounds` as shares of the loop between 0 and 1, but got {rounds}.")
        if isinstance(self.children, float):
            real("children", self.children, 0.0, 1.0)
        else:
            integer("children", self.children, 1, optional=True)
        self._set(rounds=rounds)

    def steps_of(self, num_steps: int) -> list[int]:
        """How many steps each round takes again, at least 1 and fewer than all."""
        return [min(max(1, round(share * num_steps)), num_steps - 1) for share in self.rounds]

    def num_children(self) -> int:
        """Particles of the rounds."""
        K, number = self.num_particles, self.children
        if number is None:
            return K
        return min(K, max(1, math.floor(number * K + 1e-9)) if isinstance(number, float) else number)

    def cost(self, num_steps: int) -> int:
        return super().cost(num_steps) + self.num_children() * sum(self.steps_of(num_steps))

    def start(self, start: Start) -> Search:
        return _Refine(super().start(start), self, start)

    def events(self, num_steps: int) -> Collection[int]:
        return {*super().events(num_steps), num_steps - 1}

    def check(self, reward: RewardFacts) -> None:
        super().check(reward)
        if reward.relative:
            raise ValueError(
                f"'{self.name}' compares rewards of different moments, but '{reward.name}' only those of particles "
                "that are there together."
            )


class _Refine(FinishSearch):
    def __init__(self, inner: Search, settings: Refine, start: Start) -> None:
        assert isinstance(inner, FinishSearch)
        super().__init__(inner.inner, settings, start)
        self.last = start.num_steps - 1
        self.children = settings.num_children()
        self.left = [self.last + 1 - steps for steps in settings.steps_of(start.num_steps)]
        """The steps that the rounds still to come begin with."""
        self.best: Tensor | None = None
        """(P,) reward of the image that is remembered; None before the first round."""
        self.over = False

    @property
    def events(self) -> Collection[int]:  # type: ignore[override]
        if self.best is None:
            return {*super().events, *([self.last] if self.left else [])}
        return () if self.over else {*self.late, self.last}

    def step(self, look: Look) -> Plan:
        if look.step < self.last:
            return super().step(look)
        self.begun = True
        P, K = look.rewards.shape
        rewards = look.rewards if self.best is None else torch.cat([look.rewards, self.best[:, None]], 1)
        # The remembered one comes first where it ties, so that it is not replaced by its equal.
        order = torch.arange(rewards.shape[1]).roll(0 if self.best is None else 1)
        ranked = order[rewards[:, order].argsort(dim=1, descending=True, stable=True)]
        parent = ranked[:, :1]
        if not self.left:
            self.over = True
            chosen = ranked[:, :K]
            return Plan(chosen, quiet=torch.ones_like(chosen, dtype=torch.bool))
        self.best = rewards.gather(1, parent)[:, 0]
        self.greedy.siblings = False
        return Plan(parent.expand(P, self.children), remember=parent, resume=self.left.pop(0))

    def adopt(self, ancestors: Tensor) -> None:
        if self.best is None:
            super().adopt(ancestors)

    def finish(self, rewards: Tensor) -> Outcome:
        return Search.finish(self, rewards)

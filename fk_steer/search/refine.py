"""Refine: the best image so far is noised again and denoised by all particles, round by round."""

from __future__ import annotations

import dataclasses
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
    forward process, with noise of its own for each child, and denoised again. It is replaced where a child is better,
    so no round makes things worse.

    CoHP (arXiv 2508.03789) does so with whole models, depth-first search (arXiv 2505.23614) along the loop. A round
    costs the denoiser rows of its share of the loop.

    Attributes:
        rounds: how many, at least 0.
        strengths: how much of the loop a round takes again, shares in (0, 1). Each prompt begins with the first; after
            a round that made nothing better it goes on with the next of them, after the last with the first.
        patience: a prompt stops after as many such rounds in a row; None for never.
        children: particles of a round, at most `num_particles`; a float is a share of them, None all.
        stop: prompts whose image has reached the reward asked for make no more rounds.
        greedy_from: see `Finish`; 1.0 leaves that out, in rounds as well.

    Raises:
        ValueError: for a value out of range, or with `average_last`: paths that go back have no end to average.
    """

    rounds: int = field(default=1, kw_only=True)
    strengths: tuple[float, ...] = field(default=(0.5,), kw_only=True)
    patience: int | None = field(default=None, kw_only=True)
    children: int | float | None = field(default=None, kw_only=True)

    goes_back: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.average_last:
            raise ValueError(f"'{self.name}' goes back, so `average_last` has no path to average. Leave it out.")
        strengths = tuple(float(share) for share in numbers("strengths", self.strengths))
        if not strengths or not all(0 < share < 1 for share in strengths):
            raise ValueError(f"Expected `strengths` as shares of the loop between 0 and 1, but got {strengths}.")
        if isinstance(self.children, float):
            real("children", self.children, 0.0, 1.0)
        else:
            integer("children", self.children, 1, optional=True)
        self._set(
            rounds=integer("rounds", self.rounds, 0),
            strengths=strengths,
            patience=integer("patience", self.patience, 1, optional=True),
        )

    def steps_of(self, num_steps: int) -> list[int]:
        """How many steps a round of each strength takes again, at least 1 and fewer than all."""
        return [min(max(1, round(share * num_steps)), num_steps - 1) for share in self.strengths]

    def num_children(self) -> int:
        """Particles of a round."""
        K, number = self.num_particles, self.children
        if number is None:
            return K
        return min(K, max(1, math.floor(number * K + 1e-9)) if isinstance(number, float) else number)

    def cost(self, num_steps: int) -> int:
        return super().cost(num_steps) + self.rounds * self.num_children() * max(self.steps_of(num_steps))

    def start(self, start: Start) -> Search:
        return _Refine(self.steering(start), self, start)

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
        super().__init__(inner, settings, start)
        P, self.last = start.num_populations, start.num_steps - 1
        self.children = settings.num_children()
        self.patience = settings.rounds if settings.patience is None else settings.patience
        self.target = torch.inf if settings.stop is None else settings.stop.target_reward
        self.steps = torch.tensor(settings.steps_of(start.num_steps))
        self.left = torch.full((P,), settings.rounds)
        """Rounds that each prompt may still make."""
        self.failures = torch.zeros(P, dtype=torch.long)
        """In a row."""
        self.strength = torch.zeros(P, dtype=torch.long)
        self.playing = torch.ones(P, dtype=torch.bool)
        """The prompts whose particles are computed; the others wait for a round of their strength, or have ended."""
        self.best: Tensor | None = None
        """(P,) rewards of the images that are remembered; None before the first round."""
        self.over = not settings.rounds

    @property
    def events(self) -> Collection[int]:  # type: ignore[override]
        if self.best is None:
            return {*super().events, *([] if self.over else [self.last])}
        return () if self.over else {*self.late, self.last}

    def step(self, look: Look) -> Plan:
        if look.step < self.last:
            plan = super().step(look)
            if self.playing.all():
                return plan
            ancestors = torch.where(self.playing[:, None], plan.ancestors, look.everyone)
            return dataclasses.replace(plan, ancestors=ancestors, asleep=~self.playing)
        self.begun = True
        return self._end_of_a_round(look)

    def _end_of_a_round(self, look: Look) -> Plan:
        K = look.rewards.shape[1]
        rewards = torch.where(self.playing[:, None], look.rewards, -torch.inf)
        order = torch.arange(K)
        if self.best is not None:
            # The remembered one comes first where it ties, so that it is not replaced by its equal.
            rewards, order = torch.cat([rewards, self.best[:, None]], 1), torch.cat([torch.tensor([K]), order])
        ranked = order[rewards[:, order].argsort(dim=1, descending=True, stable=True)]
        parent = ranked[:, :1]
        if self.best is not None:
            better = parent[:, 0] < K
            self.left -= self.playing.long()
            self.failures = torch.where(better, 0, self.failures + self.playing.long())
            self.strength = (self.strength + (self.playing & ~better).long()) % len(self.steps)
        self.best = rewards.gather(1, parent)[:, 0]
        waiting = (self.left > 0) & (self.failures < self.patience) & (self.best < self.target)
        if not waiting.any():
            self.over = True
            # Prompts that had ended before have nothing but the image that is remembered.
            chosen = torch.where(self.playing[:, None], ranked[:, :K], parent)
            return Plan(chosen, quiet=torch.ones_like(chosen, dtype=torch.bool))
        steps = self.steps[self.strength]
        again = int(steps[waiting].max())
        self.playing = waiting & (steps == again)
        self.greedy.siblings = False
        return Plan(
            parent.expand(-1, self.children),
            asleep=None if self.playing.all() else ~self.playing,
            remember=parent,
            resume=self.last + 1 - again,
        )

    def adopt(self, ancestors: Tensor) -> None:
        if self.best is None:
            super().adopt(ancestors)

    def finish(self, rewards: Tensor) -> Outcome:
        return Search.finish(self, rewards)

"""Depth-first search: go back and try other noise while the x0 predictions are not good enough (Zhang et al.,
arXiv 2505.23614)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..smc import integer, real, step_of
from .base import Look, Plan, RewardFacts, Search, Start
from .strategy import Strategy


@dataclass(frozen=True)
class DepthFirst(Strategy):
    """While the best x0 prediction of a prompt is below a target, its particles go back to an earlier noise level by
    the forward process and come down again with other noise; the best attempt goes on to the end.

    An attempt costs the denoiser rows of `back` of the loop, for the prompts that are below the target alone.

    Attributes:
        num_particles, noise, preview, seed: see `Strategy`.
        target_reward: good enough, on the reward's scale; None makes all attempts.
        at: when x0 predictions are judged: a share of the loop in (0, 1), or a step.
        back: how far to go back: a share of the loop in (0, 1), or steps.
        attempts: how often at most, at least 1.
    """

    target_reward: float | None = None
    at: float | int = 0.6
    back: float | int = 0.3
    attempts: int = 3

    goes_back: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(
            target_reward=real("target_reward", self.target_reward, optional=True),
            at=real("at", self.at, 0.0),
            back=real("back", self.back, 0.0),
            attempts=integer("attempts", self.attempts, 1),
        )

    def start(self, start: Start) -> Search:
        return _DepthFirst(self, start)

    def copying(self, num_steps: int) -> list[int]:
        return []

    def check(self, reward: RewardFacts) -> None:
        if reward.relative:
            raise ValueError(f"Attempts cannot be told apart by '{reward.name}', which only compares particles.")


class _DepthFirst(Search):
    def __init__(self, settings: DepthFirst, start: Start) -> None:
        self.target = torch.inf if settings.target_reward is None else settings.target_reward
        self.attempts = self.left = settings.attempts
        self.at, self.earlier = span(settings.at, settings.back, start.num_steps)
        self.best = torch.full((start.num_populations,), -torch.inf, dtype=torch.float64)
        self.over = False

    @property
    def events(self) -> Collection[int]:  # type: ignore[override]
        return () if self.over else (self.at,)

    def step(self, look: Look) -> Plan:
        present = look.everyone
        kept = present + look.rewards.shape[1]
        awake = self.best < self.target
        better = awake & (look.rewards.amax(1) > self.best)
        first = self.left == self.attempts
        self.best = torch.where(better, look.rewards.amax(1), self.best)
        chosen = present if first else torch.where(better[:, None], present, kept)
        good = self.best >= self.target
        if good.all() or not self.left:
            self.over = True
            return Plan(chosen)
        self.left -= 1
        return Plan(present, asleep=good, remember=chosen, resume=self.earlier)


def span(at: float | int, back: float | int, num_steps: int) -> tuple[int, int]:
    """The step to judge at and the one to go back to, from which on `back` steps are taken again.

    Args:
        at: share of the loop or step.
        back: share of the loop or number of steps.

    Raises:
        ValueError: if either lies outside the loop.
    """
    step = step_of(at, num_steps)
    earlier = step + 1 - (round(back * num_steps) if isinstance(back, float) else back)
    if not 0 <= earlier <= step < num_steps:
        raise ValueError(
            f"Expected to go back within the loop of {num_steps} steps, but got from step {step} to step {earlier}."
        )
    return step, earlier

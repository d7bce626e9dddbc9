"""Depth-first search: go back and try other noise while the x0 predictions are not good enough (Zhang et al.,
arXiv 2505.23614)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..smc import integer, real
from .base import Look, Plan, Search, Start
from .renoising import Renoising, RenoisingSearch


@dataclass(frozen=True)
class DepthFirst(Renoising):
    """While the best x0 prediction of a prompt is below a target, its particles go back to an earlier noise level by
    the forward process and come down again with other noise; the best attempt goes on to the end.

    An attempt costs the denoiser rows of `back` of the loop, for the prompts that are below the target alone.

    The settings of every `Strategy` are there too.

    Attributes:
        at: when x0 predictions are judged: a share of the loop in (0, 1], or a step.
        back: how many steps are taken again: a share of the loop in (0, 1), or a number.
        target_reward: good enough, on the reward's scale; None makes all attempts.
        attempts: how often at most, at least 1.
    """

    target_reward: float | None = None
    attempts: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(
            target_reward=real("target_reward", self.target_reward, optional=True),
            attempts=integer("attempts", self.attempts, 1),
        )

    @property
    def rounds(self) -> int:
        return self.attempts

    def start(self, start: Start) -> Search:
        return _DepthFirst(self, start)


class _DepthFirst(RenoisingSearch):
    def __init__(self, settings: DepthFirst, start: Start) -> None:
        super().__init__(settings, start)
        self.target = torch.inf if settings.target_reward is None else settings.target_reward
        self.attempts = self.left = settings.attempts
        self.best = torch.full((start.num_populations,), -torch.inf, dtype=torch.float64)

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

"""Evolution by re-noising: the better half is noised again and comes down as children (He et al., EvoSearch,
arXiv 2505.17618, whose mutation of intermediate states this is)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..smc import integer, real
from .base import Look, Plan, RewardFacts, Search, Start
from .depth_first import span
from .strategy import Strategy


@dataclass(frozen=True)
class Evolution(Strategy):
    """The better half of the particles are parents. Their x0 predictions are brought back to an earlier noise level by
    the forward process, twice each, and come down as children; the better half of parents and children are the parents
    of the next generation. After the last the best particles of all go on.

    A generation costs the denoiser rows of `back` of the loop.

    Attributes:
        num_particles, noise, preview, seed: see `Strategy`.
        generations: at least 1.
        at: when x0 predictions are judged: a share of the loop in (0, 1], or a step.
        back: how far to go back: a share of the loop in (0, 1), or steps.
    """

    generations: int = 2
    at: float | int = 0.6
    back: float | int = 0.3

    goes_back: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(
            generations=integer("generations", self.generations, 1),
            at=real("at", self.at, 0.0),
            back=real("back", self.back, 0.0),
        )

    def start(self, start: Start) -> Search:
        return _Evolution(self, start)

    def copying(self, num_steps: int) -> list[int]:
        return []

    def check(self, reward: RewardFacts) -> None:
        if reward.relative:
            raise ValueError(f"Generations cannot be told apart by '{reward.name}', which only compares particles.")


class _Evolution(Search):
    def __init__(self, settings: Evolution, start: Start) -> None:
        self.left = settings.generations
        self.at, self.earlier = span(settings.at, settings.back, start.num_steps)
        self.parents = torch.empty(start.num_populations, 0, dtype=torch.float64)
        """(P, R) rewards of the parents, which are remembered in this order."""
        self.over = False

    @property
    def events(self) -> Collection[int]:  # type: ignore[override]
        return () if self.over else (self.at,)

    def step(self, look: Look) -> Plan:
        P, K = look.rewards.shape
        rewards = torch.cat([look.rewards, self.parents], 1)
        # Parents come first where they tie, so that nothing is replaced by its equal.
        order = torch.cat([torch.arange(K, rewards.shape[1]), torch.arange(K)])
        ranked = order[rewards[:, order].argsort(dim=1, descending=True, stable=True)]
        if not self.left:
            self.over = True
            return Plan(ranked[:, :K].sort(1).values)
        self.left -= 1
        parents = ranked[:, : (K + 1) // 2]
        self.parents = rewards.gather(1, parents)
        return Plan(_children(parents, K), remember=parents, resume=self.earlier)


def _children(parents: Tensor, number: int) -> Tensor:
    """(P, number) the parents (P, R) in turn, as often as it takes."""
    return parents.repeat(1, -(-number // parents.shape[1]))[:, :number]

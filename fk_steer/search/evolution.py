"""Evolution by re-noising: the better half is noised again and comes down as children. After EvoSearch (He et al.,
arXiv 2505.17618), with the forward process as the mutation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..smc import integer
from .base import Look, Plan, Search, Start
from .renoising import Renoising, RenoisingSearch


@dataclass(frozen=True)
class Evolution(Renoising):
    """The better half of the particles are parents. Their x0 predictions are brought back to an earlier noise level by
    the forward process, twice each, and come down as children; the better half of parents and children are the parents
    of the next generation. After the last the best particles of all go on.

    A generation costs the denoiser rows of `back` of the loop.

    The settings of every `Strategy` are there too.

    Attributes:
        at: when x0 predictions are judged: a share of the loop in (0, 1], or a step.
        back: how many steps are taken again: a share of the loop in (0, 1), or a number.
        generations: at least 1.
    """

    generations: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(
            generations=integer("generations", self.generations, 1),
        )

    @property
    def rounds(self) -> int:
        return self.generations

    def start(self, start: Start) -> Search:
        return _Evolution(self, start)


class _Evolution(RenoisingSearch):
    def __init__(self, settings: Evolution, start: Start) -> None:
        super().__init__(settings, start)
        self.left = settings.generations
        self.parents = torch.empty(start.num_populations, 0, dtype=torch.float64)
        """(P, R) rewards of the parents, which are remembered in this order."""

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

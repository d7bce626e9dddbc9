"""Screening: few steps for many seeds, all steps for the promising ones."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from ..smc import Schedule, integer, is_named, unknown
from .around import Around
from .base import RewardFacts, Search, Start
from .feynman_kac import FKSteering
from .passes import Passes
from .strategy import Noise, Strategy


SAMPLERS = ("dpmsolver++", "own")


def best_of(num_particles: int) -> FKSteering:
    """Independent images without the sampler's noise."""
    return FKSteering(num_particles, schedule=Schedule(), noise=Noise(eta=0.0))


@dataclass(frozen=True)
class Screen(Around):
    """Solve many seeds in few steps, score the images, and run the best of them in full from the same initial noise.

    There is no noise in the loop that screens; other settings are those of `Around`.

    The few-step images are candidates too: whichever has the highest reward is returned. An image costs
    `num_particles` x `few_steps` denoiser rows, and `keep` x all steps.

    A whole solve of few steps says more of the image that a seed leads to than an x0 prediction after as many steps of
    the full loop, as previews by consistent solvers (arXiv 2512.13592) and lookahead (arXiv 2602.03211) use it.

    Attributes:
        num_particles: S, seeds per image; None for 12. A `generator` or `latents` per particle is one per seed.
        inner: how the seeds that are kept are run; its `num_particles` is replaced by `keep`.
        keep: how many seeds are run in full, from 0 to `num_particles`. With 0 the few-step images are all there is.
        few_steps: of the loop that screens.
        few_sampler: of the loop that screens: 'dpmsolver++' for DPM-Solver++ of second order, where the model can be
            sampled with it (flow models and those distilled for few steps keep their own), or 'own'.

    Raises:
        ValueError: for values out of range.
    """

    inner: Strategy = field(default_factory=lambda: best_of(2))
    keep: int = 2
    few_steps: int = 4
    few_sampler: str = "dpmsolver++"

    own: ClassVar[frozenset[str]] = frozenset({"num_particles", "calls"})

    def __post_init__(self) -> None:
        if self.num_particles is None:
            self._set(num_particles=12)
        super().__post_init__()
        self._set(
            keep=integer("keep", self.keep, 0),
            few_steps=integer("few_steps", self.few_steps, 1),
        )
        if self.keep > self.num_particles:
            raise ValueError(f"Expected to `keep` at most {self.num_particles} of as many seeds, but got {self.keep}.")
        if not is_named(self.few_sampler, SAMPLERS):
            raise unknown("`few_sampler`", self.few_sampler, SAMPLERS)
        if self.keep:
            self._set(inner=self.inner.replace(num_particles=self.keep))

    def start(self, start: Start) -> Search:
        return best_of(self.num_particles).start(start)

    def events(self, num_steps: int) -> Collection[int]:
        return ()

    @property
    def looks(self) -> bool:
        return bool(self.keep) and self.inner.looks

    def copying(self, num_steps: int) -> list[int]:
        return self.inner.copying(num_steps) if self.keep else []

    def check(self, reward: RewardFacts) -> None:
        if self.keep:
            super().check(reward)

    @property
    def least_particles(self) -> int:
        return max(self.keep, 1)

    def cost(self, num_steps: int) -> int:
        return self.num_particles * self.few_steps + (self.inner.cost(num_steps) if self.keep else 0)

    def conduct(self, passes: Passes) -> None:
        seeds = passes.run(best_of(self.num_particles), num_steps=self.few_steps, sampler=self.few_sampler)
        if not self.keep:
            return
        best = torch.tensor(seeds.rewards, dtype=torch.float64).argsort(dim=1, descending=True, stable=True)
        slots = torch.tensor(seeds.slots).gather(1, best[:, : self.keep]).sort(dim=1).values
        passes.run(self.inner, slots=slots)

"""Finish: the last part of the loop follows the best x0 prediction step by step."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..smc import Schedule, flag, real, step_of
from .base import Look, Outcome, Plan, Search, Start, Wrapper
from .feynman_kac import FKSteering
from .wrappers import Averaged


@dataclass(frozen=True)
class Finish(FKSteering):
    """Feynman-Kac steering in the middle of the loop; from `greedy_from` on all particles continue the best x0
    prediction at every step.

    Earlier, following the best at every step finds what fools the reward; late, the image is decided and its rendering
    alone is left to choose.

    Particles that continue the same one differ in nothing but their last noise z_j. So sum_j (r_j - mean r) z_j, of
    their rewards r_j, is a direction of ascent that needs no gradient, as in evolution strategies (Salimans et al.,
    arXiv 1703.03864). With `recombine` one particle of each population takes it, at the length that noise has in that
    step, in place of noise of its own.

    Attributes:
        schedule: events of the steering before; entries from `greedy_from` on are left out.
        greedy_from: share of the loop, in [0, 1].
        recombine: whether one particle takes recombined noise; needs three particles or more.

    Raises:
        ValueError: for a value out of range, or with `elite`, which the end of the loop would overrule.
    """

    schedule: Schedule = field(default_factory=lambda: Schedule(at=(0.4, 0.5, 0.6, 0.7)))
    greedy_from: float = field(default=0.72, kw_only=True)
    recombine: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(
            greedy_from=real("greedy_from", self.greedy_from, 0.0, 1.0), recombine=flag("recombine", self.recombine)
        )
        if self.elite:
            raise ValueError(
                f"'{self.name}' lets all particles continue the best one, so `elite` cannot keep another. Leave it out."
            )

    def greedy(self, num_steps: int) -> range:
        """The steps, counted from zero, after which all continue the best."""
        return range(step_of(self.greedy_from, num_steps), num_steps - 1)

    @property
    def looks(self) -> bool:
        return True

    def start(self, start: Start) -> Search:
        search = FinishSearch(self.replace(average_last=0).steering(start), self, start)
        return Averaged(search, self.average_last) if self.average_last else search

    def steering(self, start: Start) -> Search:
        """What there is before all continue the best."""
        return super().start(start)

    def sizes(self, num_steps: int) -> dict[int, int]:
        late = self.greedy(num_steps)
        return {step: size for step, size in super().sizes(num_steps).items() if step < late.start}

    def events(self, num_steps: int) -> Collection[int]:
        return {*super().events(num_steps), *self.greedy(num_steps)}

    def copying(self, num_steps: int) -> list[int]:
        return sorted({*super().copying(num_steps), *self.greedy(num_steps)})


class Greedy:
    """All continue the best particle, one of them with recombined noise where they are siblings.

    Attributes:
        recombine: whether one does.
        siblings: whether the particles differ in nothing but the last noise.
    """

    def __init__(self, recombine: bool) -> None:
        self.recombine, self.siblings = recombine, False

    def step(self, look: Look) -> Plan:
        """What becomes of the particles."""
        P, K = look.rewards.shape
        directions = None
        if self.recombine and self.siblings and K > 2:
            directions = torch.zeros(P, K, K, dtype=torch.float64)
            directions[:, -1] = torch.nan_to_num(look.rewards - look.rewards.mean(1, keepdim=True), 0.0, 0.0, 0.0)
        self.siblings = True
        return Plan(look.rewards.argmax(1, keepdim=True).expand(P, K), directions=directions)


class FinishSearch(Wrapper):
    """Another search up to some step, the best from there on."""

    def __init__(self, inner: Search, settings: Finish, start: Start) -> None:
        super().__init__(inner)
        self.late = settings.greedy(start.num_steps)
        self.greedy = Greedy(settings.recombine)
        self.begun = False
        """Whether all have continued the best."""

    @property
    def events(self) -> Collection[int]:  # type: ignore[override]
        return {*self.inner.events, *self.late}

    def step(self, look: Look) -> Plan:
        if look.step < self.late.start:
            return self.inner.step(look)
        self.begun = True
        return self.greedy.step(look)

    def adopt(self, ancestors: Tensor) -> None:
        if not self.begun:
            self.inner.adopt(ancestors)

    def finish(self, rewards: Tensor) -> Outcome:
        return Search.finish(self, rewards) if self.begun else super().finish(rewards)

    @property
    def log_normalizer(self) -> Tensor | None:
        return None if self.begun else self.inner.log_normalizer

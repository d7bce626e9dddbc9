"""Lookahead: judge particles by what they are some steps later (DLBS, arXiv 2501.19252; LiDAR, arXiv 2602.03211)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from ..smc import Current, FeynmanKac, Resampling, Schedule, TargetESS, integer
from .base import Look, Plan, Search, Start
from .strategy import ONE_PARTICLE, Strategy, coerced, named


@dataclass(frozen=True)
class Lookahead(Strategy):
    """Particles run ahead at every event without noise, are judged there, and the loop goes on from the event with
    the promising ones: an x0 prediction from further down the loop says more about the final image.

    The settings of every `Strategy` are there too.

    Attributes:
        schedule: the events; a plain sequence stands for `Schedule(at=...)`. `alive` has no use here.
        ahead: steps to run ahead, the loop's own; or with `leaps` None.
        leaps: large deterministic steps over the rest of the loop, in place of `ahead` small ones. Either costs as many
            denoiser rows per particle and event, or as steps are left, and one more to go on from the event's step.
        tempering: how strongly the rewards count.
        resampling: how the particles are chosen.

    Raises:
        ValueError: unless exactly one of `ahead` and `leaps` is given.
    """

    schedule: Schedule = field(default_factory=lambda: Schedule(at=(0.2, 0.4, 0.6)))
    ahead: int | None = None
    leaps: int | None = 2
    tempering: TargetESS = field(default_factory=TargetESS)
    resampling: Resampling = field(default_factory=Resampling)

    goes_back: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(
            schedule=coerced(Schedule, self.schedule),
            ahead=integer("ahead", self.ahead, 1, optional=True),
            leaps=integer("leaps", self.leaps, 1, optional=True),
            tempering=named("tempering", {TargetESS.name: TargetESS}, TargetESS, self.tempering),
            resampling=coerced(Resampling, self.resampling),
        )
        if (self.ahead is None) == (self.leaps is None):
            raise ValueError(f"Expected `ahead` or `leaps`, one of the two, but got {self.ahead} and {self.leaps}.")

    def stops(self, step: int, num_steps: int) -> list[int]:
        """The steps that are looked at ahead of an event; none of the last step."""
        last = num_steps - 1
        if self.leaps is None:
            assert self.ahead is not None
            return [min(step + self.ahead, last)] if step < last else []
        stops = (step + round((last - step) * (i + 1) / (self.leaps + 1)) for i in range(self.leaps))
        return sorted({stop for stop in stops if stop > step})

    def cost(self, num_steps: int) -> int:
        steps = num_steps
        for event in self.schedule.events(num_steps, self.num_particles):
            stops = self.stops(event, num_steps)
            there = stops[-1] - event if stops and self.leaps is None else len(stops)
            # And the event's own step again, to go on from it.
            steps += there + 1 if stops else 0
        return self.num_particles * steps

    def start(self, start: Start) -> Search:
        return _Lookahead(self, start)

    def caveats(self, num_steps: int) -> list[str]:
        few = self.schedule.shortfall(num_steps, self.num_particles)
        return [ONE_PARTICLE] if self.num_particles == 1 else [few] if few else []

    def copying(self, num_steps: int) -> list[int]:
        return sorted(self.schedule.events(num_steps, self.num_particles))


class _Lookahead(Search):
    def __init__(self, settings: Lookahead, start: Start) -> None:
        self.settings, self.num_steps, self.generators = settings, start.num_steps, start.generators
        self.steps = sorted(settings.schedule.events(start.num_steps, settings.num_particles))
        self.model = FeynmanKac(None, Current(), settings.tempering, settings.resampling)
        self.before = 0
        """The step to come back to."""
        self.ahead: list[int] = []
        """The steps still to be looked at before the loop goes back."""

    @property
    def events(self) -> Collection[int]:  # type: ignore[override]
        return self.ahead[:1] or self.steps

    @property
    def unscored(self) -> Collection[int]:  # type: ignore[override]
        return self.ahead[:-1] or (() if self.ahead else self.steps)

    def step(self, look: Look) -> Plan:
        everyone = look.everyone
        if not self.ahead:
            self.ahead = self.settings.stops(look.step, self.num_steps)
            # An event may come a step later than planned.
            self.before, self.steps = look.step, [step for step in self.steps if step > look.step]
            if not self.ahead:
                return Plan(everyone)
            still = torch.ones_like(everyone, dtype=torch.bool)
            if self.settings.leaps is None:
                return Plan(everyone, quiet=still, remember=everyone)
            return Plan(everyone, quiet=still, remember=everyone, resume=self.ahead[0], by="leap")
        self.ahead = [step for step in self.ahead if step > look.step]
        if self.ahead:
            return Plan(everyone, quiet=torch.ones_like(everyone, dtype=torch.bool), resume=self.ahead[0], by="leap")
        P, K = look.rewards.shape
        _, event = self.model.step(self.model.start(P, K), look.rewards, look.progress, K, self.generators)
        return Plan(
            event.ancestors + K,
            resume=self.before,
            by="memory",
            weights=event.weights,
            lmbda=event.lmbda,
            resampled=event.resampled,
        )

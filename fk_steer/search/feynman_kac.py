"""Feynman-Kac steering (Singhal et al., arXiv 2501.06848): weigh, resample, go on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..smc import (
    POTENTIALS,
    TEMPERINGS,
    Difference,
    FeynmanKac,
    Keywords,
    Potential,
    Resampling,
    Schedule,
    TargetESS,
    Tempering,
    flag,
    integer,
    real,
)
from .base import Look, Outcome, Plan, RewardFacts, Search, Start
from .improvement import Seen, allocate
from .passes import Passes
from .strategy import ONE_PARTICLE, Strategy, coerced, named
from .wrappers import Averaged, EarlyStop, Elite, Standardized


@dataclass(frozen=True)
class Stop(Keywords):
    """When a prompt is good enough.

    Attributes:
        target_reward: a prompt whose best x0 prediction reaches this reward goes on with that particle alone; the
            denoiser rows that saves are reported. A cascade's is on the scale of its last reward.
        rollover: spend those rows on running prompts that have not reached it again, from other noise, pass by pass the
            one that promises most improvement (see `Allocation`); the better images are kept.

    Raises:
        ValueError: for a target that is not a number.
    """

    target_reward: float
    rollover: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "target_reward", real("target_reward", self.target_reward))
        object.__setattr__(self, "rollover", flag("rollover", self.rollover))


@dataclass(frozen=True)
class FKSteering(Strategy):
    """Settings of Feynman-Kac steering (Singhal et al., arXiv 2501.06848). Validates itself; the defaults are the
    preset `adaptive`.

    Each part may be given as an object, as its name, or as the mapping that `to_dict` makes of it. `noise`, `preview`,
    `seed`, `steps`, `sampler` and `calls` are those of every `Strategy`.

    Attributes:
        num_particles: K, particles per image, at least 1. The loop's cost grows with it unless `schedule` prunes.
        lmbda: strength of the tilt exp(lambda r), finite and at least 0. None takes the reward's `default_lmbda`;
            with the tempering 'target-ess' it is an upper limit, and None is no limit.
        potential: how rewards along the way are turned into weights: 'difference', 'max', 'sum', 'current', or a
            `Potential`, for example `Max(floor=0.0)`.
        tempering: lambda along the way: 'constant', 'rising', 'geometric', 'target-ess', or a `Tempering`.
        schedule: when x0 predictions are scored and how many particles live on. A plain sequence stands for
            `Schedule(at=...)`.
        resampling: 'ssp', 'systematic', 'stratified', 'residual', 'multinomial', 'top-k', 'argmax', or a `Resampling`.
        elite: from the first event in the noise window or the step before it on, the particle with the highest reward
            at that event goes on without noise and survives every resampling, so that the result is never worse than
            what the best seed gives. For samplers whose noise can be switched; others are refused.
        stop: when a prompt is good enough. A number stands for `Stop(target_reward)`; None never stops.
        standardize: weigh z-scores of the rewards within each prompt instead of the rewards.
        average_last: rank the final images by the mean of their reward and those of so many of the last x0 predictions
            on their own path, which are less noisy together than the last one alone; 0 ranks by their rewards.

    Raises:
        ValueError: for a value out of range or an unknown name, saying which are known.
    """

    lmbda: float | None = None
    potential: Potential = field(default_factory=Difference)
    tempering: Tempering = field(default_factory=TargetESS)
    schedule: Schedule = field(default_factory=lambda: Schedule(at=(0.4, 0.5, 0.6, 0.7, 0.8, 0.9)))
    resampling: Resampling = field(default_factory=Resampling)
    elite: bool = field(default=False, kw_only=True)
    stop: Stop | None = field(default=None, kw_only=True)
    standardize: bool = field(default=False, kw_only=True)
    average_last: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(
            lmbda=real("lmbda", self.lmbda, 0.0, optional=True),
            potential=named("potential", POTENTIALS, Potential, self.potential),
            tempering=named("tempering", TEMPERINGS, Tempering, self.tempering),
            schedule=coerced(Schedule, self.schedule),
            resampling=coerced(Resampling, self.resampling),
            elite=flag("elite", self.elite),
            stop=None if self.stop is None else coerced(Stop, self.stop),
            standardize=flag("standardize", self.standardize),
            average_last=integer("average_last", self.average_last, 0),
        )

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> FKSteering:
        """The settings of a preset, with any field replaced. `fk-steer presets` prints them.

        Raises:
            ValueError: for an unknown name, or that of a preset which is not Feynman-Kac steering, listing the known
                ones.
        """
        from .presets import PRESETS, preset

        found = preset(name, **overrides)
        if not isinstance(found, FKSteering):
            known = [key for key, entry in PRESETS.items() if isinstance(entry.settings, FKSteering)]
            raise ValueError(f"'{name}' is not Feynman-Kac steering. Those that are: {', '.join(known)}.")
        return found

    def start(self, start: Start) -> Search:
        search: Search = SMC(self, start)
        if self.elite:
            search = Elite(search)
        if self.standardize or start.reward.standardize:
            search = Standardized(search)
        if self.stop is not None:
            search = EarlyStop(search, self.stop.target_reward)
        return Averaged(search, self.average_last) if self.average_last else search

    def sizes(self, num_steps: int) -> dict[int, int]:
        """How many particles are alive after each event, by its step, counted from zero."""
        return self.schedule.events(num_steps, self.num_particles)

    def events(self, num_steps: int) -> Collection[int]:
        return self.sizes(num_steps).keys()

    @property
    def looks(self) -> bool:
        return bool(self.schedule.at)

    def copying(self, num_steps: int) -> list[int]:
        events = self.sizes(num_steps)
        before = [self.num_particles, *events.values()]
        late = self.resampling.after_noise
        return [s + late for (s, after), size in zip(events.items(), before) if self.resampling.copies(size, after)]

    def check(self, reward: RewardFacts) -> None:
        if self.tempering.needs_lmbda and self.lmbda is None and reward.default_lmbda is None:
            raise ValueError(
                f"Reward '{reward.name}' has no `default_lmbda`. Set `lmbda` in the steering settings, or use the "
                "preset 'adaptive', which needs none."
            )
        if self.stop is not None and reward.relative:
            raise ValueError(
                f"`target_reward` needs a reward with a scale of its own, but '{reward.name}' only compares the "
                "particles of a prompt with one another."
            )

    def conduct(self, passes: Passes) -> None:
        first = passes.run(self)
        if self.stop is not None and self.stop.rollover:
            seen = Seen(passes.num_populations)
            seen.add(first)
            cost = -(-(first.rows + first.saved) // passes.num_populations)
            allocate(
                seen, first.saved, cost, lambda populations: passes.run(self, populations), self.stop.target_reward
            )

    def caveats(self, num_steps: int) -> list[str]:
        if not self.looks or (self.stop is not None and self.stop.rollover):
            return []
        few = self.schedule.shortfall(num_steps, self.num_particles)
        return [ONE_PARTICLE] if self.num_particles == 1 else [few] if few else []

    @property
    def least_particles(self) -> int:
        return max((entry for entry in self.schedule.alive or () if isinstance(entry, int)), default=1)

    def cost(self, num_steps: int) -> int:
        alive, calls = self.num_particles, 0
        events = self.sizes(num_steps)
        for step in range(num_steps):
            calls += alive
            alive = events.get(step, alive)
        return calls


class SMC(Search):
    """Weigh the particles at every event, resample, go on."""

    def __init__(self, settings: FKSteering, start: Start) -> None:
        self.sizes = settings.sizes(start.num_steps)
        self.events = self.sizes.keys()
        self.generators = start.generators
        lmbda = settings.lmbda
        if lmbda is None and settings.tempering.needs_lmbda:
            lmbda = start.reward.default_lmbda
        self.model = FeynmanKac(lmbda, settings.potential, settings.tempering, settings.resampling)
        self.state = self.model.start(start.num_populations, settings.num_particles)
        self.consistent = (
            settings.potential.exact_terminal
            and not settings.resampling.biased
            and not (settings.standardize or start.reward.standardize or start.reward.relative)
        )
        self._proposed = (torch.empty(0), torch.empty(0))

    def step(self, look: Look) -> Plan:
        size = [alive for step, alive in self.sizes.items() if step <= look.step][-1]
        self.state = self.model.weigh(self.state, look.rewards, look.progress)
        ancestors, resampled = self._proposed = self.model.select(self.state, size, self.generators)
        return Plan(
            ancestors,
            after_noise=self.model.resampling.after_noise,
            weights=self.state.weights,
            lmbda=self.state.lmbda,
            resampled=resampled,
        )

    def adopt(self, ancestors: Tensor) -> None:
        proposed, resampled = self._proposed
        overruled = (ancestors.sort(1).values != proposed.sort(1).values).any(1)
        if overruled.any():
            self.consistent = False
        # A population in which another search has moved particles has no weights to carry.
        self.state = self.model.follow(self.state, ancestors, resampled | overruled)

    def finish(self, rewards: Tensor) -> Outcome:
        self.state, event = self.model.finish(self.state, rewards)
        return Outcome(event.weights, event.lmbda)

    @property
    def log_normalizer(self) -> Tensor | None:
        return self.state.log_normalizer if self.consistent else None

"""`FKSteering`: everything that defines a steered run, as data, and the presets."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .smc import POTENTIALS, RESAMPLERS, TEMPERINGS, Constant, Geometric, Rising, Schedule, TargetESS, Tempering


def _known(kind: str, name: Any, known: Mapping[str, Any]) -> None:
    if name not in known:
        raise ValueError(f"Unknown {kind} {name!r}. Known: {', '.join(known)}.")


@dataclass(frozen=True)
class FKSteering:
    """Settings of Feynman-Kac steering (Singhal et al., arXiv 2501.06848). Validates itself; the defaults are the
    preset `adaptive`.

    Attributes:
        num_particles: K, particles per image, at least 1. The loop's cost grows with it unless `schedule` prunes.
        lmbda: strength of the tilt exp(lambda r), finite and at least 0. None takes the reward's `default_lmbda`;
            with the tempering 'target-ess' it is an upper limit, and None is no limit.
        potential: how rewards along the way are turned into weights: 'difference', 'max', 'sum' or 'current'.
        resampler: 'ssp', 'systematic', 'stratified', 'residual', 'multinomial', 'top-k' or 'argmax'.
        tempering: lambda along the way: a name ('constant', 'rising', 'geometric', 'target-ess') or an instance with
            settings of its own.
        schedule: when x0 predictions are scored, how many particles live on and when noise is injected. A plain
            sequence stands for `Schedule(at=...)`.
        ess_threshold: resample a prompt's particles when their effective sample size is at most this fraction of their
            number, in [0, 1]; 1 is always, 0 never.
        floor: rewards below it count as it under the 'max' potential; None for no floor.
        exact_terminal: weigh final images with exp(lambda r(x0)) / (product of potentials), the weight that makes the
            particles target p(x0) exp(lambda r(x0)). False does as the reference implementation: the running statistic
            in place of r(x0).
        resample_after_noise: resample x_{t-1} after the scheduler's noise, as the reference implementation does. Copies
            then share the noise of one step.
        eta: noise of samplers whose noise can be switched, in [0, 1]. DDIM and TCD take it as their `eta`; Euler
            (ancestral or not), DPM-Solver++ (SDE or not) and flow-matching Euler sample stochastically when it is
            above 0 and deterministically when it is 0. Other samplers keep the noise they have. An `eta` in the
            pipeline call wins.
        elite: from the first event in the noise window or the step before it on, the particle with the highest reward
            at that event goes on without noise and survives every resampling, so that the result is never worse than
            what the best seed gives. For samplers whose noise can be switched; others are refused.
        standardize: weigh z-scores of the rewards within each prompt instead of the rewards.
        target_reward: a prompt whose best x0 prediction reaches this reward goes on with that particle alone; the
            denoiser rows that saves are reported. A cascade's is on the scale of its last reward. None never stops.
        rollover: spend those rows on running prompts that have not reached `target_reward` again, from other noise,
            those nearest to it first; the better images are kept.
        preview_decoder: decodes x0 predictions in place of the pipeline's VAE: an `AutoencoderTiny` or the hub id or
            path of one, for example 'madebyollin/taesd' for SD, 'madebyollin/taesdxl' for SDXL and 'shapes' for the
            bundled models.
        preview_until: progress in [0, 1] of the loop up to which the preview decoder is used.
        reward_batch_size, decode_batch_size, denoise_batch_size: images per reward call, latents per VAE call and rows
            per denoiser call (a particle is two rows under classifier-free guidance). None is everything at once; set
            all three for a peak memory that does not grow with the number of particles.
        seed: of a run that is given no generator.

    Raises:
        ValueError: for a value out of range or an unknown name, saying which are known.
    """

    num_particles: int = 4
    lmbda: float | None = None
    potential: str = "difference"
    resampler: str = "ssp"
    tempering: Tempering | str = field(default_factory=TargetESS)
    schedule: Schedule = field(default_factory=lambda: Schedule(at=(0.4, 0.5, 0.6, 0.7, 0.8, 0.9)))
    ess_threshold: float = 1.0
    floor: float | None = None
    exact_terminal: bool = True
    resample_after_noise: bool = False
    eta: float = 1.0
    elite: bool = False
    standardize: bool = False
    target_reward: float | None = None
    rollover: bool = False
    preview_decoder: Any = None
    preview_until: float = 1.0
    reward_batch_size: int | None = None
    decode_batch_size: int | None = None
    denoise_batch_size: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        _known("potential", self.potential, POTENTIALS)
        _known("resampler", self.resampler, RESAMPLERS)
        if isinstance(self.tempering, str):
            _known("tempering", self.tempering, TEMPERINGS)
            object.__setattr__(self, "tempering", TEMPERINGS[self.tempering]())
        if not isinstance(self.schedule, Schedule):
            object.__setattr__(self, "schedule", Schedule(at=tuple(self.schedule)))
        for name in ("num_particles", "reward_batch_size", "decode_batch_size", "denoise_batch_size"):
            size, none = getattr(self, name), "" if name == "num_particles" else "None or "
            if not (isinstance(size, int) and size >= 1) and not (none and size is None):
                raise ValueError(f"Expected `{name}` to be {none}an integer of at least 1, but got {size!r}.")
        if self.seed is not None and not (isinstance(self.seed, int) and self.seed >= 0):
            raise ValueError(f"Expected `seed` to be None or an integer of at least 0, but got {self.seed!r}.")
        if self.target_reward is not None and math.isnan(self.target_reward):
            raise ValueError("Expected `target_reward` to be a number, but got NaN.")
        if self.lmbda is not None and not (math.isfinite(self.lmbda) and self.lmbda >= 0):
            raise ValueError(f"Expected `lmbda` to be finite and at least 0, but got {self.lmbda}.")
        for name in ("ess_threshold", "eta", "preview_until"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"Expected `{name}` to be between 0.0 and 1.0, but got {value}.")
        if self.rollover and self.target_reward is None:
            raise ValueError("`rollover` spends what prompts save by reaching `target_reward`, which is not set.")
        if self.floor is not None and self.potential != "max":
            raise ValueError(f"`floor` is only used by the potential 'max', but the potential is '{self.potential}'.")

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> FKSteering:
        """The settings of a preset, with any field replaced. `fk-steer presets` prints them.

        Raises:
            ValueError: for an unknown name, listing the known ones.
        """
        _known("preset", name, PRESETS)
        return dataclasses.replace(PRESETS[name].settings, **overrides)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that survive JSON; `from_dict` is the inverse. A `preview_decoder` object is named only."""
        preview = self.preview_decoder
        if preview is not None and not isinstance(preview, str):
            preview = type(preview).__name__
        settings = dataclasses.asdict(dataclasses.replace(self, preview_decoder=preview))
        settings["tempering"] = {"name": self.tempering.name, **settings["tempering"]}  # type: ignore[union-attr]
        return json.loads(json.dumps(settings))

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> FKSteering:
        """Inverse of `to_dict`."""
        settings = dict(settings)
        tempering = dict(settings["tempering"])
        settings["tempering"] = TEMPERINGS[tempering.pop("name")](**tempering)
        settings["schedule"] = Schedule(**settings["schedule"])
        return cls(**settings)

    def trajectories(self, num_steps: int) -> float:
        """Cost of the denoiser in full trajectories per image, copies that no noise has parted yet counted too."""
        alive, rows = self.num_particles, 0
        events = self.schedule.events(num_steps, self.num_particles)
        for step in range(num_steps):
            rows += alive
            alive = events.get(step, alive)
        return rows / num_steps

    def within(self, budget: float, num_steps: int) -> FKSteering:
        """These settings with as many particles as cost no more than `budget` trajectories per image.

        Raises:
            ValueError: if the fewest that the schedule allows cost more already.
        """
        fewest = max((entry for entry in self.schedule.alive or () if isinstance(entry, int)), default=1)
        # A particle costs at least one step.
        for num_particles in range(int(budget * num_steps), fewest - 1, -1):
            settings = dataclasses.replace(self, num_particles=num_particles)
            if settings.trajectories(num_steps) <= budget + 1e-9:
                return settings
        raise ValueError(f"No number of particles fits a budget of {budget:g} trajectories with this schedule.")

    def duplicating(self, events: Mapping[int, int]) -> list[int]:
        """Those of `events` (step -> particles alive after it) at which resampling can make copies of a particle."""
        before = [self.num_particles, *events.values()]
        return [
            step
            for (step, after), size in zip(events.items(), before)
            if after > size or (after > 1 and self.resampler != "top-k" and (self.ess_threshold > 0.0 or after != size))
        ]


@dataclass(frozen=True)
class Preset:
    summary: str
    settings: FKSteering


PRESETS: dict[str, Preset] = {
    "adaptive": Preset(
        "Our default: at six events from 40% of the loop on, SSP with a lambda that leaves half of the effective "
        "sample size. Needs no lambda.",
        FKSteering(),
    ),
    "fk": Preset(
        "For a lambda of one's own: SSP when the ESS falls below half, weights carried in between, lambda rising to "
        "its value, nothing scored in the first quarter.",
        FKSteering(tempering=Rising(), schedule=Schedule(at=(0.25, 0.4, 0.55, 0.7, 0.85)), ess_threshold=0.5),
    ),
    "fk-paper": Preset(
        "The published settings and the reference's choices: DDIM eta 1, max potential with floor 0, multinomial "
        "resampling in steps 20, 40, 60 and 80 of 100, counted from zero, after the noise. Use 100 steps.",
        FKSteering(
            potential="max",
            resampler="multinomial",
            tempering=Constant(),
            schedule=Schedule(at=(0.21, 0.41, 0.61, 0.81)),
            floor=0.0,
            exact_terminal=False,
            resample_after_noise=True,
        ),
    ),
    "bfs": Preset(
        "Breadth-first search (Zhang et al., arXiv 2505.23614): SSP, max potential, lambda rising to twice its value.",
        FKSteering(
            potential="max",
            tempering=Rising(end=2.0),
            schedule=Schedule(at=(0.2, 0.4, 0.6, 0.8)),
        ),
    ),
    "das": Preset(
        "DAS without gradients (Kim et al., arXiv 2501.05803): difference potential, geometric tempering, SSP when the "
        "ESS falls below half.",
        FKSteering(
            tempering=Geometric(),
            schedule=Schedule(at=tuple(step / 20 for step in range(1, 20))),
            ess_threshold=0.5,
        ),
    ),
    "psp": Preset(
        "Prune seeds on a deterministic sampler (arXiv 2607.21591): the better half goes on at 25% and again at 50% of "
        "the loop. 8 particles cost 4 trajectories.",
        FKSteering(
            num_particles=8,
            potential="current",
            resampler="top-k",
            schedule=Schedule(at=(0.25, 0.5), alive=(0.5, 0.25)),
            eta=0.0,
        ),
    ),
    "svdd": Preset(
        "SVDD with one beam (Li et al., arXiv 2408.08252): all go on from the best particle, 19 times along the loop.",
        FKSteering(
            potential="current",
            resampler="argmax",
            schedule=Schedule(at=tuple(step / 20 for step in range(1, 20))),
        ),
    ),
    "hybrid": Preset(
        "Prune seeds on a deterministic sampler, branch the survivors with noise in a middle window while the best one "
        "goes on without, and finish deterministically. 8 particles cost 4 trajectories.",
        FKSteering(
            num_particles=8,
            potential="current",
            resampler="top-k",
            schedule=Schedule(at=(0.25, 0.5, 0.75), alive=(0.375, 0.5, 0.125), noise=(0.5, 0.75)),
            elite=True,
        ),
    ),
    "best-of-n": Preset(
        "Independent images on a deterministic sampler, the best one first.",
        FKSteering(schedule=Schedule(), eta=0.0),
    ),
}

DEFAULT_PRESET = "adaptive"

"""What a generation run consists of: its settings, prompts, and the steered calls that its samples are batched into."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ...bundled import fitted_options
from ...combinations import by_reward
from ...defaults import DEFAULT_REWARD
from ...loading import DTYPES
from ...report.trace import lenient, strict
from ...rewards.chat import check_recordable
from ...search import DEFAULT_PRESET, Strategy
from ...search.presets import asked
from ...smc import brief, unknown
from ...smc.checks import integer, numbers, real
from ..prompts import evenly, prompt_list


@dataclass(frozen=True)
class GenerationSettings:
    """Everything that the images depend on, and how many rows are worked on at a time.

    Attributes:
        model: hub id or folder of a pipeline, or the name of a bundled one.
        prompts: 'geneval', 'drawbench', 'shapes' (the bundled world's held-out prompts), or a file: JSON lines with a
            `prompt` each, a CSV file with the columns `Prompts` and `Category`, or text with a prompt a line.
        prompts_file: where the list 'geneval' or 'drawbench' is; None to fetch it, once.
        limit: at most so many prompts, the first of each task or category, as evenly over them as can be; None for all.
            A prompt's number stays that of the whole list.
        reward: name of the guide; None for no steering: a sample is one image of the stock pipeline, from the noise
            that the first particle of a steered sample starts from.
        reward_options: of the guide, see `fk_steer.load_reward`. A bundled model's rewards are its own unless
            `path` is given.
        preset: name of the steering settings.
        particles: K; None for the preset's.
        budget: denoiser calls per sample, which choose the particles, and the steps and sampler that are left open;
            None for none.
        lmbda: strength of the tilt; None for the reward's.
        changes: further settings in place of the preset's, dotted for parts of them: {'schedule.at': (0.4, 0.6)}.
        samples_per_prompt: independent samples per prompt and seed.
        seeds: samples 0 to `samples_per_prompt` - 1 of a prompt have the first seed, the next ones the second, and so
            on.
        steps: of the denoising loop; None for 50, bundled models 25, or what the preset or budget chooses.
        guidance: guidance scale; None for 7.5, bundled models 3.
        scheduler: name of a sampler or Diffusers class; None for the model's, or DDIM if that adds no noise and the
            settings need some, or what the preset or budget chooses.
        height: of the images in pixels; None for the model's.
        width: of the images in pixels; None for the model's.
        batch_size: samples per steered call. A call holds samples of one prompt or all samples of several.
        max_rows: denoiser rows, latents decoded and images scored at a time within a call; None for all. It changes no
            image and may be another when a run is taken up again.
        dtype: of the pipeline: 'float32', 'float16', 'bfloat16' or 'auto'.
        lora: weights of LoRA for the pipeline, see `load_pipeline`; None for none.

    Raises:
        ValueError: for a value out of range, an unknown preset, `particles`, `budget` or `lmbda` without a reward,
            particles beside a budget, or a password among the options of the reward.
    """

    model: str
    prompts: str = "geneval"
    prompts_file: str | Path | None = None
    limit: int | None = None
    reward: str | None = DEFAULT_REWARD
    reward_options: Mapping[str, Any] = field(default_factory=dict)
    preset: str = DEFAULT_PRESET
    particles: int | None = None
    budget: int | None = None
    lmbda: float | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    samples_per_prompt: int = 4
    seeds: tuple[int, ...] = (0,)
    steps: int | None = None
    guidance: float | None = None
    scheduler: str | None = None
    height: int | None = None
    width: int | None = None
    batch_size: int = 4
    max_rows: int | None = None
    dtype: str = "auto"
    lora: str | None = None

    def __post_init__(self) -> None:
        for name in ("samples_per_prompt", "batch_size"):
            object.__setattr__(self, name, integer(name, getattr(self, name), 1))
        for name, least in {"limit": 1, "steps": 1, "height": 8, "width": 8, "max_rows": 1}.items():
            object.__setattr__(self, name, integer(name, getattr(self, name), least, optional=True))
        object.__setattr__(self, "guidance", real("guidance", self.guidance, optional=True))
        seeds = numbers("seeds", self.seeds)
        if not seeds or len(set(seeds)) < len(seeds) or any(not isinstance(seed, int) or seed < 0 for seed in seeds):
            raise ValueError(f"Expected `seeds` to be different integers of at least 0, but got {brief(self.seeds)}.")
        object.__setattr__(self, "seeds", seeds)
        for name in ("model", "prompts", "dtype"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"Expected `{name}` to be a text, but got {brief(getattr(self, name))}.")
        if self.dtype not in DTYPES:
            raise unknown("dtype", self.dtype, DTYPES)
        if self.scheduler is not None and not isinstance(self.scheduler, str):
            raise ValueError(f"Expected `scheduler` to be the name of a class, but got {brief(self.scheduler)}.")
        if not isinstance(self.reward_options, Mapping):
            raise ValueError(f"Expected `reward_options` to be a mapping, but got {brief(self.reward_options)}.")
        if self.reward is None:
            for name in ("particles", "budget", "lmbda", "changes", "max_rows"):
                if getattr(self, name) not in (None, {}):
                    raise ValueError(f"`{name}` needs a `reward` to steer by.")
        if not isinstance(self.changes, Mapping):
            raise ValueError(
                f"Expected `changes` to be a mapping from settings to values, but got {brief(self.changes)}."
            )
        if self.reward is not None:
            for options in by_reward(self.reward, self.reward_options).values():
                check_recordable(options)
        self.steering()

    def steering(self) -> Strategy | None:
        """The settings of the steered calls; None without a reward."""
        if self.reward is None:
            return None
        elsewhere = {"steps": self.steps, "sampler": self.scheduler}
        return asked(
            self.preset,
            particles=self.particles,
            budget=self.budget,
            lmbda=self.lmbda,
            changes=self.changes,
            elsewhere=[name for name, value in elsewhere.items() if value is not None],
        )


@dataclass(frozen=True)
class SampleRecord:
    """What is known of one image beside the image.

    Attributes:
        prompt_index: number of the prompt, that of its folder.
        sample: number of the sample, that of its image.
        seed: of the sample, one of `GenerationSettings.seeds`.
        prompt: its text.
        preset: name of the steering settings; None without steering.
        reward: of the image, the best of `rewards`; None without steering.
        rewards: of the particles alive at the end, best first; empty without steering.
        scores: the parts of a composite reward, in the order of `rewards`.
        nfe: denoiser rows, an equal share of its call's.
        reward_calls: images scored, an equal share of its call's.
        seconds: wall time, an equal share of its call's.
        sha256: digest of the image's file; empty before that is written.
    """

    prompt_index: int
    sample: int
    seed: int
    prompt: str
    preset: str | None
    reward: float | None
    rewards: list[float]
    scores: dict[str, list[float]]
    nfe: float
    reward_calls: float
    seconds: float
    sha256: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for standard JSON: infinite rewards become strings."""
        return strict(asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SampleRecord:
        """Inverse of `to_dict`.

        Raises:
            KeyError: if fields are missing.
            TypeError: for fields that there are not.
            ValueError: for values that are none.
        """
        made = cls(**{**values, **{name: lenient(values[name]) for name in ("reward", "rewards", "scores")}})
        for name in ("nfe", "reward_calls", "seconds"):
            if not isinstance(getattr(made, name), (int, float)):
                raise ValueError(f"expected `{name}` to be a number, got {getattr(made, name)!r}")
        if not isinstance(made.rewards, list) or not isinstance(made.reward, (int, float, type(None))):
            raise ValueError("expected `reward` to be a number and `rewards` a list")
        return made


@dataclass(frozen=True)
class Prompt:
    """A prompt, its number in the whole list and its entry there, with the text as `prompt`."""

    index: int
    entry: dict[str, Any]

    @property
    def text(self) -> str:
        return self.entry["prompt"]


@dataclass(frozen=True)
class Sample:
    """One image to make.

    Attributes:
        number: among all samples of the prompt.
        seed: one of the settings'.
        repeat: number among the samples of that seed.
    """

    prompt: Prompt
    number: int
    seed: int
    repeat: int


@dataclass(frozen=True)
class Plan:
    """A run with nothing left open.

    Attributes:
        settings: with the model's steps and guidance scale, and the options of its reward.
        prompts: those to make.
    """

    settings: GenerationSettings
    prompts: tuple[Prompt, ...]

    @classmethod
    def of(cls, settings: GenerationSettings) -> Plan:
        """
        Raises:
            ValueError, OSError: if the prompts cannot be had.
        """
        from ...shapes import BUNDLED, GUIDANCE_SCALE, NUM_INFERENCE_STEPS

        bundled = settings.model in BUNDLED
        options = fitted_options(settings.model, settings.reward, settings.reward_options) if settings.reward else {}
        guidance = settings.guidance
        if guidance is None:
            guidance = GUIDANCE_SCALE if bundled else 7.5
        steering = settings.steering()
        usual = NUM_INFERENCE_STEPS if bundled else 50
        entries = prompt_list(settings.prompts, settings.prompts_file)
        return cls(
            replace(
                settings,
                reward_options=options,
                steps=settings.steps or (usual if steering is None or steering.steps_are_usual else None),
                guidance=guidance,
            ),
            tuple(Prompt(index, entries[index]) for index in evenly(entries, settings.limit)),
        )

    @property
    def samples_of_prompt(self) -> int:
        return self.settings.samples_per_prompt * len(self.settings.seeds)

    @property
    def num_samples(self) -> int:
        return len(self.prompts) * self.samples_of_prompt

    def samples(self, prompt: Prompt) -> list[Sample]:
        """The samples of a prompt, by number."""
        repeats = [(seed, repeat) for seed in self.settings.seeds for repeat in range(self.settings.samples_per_prompt)]
        return [Sample(prompt, number, *which) for number, which in enumerate(repeats)]

    @cached_property
    def shares(self) -> list[tuple[Prompt, ...]]:
        """The prompts in the portions that workers take: as many as fit one call, at least one."""
        size = max(1, self.settings.batch_size // self.samples_of_prompt)
        return [self.prompts[start : start + size] for start in range(0, len(self.prompts), size)]

    def calls(self, share: tuple[Prompt, ...]) -> list[list[Sample]]:
        """The samples of a share in the calls that make them."""
        samples = [sample for prompt in share for sample in self.samples(prompt)]
        size = self.settings.batch_size
        return [samples[start : start + size] for start in range(0, len(samples), size)]

    def to_dict(self) -> dict[str, Any]:
        """All that the images depend on, as plain values. Prompts count by their content, wherever they come from."""
        steering = self.settings.steering()
        settings = {one.name: getattr(self.settings, one.name) for one in fields(self.settings)}
        # What the changes come to is in `steering`.
        del settings["prompts_file"], settings["max_rows"], settings["changes"]
        settings["prompts"] = Path(settings["prompts"]).name
        settings["reward_options"] = dict(settings["reward_options"])
        if steering is None:
            settings["preset"] = None
        else:
            settings["particles"] = steering.num_particles if steering.calls is None else None
            settings["budget"] = steering.calls
            settings["lmbda"] = getattr(steering, "lmbda", None)
        settings["steering"] = None if steering is None else steering.to_dict()
        content = json.dumps([asdict(prompt) for prompt in self.prompts], sort_keys=True)
        settings["prompts_sha256"] = hashlib.sha256(content.encode()).hexdigest()
        return json.loads(json.dumps(settings))

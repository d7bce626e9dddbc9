"""Images for a list of prompts, steered or not: any number of processes or machines, one folder, nothing lost.

A folder is the record of a run, in GenEval's official layout with a record beside each image:

    settings.json               what the images were made with
    00000/metadata.jsonl        the prompt's entry of the list, for example its line of GenEval's metadata
    00000/samples/00000.png     the best image of a sample by final reward
    00000/records/00000.json    its `SampleRecord`
    00000/grid.png              the prompt's samples side by side

A sample is one steered call of K particles, of which the best image is kept; the samples of a prompt are independent
repeats. Its noise follows from (seed, number of the prompt, number of the sample) alone, and the calls that samples are
batched into are fixed by the settings, so that a run gives the same bytes however it is spread, interrupted and resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fk_steer.config import DEFAULT_PRESET


@dataclass(frozen=True)
class GenerationSettings:
    """Everything that the images depend on.

    Attributes:
        model: hub id or folder of a pipeline, or the name of a bundled one.
        prompts: 'geneval', 'drawbench', 'shapes' (the bundled world's held-out prompts), or a file: JSON lines with a
            `prompt` each, a CSV file with the columns `Prompts` and `Category`, or text with a prompt a line.
        prompts_file: where the list 'geneval' or 'drawbench' is; None to fetch it, once.
        limit: at most so many prompts, the first of each task or category, as evenly over them as can be; None for all.
            A prompt's number stays that of the whole list.
        reward: name of the guide; None for no steering: a sample is one image of the stock pipeline, from the noise
            that the first particle of a steered sample starts from.
        reward_options: of the guide, see `fk_steer.load_reward`. A bundled model's 'clip-score' is its own unless
            `path` is given.
        preset: name of the steering settings.
        particles: K; None for the preset's.
        lmbda: strength of the tilt; None for the reward's.
        samples_per_prompt: independent samples per prompt and seed.
        seeds: samples 0 to `samples_per_prompt` - 1 of a prompt have the first seed, the next ones the second, and so
            on.
        steps: of the denoising loop; None for 50, bundled models 25.
        guidance: guidance scale; None for 7.5, bundled models 3.
        scheduler: name of a Diffusers class; None for the model's, or DDIM if that adds no noise and the settings need
            some.
        height, width: in pixels; None for the model's.
        batch_size: samples per steered call. A call holds samples of one prompt or all samples of several.
        max_rows: denoiser rows, latents decoded and images scored at a time within a call; None for all.
        dtype: of the pipeline: 'float32', 'float16', 'bfloat16' or 'auto'.

    Raises:
        ValueError: for a value out of range, an unknown preset, or `particles` or `lmbda` without a reward.
    """

    model: str
    prompts: str = "geneval"
    prompts_file: str | Path | None = None
    limit: int | None = None
    reward: str | None = "clip-score"
    reward_options: Mapping[str, Any] = field(default_factory=dict)
    preset: str = DEFAULT_PRESET
    particles: int | None = None
    lmbda: float | None = None
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


def generate(
    settings: GenerationSettings,
    out: str | Path,
    *,
    processes: int = 1,
    engine: str = "local",
    device: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Make what is missing in a folder; returns when it is complete, at once and without loading a model if it is.

    Under `accelerate launch`, or started several times on a folder that all can see, the processes share the work and
    all return when it is done; what a process that died was at is taken over by the others.

    Args:
        settings: what to make.
        out: the folder.
        processes: workers on this machine. Each has one thread, or a GPU in turn.
        engine: 'local', or 'ray' for `processes` workers on a Ray cluster; lost ones are replaced.
        device: None for CUDA if there is a device, else the CPU.
        progress: called with the numbers of samples done and of all.

    Raises:
        ValueError: if the folder was made with other settings, naming the first that differs.
        OSError: if the prompts cannot be had or a file not be written. What was finished is there.
        ImportError: for the engine 'ray' without Ray.
        RuntimeError: if all workers were lost.
    """
    raise NotImplementedError


def is_complete(settings: GenerationSettings, out: str | Path) -> bool:
    """Whether a folder holds everything that `generate` makes with these settings.

    Raises:
        ValueError: if the folder was made with other settings, naming the first that differs.
        OSError: if the prompts cannot be had.
    """
    raise NotImplementedError


def read_records(out: str | Path) -> list[SampleRecord]:
    """The records of a folder, by prompt and sample; those of unfinished runs too."""
    raise NotImplementedError

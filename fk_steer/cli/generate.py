"""`fk-steer generate`."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..bundled import bundled_options
from ..console import console, stoppable
from ..options import reward_options
from .options import Device, Repair, one_line_errors


class PipelineKind(str, Enum):
    auto = "auto"
    sd = "sd"
    sdxl = "sdxl"


class DType(str, Enum):
    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to generate.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Hub id or folder of a pipeline, or a bundled one: 'shapes', 'shapes-xl'. [default: 'shapes']"
        ),
    ] = None,
    pipeline: Annotated[PipelineKind, typer.Option(help="Class of the pipeline.")] = PipelineKind.auto,
    reward: Annotated[str, typer.Option(help="Reward to steer by; see `fk-steer rewards`.")] = "clip-score",
    reward_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Option of the reward, for example path=FOLDER.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Settings to start from; see `fk-steer presets`.")] = "finish",
    particles: Annotated[int | None, typer.Option(help="Particles per prompt. [default: the preset's]")] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="CALLS",
            help="Denoiser calls per image, guidance not counted, in place of --particles: chooses particles, and the "
            "steps and sampler that are left open.",
        ),
    ] = None,
    lmbda: Annotated[float | None, typer.Option(help="Strength of the tilt. [default: the reward's]")] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            help="Sampler, for example ddim, dpmsolver++ or EulerAncestralDiscreteScheduler. [default: the model's; "
            "DDIM if the settings make copies of particles and the model's adds no noise; with --budget DPM-Solver++]"
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Denoising steps. [default: 50; bundled models 25; the preset's or budget's]"),
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free guidance scale. [default: 7.5; bundled models 3]")
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to keep out of the images.")] = None,
    height: Annotated[int | None, typer.Option(help="In pixels. [default: the model's]")] = None,
    width: Annotated[int | None, typer.Option(help="In pixels. [default: the model's]")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Of a pipeline of videos. [default: the model's]")] = None,
    seed: Annotated[int, typer.Option(help="Of the noise and the resampling.")] = 0,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Denoiser rows, latents decoded and images scored at a time. [default: all]"),
    ] = None,
    compare: Annotated[
        bool, typer.Option(help="Generate as many images without steering, from the same noise, to set beside.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the results. [default: one in 'out' for each prompt and settings]"),
    ] = None,
    dtype: Annotated[DType, typer.Option(help="Of the pipeline; auto is float16 on CUDA devices.")] = DType.auto,
    device: Device = None,
    particle_parallel: Annotated[
        bool,
        typer.Option(
            "--particle-parallel",
            help="Share the particles of each prompt between the processes that torchrun or accelerate has started.",
        ),
    ] = False,
    repair: Repair = False,
) -> None:
    """Generate images or videos steered by a reward, best first, with a trace of every scoring event, a contact sheet
    and a report.

    Run again with the same settings it does what is missing, with another --batch-size if memory was short; a folder
    made with other settings is left alone.
    """
    with stoppable(), one_line_errors():
        from ..loading import quiet_libraries

        quiet_libraries()
        options = reward_options(reward_option or [], reward, [reward])
        if model is None:
            model = "shapes"
            fits = bundled_options(model, reward) and "path" not in options
            own = f" and its '{reward}'" if fits else ""
            console.print(f"No --model is given: using the bundled '{model}'{own}.", highlight=False)
        from ..generate import Generation, generate_into

        settings = Generation.of(
            prompts,
            model,
            reward=reward,
            reward_options=options,
            preset=preset,
            particles=particles,
            budget=budget,
            lmbda=lmbda,
            scheduler=scheduler,
            steps=steps,
            guidance=guidance,
            negative_prompt=negative_prompt,
            height=height,
            width=width,
            frames=frames,
            seed=seed,
            compare=compare,
            dtype=dtype.value,
        )
        if out is None:
            content = json.dumps(asdict(settings), sort_keys=True, default=str)
            name = re.sub(r"[^a-z0-9]+", "-", prompts[0].lower())[:40].strip("-")
            out = Path("out") / f"{name or 'prompt'}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
        generate_into(
            out,
            settings,
            kind=pipeline.value,
            batch_size=batch_size,
            device=device,
            particle_parallel=particle_parallel,
            repair=repair,
        )
        console.print(f"Results in {out}: open {out / 'report.html'}", highlight=False)

"""`fk-steer generate`."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..bundled import bundled_options
from ..combinations import names_in
from ..console import console, stoppable
from ..options import options_of, read_assignments
from .options import (
    DEFAULT_MODEL,
    DEFAULT_PRESET,
    DEFAULT_REWARD,
    MAKE,
    REWARD_FORMS,
    RUN,
    SAMPLE,
    STEER,
    Budget,
    Device,
    Frames,
    GuidanceScale,
    Height,
    Lmbda,
    Lora,
    MaxRows,
    NumSteps,
    Particles,
    Preset,
    Repair,
    RewardOption,
    Scheduler,
    Set,
    Width,
    one_line_errors,
    start,
    warn_of_lmbda,
)


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
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT...",
            help="Say what to generate, each prompt in quotes.",
            show_default="those of --prompts-file",
        ),
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            help="Read prompts from this file, after those given: one a line, or JSON lines (.jsonl) or a table (.csv, "
            ".tsv) with a 'prompt' each.",
            show_default="none",
            rich_help_panel=MAKE,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Draw with this pipeline: a hub id, a folder, or a bundled one, shapes or shapes-xl.",
            show_default=DEFAULT_MODEL,
            rich_help_panel=MAKE,
        ),
    ] = None,
    lora: Lora = None,
    pipeline: Annotated[
        PipelineKind,
        typer.Option(
            help="Insist on a class of pipeline; auto goes by what the model says of itself.", rich_help_panel=MAKE
        ),
    ] = PipelineKind.auto,
    negative_prompt: Annotated[
        str | None,
        typer.Option(help="Say what to keep out of the images.", show_default="nothing", rich_help_panel=MAKE),
    ] = None,
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
    compare: Annotated[
        bool,
        typer.Option(
            help="Generate as many images without steering, from the same noise, to set beside the steered ones.",
            rich_help_panel=MAKE,
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write images, traces and report to this folder.",
            show_default="one in 'out' for each prompt and settings",
            rich_help_panel=MAKE,
        ),
    ] = None,
    reward: Annotated[
        str,
        typer.Option(
            help=f"Steer by this reward; `fk-steer rewards` lists them. {REWARD_FORMS}",
            rich_help_panel=STEER,
        ),
    ] = DEFAULT_REWARD,
    reward_option: RewardOption = None,
    preset: Preset = DEFAULT_PRESET,
    particles: Particles = None,
    budget: Budget = None,
    lmbda: Lmbda = None,
    changes: Set = None,
    scheduler: Scheduler = None,
    steps: NumSteps = None,
    guidance: GuidanceScale = None,
    seed: Annotated[
        int, typer.Option(help="Draw all noise and all resampling from this seed.", rich_help_panel=SAMPLE)
    ] = 0,
    dtype: Annotated[
        DType,
        typer.Option(
            help="Compute the pipeline in this precision; auto is float16 on CUDA devices, else float32.",
            rich_help_panel=RUN,
        ),
    ] = DType.auto,
    batch_size: MaxRows = None,
    device: Device = None,
    particle_parallel: Annotated[
        bool,
        typer.Option(
            "--particle-parallel",
            help="Share the particles of each prompt between the processes that torchrun or accelerate has started.",
            rich_help_panel=RUN,
        ),
    ] = False,
    repair: Repair = False,
) -> None:
    """Generate images or videos that a reward likes: several candidates per prompt are steered, the best comes first.

    Beside the images there are a trace of every scoring event, a contact sheet and a report. Run again with the same
    settings it makes what is missing, with another --batch-size if memory was short; a folder made with other settings
    is left alone.
    """
    with stoppable(), one_line_errors():
        options = options_of(reward_option or [], reward)
        if model is None:
            model = DEFAULT_MODEL
            names = names_in(reward)
            given = {name: options if len(names) == 1 else options.get(name, {}) for name in names}
            fits = [f"'{name}'" for name in names if bundled_options(model, name) and "path" not in given[name]]
            own = f" and its {' and '.join(fits)}" if fits else ""
            console.print(f"No --model is given: using the bundled '{model}'{own}.", highlight=False, soft_wrap=True)
        # Of several processes that share the particles, the first speaks.
        start(not particle_parallel or os.environ.get("RANK", "0") == "0")
        from ..evaluation.prompts import prompts_in_file
        from ..generate import Generation, generate_into

        texts = [*(prompts or []), *(prompts_in_file(prompts_file) if prompts_file else [])]
        if not texts:
            raise ValueError("Expected a prompt, in quotes, or a file of prompts by --prompts-file.")
        settings = Generation.of(
            texts,
            model,
            reward=reward,
            reward_options=options,
            preset=preset,
            particles=particles,
            budget=budget,
            lmbda=lmbda,
            changes=read_assignments(changes or []),
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
            lora=lora,
        )
        warn_of_lmbda(preset, lmbda)
        if out is None:
            content = json.dumps(asdict(settings), sort_keys=True, default=str)
            name = re.sub(r"[^a-z0-9]+", "-", texts[0].lower())[:40].strip("-")
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
        console.print(f"Results in {out}: open {out / 'report.html'}", highlight=False, soft_wrap=True)

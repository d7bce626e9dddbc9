"""`fk-steer bench run`, `geneval` and `drawbench`: generation runs."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..console import console, progress_bar, stoppable
from ..options import reward_options
from .options import Device, Repair, one_line_errors


app = typer.Typer(help="Images for lists of prompts.", no_args_is_help=True)


class Engine(str, Enum):
    local = "local"
    ray = "ray"


def run(
    prompts: Annotated[
        str, typer.Option(help="'shapes', 'geneval', 'drawbench', or a file: JSON lines with a 'prompt', or text.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for images and records.")],
    model: Annotated[
        str, typer.Option(help="Hub id or folder of a pipeline, or a bundled one: 'shapes', 'shapes-xl'.")
    ],
    prompts_file: Annotated[
        Path | None, typer.Option(help="Where the list of GenEval or DrawBench is. [default: fetched once]")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Prompts, evenly over tasks or categories. [default: all]")
    ] = None,
    reward: Annotated[str, typer.Option(help="Guide; 'none' for images of the stock pipeline.")] = "clip-score",
    reward_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Option of the reward, for example path=FOLDER.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Steering settings; see `fk-steer presets`.")] = "finish",
    particles: Annotated[int | None, typer.Option(help="Particles per sample. [default: the preset's]")] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="CALLS",
            help="Denoiser calls per sample, guidance not counted, in place of --particles: chooses particles, and the "
            "steps and sampler that are left open.",
        ),
    ] = None,
    lmbda: Annotated[float | None, typer.Option(help="Strength of the tilt. [default: the reward's]")] = None,
    samples_per_prompt: Annotated[int, typer.Option(min=1, help="Steered calls, each giving its best image.")] = 4,
    seeds: Annotated[int, typer.Option(min=1, help="Repeats of all samples with other noise.")] = 1,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Denoising steps. [default: 50; bundled models 25; the preset's or budget's]"),
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free guidance scale. [default: 7.5; bundled models 3]")
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            help="Sampler. [default: the model's; DDIM if noise is needed and it has none; with --budget DPM-Solver++]"
        ),
    ] = None,
    height: Annotated[int | None, typer.Option(min=8, help="In pixels. [default: the model's]")] = None,
    width: Annotated[int | None, typer.Option(min=8, help="In pixels. [default: the model's]")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples (prompts x samples of each) per call.")] = 4,
    max_rows: Annotated[
        int | None,
        typer.Option(min=1, help="Denoiser rows, latents decoded and images scored at a time. [default: all]"),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the pipeline; auto is float16 on CUDA devices.")] = "auto",
    device: Device = None,
    processes: Annotated[int, typer.Option(min=1, help="Workers: one thread each, or a GPU in turn.")] = 1,
    engine: Annotated[Engine, typer.Option(help="Where workers run.")] = Engine.local,
    repair: Repair = False,
) -> None:
    """Steered images for any list of prompts, in GenEval's layout with a record beside each image.

    Run again it makes what is missing. Under `accelerate launch`, or started several times, the processes share the
    work.
    """
    with stoppable(), one_line_errors():
        from ..loading import quiet_libraries

        quiet_libraries()
        from ..evaluation.generation import GenerationSettings, generate, read_records
        from ..evaluation.statistics import mean_by, plus_minus
        from ..report.trace import Trace, told

        steered = reward != "none"
        settings = GenerationSettings(
            model=model,
            prompts=prompts,
            prompts_file=prompts_file,
            limit=limit,
            reward=reward if steered else None,
            reward_options=reward_options(reward_option or [], reward, [reward]),
            preset=preset,
            particles=particles,
            budget=budget,
            lmbda=lmbda,
            samples_per_prompt=samples_per_prompt,
            seeds=tuple(range(seeds)),
            steps=steps,
            guidance=guidance,
            scheduler=scheduler,
            height=height,
            width=width,
            batch_size=batch_size,
            max_rows=max_rows,
            dtype=dtype,
        )
        speaks = os.environ.get("RANK", "0") == "0"
        with progress_bar(speaks) as bar:
            task = bar.add_task("samples", total=None)
            generate(
                settings,
                out,
                processes=processes,
                engine=engine.value,
                device=device,
                repair=repair,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        if speaks:
            records = read_records(out)
            text = f"{len(records)} images in {out}"
            if steered:
                mean = mean_by((one.prompt_index, one.reward) for one in records if one.reward is not None)
                text += f", mean reward {plus_minus(mean, '.4f')}"
                # All calls of a run are alike.
                first = next(out.glob("*/traces/*.json"), None)
                if first is not None and (choice := told(Trace.load(first).chosen)):
                    text += f"; {choice}"
            console.print(text, highlight=False, soft_wrap=True)


def _of(prompts: str, doc: str) -> Callable[..., None]:
    """`run` with its list of prompts chosen."""

    @functools.wraps(run)
    def command(**options: Any) -> None:
        run(prompts=prompts, **options)

    whole = inspect.signature(run, eval_str=True)
    rest = [parameter for name, parameter in whole.parameters.items() if name != "prompts"]
    command.__signature__ = whole.replace(parameters=rest)  # type: ignore[attr-defined]
    command.__name__, command.__doc__ = prompts, f"{doc}\n\n    Otherwise as `fk-steer bench run`.\n"
    return command


geneval = _of(
    "geneval", "Steered images for GenEval's prompts, as its evaluator and `fk-steer eval geneval` take them."
)
drawbench = _of("drawbench", "Steered images for DrawBench's prompts, in GenEval's layout.")
for command in (run, geneval, drawbench):
    app.command()(command)

"""The command line, `fk-steer`."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ..console import console
from .compare import compare
from .evaluation import app as evaluation
from .generation_runs import app as runs
from .judge import judge
from .options import Device, one_line_errors, reward_options
from .rewards import app as rewards
from .rewards import score


if TYPE_CHECKING:
    from ..config import FKSteering

app = typer.Typer(
    help="Feynman-Kac steering for Hugging Face Diffusers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.add_typer(runs, name="bench")
app.add_typer(evaluation, name="eval")
app.add_typer(rewards, name="rewards")
app.command()(compare)
app.command()(judge)
app.command()(score)


class PipelineKind(str, Enum):
    auto = "auto"
    sd = "sd"
    sdxl = "sdxl"


class DType(str, Enum):
    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


@app.command()
def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to generate.")],
    model: Annotated[
        str, typer.Option(help="Hub id or folder of a pipeline, or a bundled one: 'shapes', 'shapes-xl'.")
    ],
    pipeline: Annotated[PipelineKind, typer.Option(help="Class of the pipeline.")] = PipelineKind.auto,
    reward: Annotated[str, typer.Option(help="Reward to steer by; see `fk-steer rewards`.")] = "clip-score",
    reward_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Option of the reward, for example path=FOLDER.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Settings to start from; see `fk-steer presets`.")] = "adaptive",
    particles: Annotated[int | None, typer.Option(help="Particles per prompt. [default: the preset's]")] = None,
    lmbda: Annotated[float | None, typer.Option(help="Strength of the tilt. [default: the reward's]")] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            help="Scheduler class, for example EulerAncestralDiscreteScheduler. [default: the model's; DDIM if the "
            "settings make copies of particles and the model's adds no noise]"
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps. [default: 50; bundled models 25]")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free guidance scale. [default: 7.5; bundled models 3]")
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to keep out of the images.")] = None,
    height: Annotated[int | None, typer.Option(help="In pixels. [default: the model's]")] = None,
    width: Annotated[int | None, typer.Option(help="In pixels. [default: the model's]")] = None,
    seed: Annotated[int, typer.Option(help="Of the noise and the resampling.")] = 0,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Denoiser rows, latents decoded and images scored at a time. [default: all]"),
    ] = None,
    compare: Annotated[
        bool, typer.Option(help="Generate as many images without steering, from the same noise, to set beside.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("out"),
    dtype: Annotated[DType, typer.Option(help="Of the pipeline; auto is float16 on CUDA devices.")] = DType.auto,
    device: Device = None,
    particle_parallel: Annotated[
        bool,
        typer.Option(
            "--particle-parallel",
            help="Share the particles of each prompt between the processes that torchrun or accelerate has started.",
        ),
    ] = False,
) -> None:
    """Generate images steered by a reward, best first, with a trace of every scoring event, a contact sheet and a
    report.

    Run again with the same settings it does what is missing; a folder made with other settings is left alone.
    """
    from ..files import check_settings
    from ..rewards.chat import check_recordable
    from ..shapes import BUNDLED, BUNDLED_REWARDS, GUIDANCE_SCALE, NUM_INFERENCE_STEPS

    with one_line_errors():
        bundled = model in BUNDLED
        options = reward_options(reward_option or [], reward, [reward])
        check_recordable(options)
        if bundled and reward in BUNDLED_REWARDS:
            options = {"path": model, **options}
        settings = {
            "model": model,
            "reward": reward,
            "reward_options": options,
            "scheduler": scheduler,
            "steering": _steering(preset, particles, lmbda, batch_size).to_dict(),
            "steps": steps or (NUM_INFERENCE_STEPS if bundled else 50),
            "guidance": guidance if guidance is not None else (GUIDANCE_SCALE if bundled else 7.5),
            "negative_prompt": negative_prompt,
            "height": height,
            "width": width,
            "seed": seed,
            "compare": compare,
            "dtype": dtype.value,
            "prompts": prompts,
        }
        check_settings(out, settings)
        missing = [index for index in range(len(prompts)) if not (out / f"{index:03d}" / "trace.json").exists()]
        writes = True
        if particle_parallel:
            from ..loading import join_processes, quiet_libraries

            quiet_libraries()
            from accelerate.utils import broadcast_object_list

            processes = join_processes(device)
            device, writes = str(processes.device), processes.is_main_process
            console.quiet = not writes
            (missing,) = broadcast_object_list([missing])
        if missing:
            _generate_missing(out, settings, missing, pipeline, device, particle_parallel, writes)
        if writes:
            _write_report(out, settings)
        console.print(f"Results in {out}: open {out / 'report.html'}", highlight=False)


@app.command()
def presets(
    name: Annotated[str | None, typer.Argument(help="Print all settings of one preset as JSON.")] = None,
) -> None:
    """List the presets, or print the settings of one."""
    from ..loading import quiet_libraries

    quiet_libraries()
    from ..config import DEFAULT_PRESET, PRESETS, FKSteering

    with one_line_errors():
        if name is not None:
            console.print_json(json.dumps(FKSteering.preset(name).to_dict()))
            return
        default = _flat(PRESETS[DEFAULT_PRESET].settings.to_dict())
        table = Table("name", "what it is", f"settings that differ from '{DEFAULT_PRESET}'", box=None, padding=(0, 2))
        for key, preset in PRESETS.items():
            settings = _flat(preset.settings.to_dict())
            differences = [f"{field} {value}" for field, value in settings.items() if value != default.get(field)]
            table.add_row(key, preset.summary, "\n".join(differences))
        console.print(table)


def _generate_missing(
    out: Path,
    settings: dict[str, Any],
    missing: list[int],
    kind: PipelineKind,
    device: str | None,
    particle_parallel: bool,
    writes: bool,
) -> None:
    from ..loading import load_guide, load_pipeline, quiet_libraries, set_scheduler

    quiet_libraries()
    import torch

    from ..config import FKSteering
    from ..diffusion import steer
    from ..files import png, record_settings, write_atomically
    from ..report.page import figure_png
    from ..rewards.loading import default_device
    from ..smc import Schedule

    target = default_device(device)
    steering = FKSteering.from_dict(settings["steering"])
    reward = load_guide(settings["reward"], target, **settings["reward_options"])
    pipe = load_pipeline(settings["model"], kind.value, settings["dtype"], target)
    pipe.set_progress_bar_config(leave=False, disable=not writes)
    unsteered_scheduler = pipe.scheduler
    if note := set_scheduler(pipe, settings["scheduler"], steering, settings["steps"]):
        console.print(f"{note} Choose another with --scheduler.", highlight=False)
    elif settings["scheduler"]:
        unsteered_scheduler = pipe.scheduler
    call = {
        "num_inference_steps": settings["steps"],
        "guidance_scale": settings["guidance"],
        "negative_prompt": settings["negative_prompt"],
        "height": settings["height"],
        "width": settings["width"],
    }
    call = {name: value for name, value in call.items() if value is not None}
    runs = {"": (steering, pipe.scheduler)}
    if settings["compare"]:
        unsteered = FKSteering(**{**vars(steering), "schedule": Schedule(), "eta": 0.0})
        runs = {"unsteered-": (unsteered, unsteered_scheduler), **runs}
    if writes:
        record_settings(out, settings)
    for index in missing:
        prompt, folder = settings["prompts"][index], out / f"{index:03d}"
        console.print(f"[bold]{index:03d}[/bold] {prompt}", highlight=False)
        for prefix, (run_settings, pipe.scheduler) in runs.items():
            generator = torch.Generator().manual_seed(settings["seed"])
            steered = steer(pipe, reward, run_settings)
            output = steered(prompt, generator=generator, particle_parallel=particle_parallel, **call)
            if not writes:
                continue
            for rank, image in enumerate(output.images):
                write_atomically(folder / f"{prefix}{rank:02d}.png", png(image))
            if not prefix:
                write_atomically(folder / "lineage.png", figure_png(output.trace.plot()))
            best = " ".join(f"{value:.3f}" for value in output.rewards[0].tolist())
            console.print(f"    {prefix.rstrip('-') or 'steered':9} rewards {best}", highlight=False)
            # Written last: its presence says that the prompt is done.
            output.trace.save(folder / f"{prefix}trace.json")
        ess = " ".join(f"{event.ess[0]:.1f}" for event in output.trace.events)
        console.print(
            f"    ESS {ess}, distinct roots {output.trace.events[-1].distinct_roots[0]}, NFE {output.trace.nfe}, "
            f"{output.trace.seconds['total']:.1f} s",
            highlight=False,
        )


def _write_report(out: Path, settings: dict[str, Any]) -> None:
    from ..files import png, write_atomically
    from ..report.page import contact_sheet, html_report, results_in, summarize

    results = results_in(out, settings)
    write_atomically(out / "contact_sheet.png", png(contact_sheet(results)))
    write_atomically(out / "report.html", html_report(results, settings).encode())
    for what, reward, correct in summarize(results):
        console.print(f"{what}: mean reward {reward}" + (f", {correct} correct" if correct else ""), highlight=False)


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for field, value in settings.items():
        flat |= {f"{field}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {field: value}
    return flat


def _steering(preset: str, particles: int | None, lmbda: float | None, batch_size: int | None) -> FKSteering:
    from ..config import FKSteering

    overrides: dict[str, Any] = {"num_particles": particles, "lmbda": lmbda}
    overrides |= {f"{part}_batch_size": batch_size for part in ("reward", "decode", "denoise")}
    return FKSteering.preset(preset, **{name: value for name, value in overrides.items() if value is not None})

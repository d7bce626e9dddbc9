"""`fk-steer bench ...`."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fk_steer.console import console, one_line_errors


if TYPE_CHECKING:
    from fk_steer.config import FKSteering

    from .shapes import Record


app = typer.Typer(help="Benchmarks.", no_args_is_help=True)

# Options that several benchmarks share.
Model = Annotated[str, typer.Option(help="'shapes' or 'shapes-xl'.")]
Guide = Annotated[str, typer.Option(help="Guide.")]
Seeds = Annotated[int, typer.Option(min=1, help="Repeats with other noise.")]
PerTask = Annotated[int, typer.Option(min=1, help="Held-out prompts per task.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Denoising steps. [default: the model's]")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale. [default: the model's]")]
BatchSize = Annotated[int, typer.Option(min=1, help="Prompts per call.")]
Processes = Annotated[int, typer.Option(min=1, help="Repeats at a time, one thread each.")]


@app.command()
def shapes(
    out: Annotated[Path, typer.Option(help="Folder for images, records and tables.")],
    preset: Annotated[
        list[str],
        typer.Option(
            help="PRESET, PRESET:PARTICLES, or PRESET@BUDGET for as many particles as cost that many trajectories. "
            "Several make a row each, compared with the first."
        ),
    ],
    model: Model = "shapes",
    reward: Guide = "clip-score",
    particles: Annotated[int | None, typer.Option(help="Particles, where not given with the preset.")] = None,
    lmbda: Annotated[float | None, typer.Option(help="Strength of the tilt. [default: the reward's]")] = None,
    seeds: Seeds = 3,
    per_task: PerTask = 40,
    steps: Steps = None,
    guidance: Guidance = None,
    batch_size: BatchSize = 8,
    processes: Processes = 1,
) -> None:
    """GenEval's six tasks on the bundled world's held-out prompts, judged by exact detection."""
    from .shapes import summarize

    with one_line_errors():
        setup = _setup(model, reward, per_task, steps, guidance)
        steerings = [_sized(name, setup["steps"], num_particles=particles, lmbda=lmbda) for name in preset]
        named = {f"{_preset(name)}-{settings.num_particles}": settings for name, settings in zip(preset, steerings)}
        records = _measure(named, setup, out, seeds, batch_size, processes)
        first = next(iter(records.values()))
        _write_table(
            out / "table",
            {
                "{}, k = {}".format(*name.rsplit("-", 1)): summarize(some, None if some is first else first)
                for name, some in records.items()
            },
        )


@app.command()
def compute(
    out: Annotated[Path, typer.Option(help="Folder for images, records, tables and plots.")],
    preset: Annotated[list[str] | None, typer.Option(help="Presets. [default: all]")] = None,
    budget: Annotated[list[float] | None, typer.Option(help="In trajectories. [default: 1, 2, 4, 8, 16]")] = None,
    model: Model = "shapes",
    reward: Guide = "clip-score",
    seeds: Seeds = 3,
    per_task: PerTask = 40,
    steps: Steps = None,
    guidance: Guidance = None,
    batch_size: BatchSize = 8,
    processes: Processes = 1,
) -> None:
    """Presets side by side at equal denoiser compute, from the same initial noise."""
    from fk_steer.config import PRESETS
    from fk_steer.files import write_atomically
    from fk_steer.report import figure_png

    from .compute import difference_columns, plot
    from .shapes import summarize

    with one_line_errors():
        setup = _setup(model, reward, per_task, steps, guidance)
        budgets = sorted(budget or (1.0, 2.0, 4.0, 8.0, 16.0))
        named = {
            f"{name}@{size:g}": _sized(f"{name}@{size:g}", setup["steps"])
            for size in budgets
            for name in preset or PRESETS
        }
        records = _measure(named, setup, out, seeds, batch_size, processes)
        rows = {name: summarize(some) for name, some in records.items()}
        _write_table(out / "table", rows)
        _write_table(out / "differences", difference_columns(records))
        write_atomically(out / "compute.png", figure_png(plot(rows)))


@app.command()
def speed(
    out: Annotated[Path, typer.Option(help="JSON file for the seconds and ratios.")],
    model: Model = "shapes",
    preset: Annotated[str, typer.Option(help="PRESET, PRESET:PARTICLES or PRESET@BUDGET.")] = "fk",
    prompts: Annotated[int, typer.Option(min=1, help="Prompts per steered call.")] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements, after a warm-up.")] = 5,
    steps: Steps = None,
) -> None:
    """Seconds of a steered call over those of its models' bare work, and of a plain loop over the steered call's."""
    with one_line_errors():
        setup = _setup(model, "clip-score", 1, steps, None)
        from fk_steer.files import write_json
        from fk_steer.loading import load_guide, load_pipeline, set_scheduler
        from fk_steer.rewards.base import lmbda_for
        from fk_steer.shapes.captions import evaluation_prompts

        from .speed import measure

        steering = _sized(preset, setup["steps"])
        pipe = load_pipeline(model)
        pipe.set_progress_bar_config(disable=True)
        set_scheduler(pipe, None, steering)
        guide = load_guide("clip-score", "cpu", path=model)
        measured = measure(
            pipe,
            guide,
            steering,
            [line["prompt"] for line in evaluation_prompts()[:prompts]],
            lmbda=lmbda_for(guide, steering.lmbda) or 0.0,
            repeats=repeats,
            num_inference_steps=setup["steps"],
            guidance_scale=setup["guidance"],
        )
        write_json(out, {**setup, "preset": preset, "prompts": prompts, **measured})
        for name in ("overhead", "bookkeeping", "speed-up"):
            console.print(f"{name}: {measured[name]:.3f}", highlight=False)
        for way, value in measured["reward"].items():
            console.print(f"reward, {way}: {value:.4f}", highlight=False)


@app.command()
def rewards(
    out: Annotated[Path, typer.Option(help="Folder for the table.")],
    reward: Annotated[
        list[str] | None, typer.Option(help="One of those in the table. [default: all; on a CPU the small ones]")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="[default: 16; on a CPU 4]")] = None,
    size: Annotated[int, typer.Option(min=1, help="Height and width of the images.")] = 512,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements, after a warm-up.")] = 3,
    dtype: Annotated[str | None, typer.Option(help="[default: float16; on a CPU float32]")] = None,
    device: Annotated[str | None, typer.Option(help="[default: cuda if there is one, else cpu]")] = None,
) -> None:
    """Images per second of rewards at full size with random weights, a batch against one by one, and peak memory."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    from fk_steer.files import write_json
    from fk_steer.rewards.loading import default_device

    from .rewards import FULL_SIZE, SMALL, measure

    with one_line_errors():
        target = default_device(device)
        on_cpu = target.type == "cpu"
        names = reward or (SMALL if on_cpu else list(FULL_SIZE))
        for name in names:
            if name not in FULL_SIZE:
                raise ValueError(f"Unknown reward {name!r}. Known: {', '.join(FULL_SIZE)}.")
        settings: dict[str, Any] = {
            "device": str(target),
            "dtype": dtype or ("float32" if on_cpu else "float16"),
            "batch_size": batch_size or (4 if on_cpu else 16),
            "size": size,
            "repeats": repeats,
        }
        measured = {}
        table = Table("reward", "parameters", "batched /s", "one by one /s", "ratio", "peak memory", box=None)
        for name in names:
            # A process each, for memory to be its own.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                row = pool.submit(measure, name, **settings).result()
            measured[name] = row
            write_json(out / "rewards.json", {"settings": settings, "rewards": measured})
            table.add_row(
                name,
                f"{row['parameters'] / 1e6:.0f}M",
                f"{row['batched']:.3g}",
                f"{row['one by one']:.3g}",
                f"{row['ratio']:.2f}",
                f"{row['peak memory'] / 2**30:.2f} GiB",
            )
        console.print(table)


def _setup(model: str, reward: str, per_task: int, steps: int | None, guidance: float | None) -> dict[str, Any]:
    """What all runs of a benchmark share."""
    from fk_steer.loading import quiet_libraries

    quiet_libraries()
    from fk_steer.shapes import BUNDLED, GUIDANCE_SCALE, NUM_INFERENCE_STEPS

    if model not in BUNDLED:
        raise ValueError(f"Unknown bundled model {model!r}. Known: {', '.join(BUNDLED)}.")
    return {
        "model": model,
        "reward": reward,
        "per_task": per_task,
        "steps": steps or NUM_INFERENCE_STEPS,
        "guidance": GUIDANCE_SCALE if guidance is None else guidance,
    }


def _measure(
    steerings: dict[str, FKSteering], setup: dict[str, Any], out: Path, seeds: int, batch_size: int, processes: int
) -> dict[str, list[Record]]:
    """Records of each run, over all seeds; a folder of the run's name in `out` keeps them."""
    from fk_steer.files import check_settings, record_settings

    from .shapes import Job, run_all

    jobs = []
    for name, steering in steerings.items():
        settings = {**setup, "steering": steering.to_dict()}
        check_settings(out / name, settings)
        record_settings(out / name, settings)
        jobs += [
            Job(steering=steering, seed=seed, out=out / name, batch_size=batch_size, **setup) for seed in range(seeds)
        ]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("prompts", total=len(jobs) * 6 * setup["per_task"])
        results = run_all(jobs, processes, lambda done: bar.advance(task, done))
    records: dict[str, list[Record]] = {}
    for job, some in zip(jobs, results):
        records.setdefault(job.out.name, []).extend(some)
    return records


def _preset(name: str) -> str:
    return re.split("[:@]", name)[0]


def _sized(name: str, num_steps: int, **overrides: Any) -> FKSteering:
    """A preset by name, with its particles or its budget: 'fk', 'fk:8', 'psp@4'."""
    from fk_steer.config import FKSteering

    count, budget = (re.search(f"{mark}([^:@]+)", name) for mark in ":@")
    if count:
        overrides["num_particles"] = int(count[1])
    overrides = {field: value for field, value in overrides.items() if value is not None}
    steering = FKSteering.preset(_preset(name), **overrides)
    return steering.within(float(budget[1]), num_steps) if budget else steering


def _write_table(path: Path, rows: dict[str, dict[str, tuple[float, float | None]]]) -> None:
    """Write the rows as PATH.json, PATH.md and PATH.csv, and show them."""
    from fk_steer.files import write_atomically, write_json

    from .shapes import markdown, table

    lines = table(rows)
    write_json(path.with_suffix(".json"), rows)
    write_atomically(path.with_suffix(".md"), markdown(lines).encode())
    buffer = io.StringIO()
    csv.writer(buffer).writerows(lines)
    write_atomically(path.with_suffix(".csv"), buffer.getvalue().encode())
    # On its side: there are more columns than fit a terminal.
    header, *body = zip(*lines)
    shown = Table(*header, box=None)
    for line in body:
        shown.add_row(*line)
    console.print(shown)

"""`fk-steer bench ...`: quality on the bundled world."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fk_steer.console import console, one_line_errors

from .options import BatchSize, Guidance, Guide, Model, PerTask, Processes, Seeds, Steps, preset_name, sized


if TYPE_CHECKING:
    from fk_steer.config import FKSteering

    from .shapes import Record


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
    against: Annotated[
        Path | None, typer.Option(help="Folder of the same presets with another guide, to compare with.")
    ] = None,
) -> None:
    """GenEval's six tasks on the bundled world's held-out prompts, judged by exact detection."""
    from .shapes import differences, read_records, summarize

    with one_line_errors():
        setup = _setup(model, reward, per_task, steps, guidance)
        steerings = [sized(name, setup["steps"], num_particles=particles, lmbda=lmbda) for name in preset]
        named = {
            f"{preset_name(name)}, k = {settings.num_particles}": settings for name, settings in zip(preset, steerings)
        }
        records = _measure(named, setup, out, seeds, batch_size, processes)
        first = next(iter(records.values()))
        rows = {name: summarize(some, None if some is first else first) for name, some in records.items()}
        if against is not None:
            for name, settings in named.items():
                others = read_records(_folder(against, name, settings))
                found = differences(records[name], others)
                # Rewards of different guides have different scales.
                rows[name] |= {
                    f"{measure} - {against.name}": found[measure] for measure in found if measure != "reward"
                }
        _write_table(out / "table", rows)


def compute(
    out: Annotated[Path, typer.Option(help="Folder for images, records, tables and plots.")],
    preset: Annotated[
        list[str] | None, typer.Option(help="PRESET, at every budget, or PRESET@BUDGET. [default: all presets]")
    ] = None,
    budget: Annotated[list[float] | None, typer.Option(help="In trajectories. [default: 1, 2, 4, 8, 16]")] = None,
    model: Model = "shapes",
    reward: Guide = "clip-score",
    seeds: Seeds = 3,
    per_task: PerTask = 40,
    steps: Steps = None,
    guidance: Guidance = None,
    batch_size: BatchSize = 8,
    processes: Processes = 1,
    timing: Annotated[
        Path | None,
        typer.Option(help="table.json of a run on an idle machine, whose seconds are taken in place of these."),
    ] = None,
) -> None:
    """Presets side by side at equal denoiser compute, from the same initial noise. Runs are shared with `bench shapes`
    in the same folder."""
    from fk_steer.config import PRESETS
    from fk_steer.files import write_atomically
    from fk_steer.report import figure_png

    from .compute import difference_columns, plot, with_seconds_of
    from .shapes import summarize

    with one_line_errors():
        setup = _setup(model, reward, per_task, steps, guidance)
        budgets = sorted(budget or (1.0, 2.0, 4.0, 8.0, 16.0))
        presets = preset or list(PRESETS)
        names = [f"{name}@{size:g}" for size in budgets for name in presets if "@" not in name]
        names += [name for name in presets if "@" in name]
        named = {name: sized(name, setup["steps"]) for name in names}
        records = _measure(named, setup, out, seeds, batch_size, processes)
        rows = {name: summarize(some) for name, some in records.items()}
        if timing is not None:
            rows = with_seconds_of(rows, json.loads(timing.read_text()))
        _write_table(out / "table", rows)
        _write_table(out / "differences", difference_columns(records))
        write_atomically(out / "compute.png", figure_png(plot(rows)))


def ablation(
    out: Annotated[Path, typer.Option(help="Folder for images, records and tables.")],
    model: Model = "shapes",
    reward: Guide = "clip-score",
    seeds: Seeds = 3,
    per_task: PerTask = 40,
    steps: Steps = None,
    guidance: Guidance = None,
    batch_size: BatchSize = 8,
    processes: Processes = 1,
) -> None:
    """From the published settings to ours, one change at a time, each compared with the settings before it."""
    from .ablation import steps as changes
    from .shapes import differences, summarize

    with one_line_errors():
        setup = _setup(model, reward, per_task, steps, guidance)
        chain = changes()
        records = _measure({step.name: step.settings for step in chain}, setup, out, seeds, batch_size, processes)
        rows = {}
        for step in chain:
            rows[step.name] = summarize(records[step.name])
            if step.before is not None:
                gains = differences(records[step.name], records[step.before])
                rows[step.name] |= {f"{measure} - before": value for measure, value in gains.items()}
        _write_table(out / "ablation", rows)


def llava(
    preferences: Annotated[Path, typer.Option(help="Folder made by fk_steer.shapes.preferences.")],
    out: Annotated[Path, typer.Option(help="Folder for runs and tables.")],
    backbone: Annotated[
        Path | None, typer.Option(help="Multimodal LLM to train on. [default: the bundled one]")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each variant.")] = 3,
    processes: Annotated[int, typer.Option(min=1, help="Runs at a time, one thread each.")] = 1,
) -> None:
    """LLaVA-Reward without its parts, one at a time, on the bundled world's preferences, beside the world's CLIPs."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    import torch

    with one_line_errors():
        from fk_steer.shapes import BUNDLED_LLAVA_REWARD

        from .llava_world import CLIPS, VARIANTS, judged_by_clip, over_seeds, run

        backbone = backbone or BUNDLED_LLAVA_REWARD / "backbone"
        jobs = [
            (preferences, backbone, out / f"{name.replace(',', '').replace(' ', '-')}-{seed}", seed, changes)
            for name, changes in VARIANTS.items()
            for seed in range(seeds)
        ]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            results = list(pool.map(run, *zip(*jobs)))
        rows = {
            name: over_seeds(results[first : first + seeds], results[:seeds] if first else None)
            for name, first in zip(VARIANTS, range(0, len(results), seeds))
        }
        for name, clip in CLIPS.items():
            rows[name] = over_seeds([judged_by_clip(preferences, clip)])
        _write_table(out / "llava-reward", rows)


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
    """Records of each run, over all seeds; a folder named by preset and number of particles in `out` keeps them."""
    from fk_steer.files import check_settings, record_settings

    from .shapes import Job, run_all

    folders = {name: _folder(out, name, steering) for name, steering in steerings.items()}
    # Names may share a folder.
    jobs: dict[tuple[Path, int], Job] = {}
    for name, folder in folders.items():
        settings = {**setup, "steering": steerings[name].to_dict()}
        check_settings(folder, settings)
        record_settings(folder, settings)
        for seed in range(seeds):
            jobs[folder, seed] = Job(steering=steerings[name], seed=seed, out=folder, batch_size=batch_size, **setup)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("prompts", total=len(jobs) * 6 * setup["per_task"])
        results = dict(zip(jobs, run_all(list(jobs.values()), processes, lambda done: bar.advance(task, done))))
    return {
        name: [record for seed in range(seeds) for record in results[folder, seed]] for name, folder in folders.items()
    }


def _folder(out: Path, name: str, steering: FKSteering) -> Path:
    return out / f"{preset_name(name)}-{steering.num_particles}"


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

"""`fk-steer bench ...`."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fk_steer.console import console, one_line_errors


app = typer.Typer(help="Benchmarks.", no_args_is_help=True)


@app.command()
def shapes(
    out: Annotated[Path, typer.Option(help="Folder for images, records and tables.")],
    preset: Annotated[
        list[str], typer.Option(help="Preset, or PRESET:PARTICLES; several make a row each, compared with the first.")
    ],
    model: Annotated[str, typer.Option(help="'shapes' or 'shapes-xl'.")] = "shapes",
    reward: Annotated[str, typer.Option(help="Guide.")] = "clip-score",
    particles: Annotated[int | None, typer.Option(help="Particles, where not given with the preset.")] = None,
    lmbda: Annotated[float | None, typer.Option(help="Strength of the tilt. [default: the reward's]")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repeats with other noise.")] = 3,
    first_seed: Annotated[int, typer.Option(help="Number of the first repeat, to share the work out.")] = 0,
    per_task: Annotated[int, typer.Option(min=1, help="Held-out prompts per task.")] = 40,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps. [default: the model's]")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale. [default: the model's]")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts per call.")] = 8,
) -> None:
    """GenEval's six tasks on the bundled world's held-out prompts, judged by exact detection."""
    from fk_steer.loading import load_guide, load_pipeline, quiet_libraries, set_scheduler

    quiet_libraries()
    from fk_steer.config import FKSteering
    from fk_steer.files import check_settings, record_settings, write_atomically, write_json
    from fk_steer.shapes import GUIDANCE_SCALE, NUM_INFERENCE_STEPS

    from .shapes import markdown, run, summarize, table

    with one_line_errors():
        settings: dict[str, Any] = {
            "model": model,
            "reward": reward,
            "steps": steps or NUM_INFERENCE_STEPS,
            "guidance": GUIDANCE_SCALE if guidance is None else guidance,
            "per_task": per_task,
        }
        total = len(preset) * seeds * 6 * per_task
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        rows, first = {}, None
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("prompts", total=total)
            for name in preset:
                key, _, count = name.partition(":")
                overrides = {"num_particles": int(count) if count else particles, "lmbda": lmbda}
                steering = FKSteering.preset(key, **{k: v for k, v in overrides.items() if v is not None})
                folder = out / f"{key}-{steering.num_particles}"
                check_settings(folder, own := {**settings, "steering": steering.to_dict()})
                pipe = load_pipeline(model)
                guide = load_guide(reward, "cpu", **({"path": model} if reward == "clip-score" else {}))
                record_settings(folder, own)
                pipe.set_progress_bar_config(disable=True)
                set_scheduler(pipe, None, steering)
                records = run(
                    pipe,
                    guide,
                    steering,
                    out=folder,
                    seeds=range(first_seed, first_seed + seeds),
                    per_task=per_task,
                    batch_size=batch_size,
                    num_inference_steps=settings["steps"],
                    guidance_scale=settings["guidance"],
                    progress=lambda done: bar.advance(task, done),
                )
                rows[f"{key}, k = {steering.num_particles}"] = summarize(records, first)
                first = first or records
        lines = table(rows)
        write_json(out / "table.json", rows)
        write_atomically(out / "table.md", markdown(lines).encode())
        buffer = io.StringIO()
        csv.writer(buffer).writerows(lines)
        write_atomically(out / "table.csv", buffer.getvalue().encode())
        # On its side: there are more columns than fit a terminal.
        header, *body = zip(*lines)
        shown = Table(*header, box=None)
        for line in body:
            shown.add_row(*line)
        console.print(shown)

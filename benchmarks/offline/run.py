"""Search rules tried on stored rewards, before any of them is run.

`store` runs every seed of every prompt once: a full deterministic loop with the guide's reward of the x0 prediction at
each step, and whole solves of few steps from the same noise. `simulate` is then told by rules, which are functions on
these tensors, what they would have chosen and what that would have cost; it runs no model.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.offline.rules import pools_of, rules_of
from benchmarks.offline.stored import generate, read_stored
from benchmarks.offline.tables import compare, predictors
from fk_steer.cli.options import BatchSize, Guidance, Guide, Model, PerTask, one_line_errors
from fk_steer.evaluation.world import SPLITS, setup_of, write_table
from fk_steer.files import check_settings, record_settings
from fk_steer.loading import quiet_libraries


class Split(str, Enum):
    tuning = "tuning"
    held_out = "held-out"


app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)
Out = Annotated[Path, typer.Option(help="Folder for rewards and tables.")]
Prompts = Annotated[Split, typer.Option(help="Which prompts.")]


@app.command()
def store(
    out: Out,
    split: Prompts = Split.tuning,
    model: Model = "shapes",
    reward: Guide = "clip-score",
    per_task: PerTask = 20,
    seeds: Annotated[int, typer.Option(min=2, help="Of each prompt.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Of the full loop, by DDIM.")] = 25,
    few_steps: Annotated[
        list[int] | None, typer.Option(min=1, help="Of whole solves by DPM-Solver++. [default: 4, 6, 8 and 10]")
    ] = None,
    guidance: Guidance = None,
    batch_size: BatchSize = 6,
    half: Annotated[
        bool, typer.Option("--half", help="Denoiser and decoder in bfloat16, compiled: a third of the time on CPUs.")
    ] = False,
) -> None:
    """Run every seed of every prompt once, and keep the rewards along the way."""
    quiet_libraries()
    with one_line_errors():
        setup = {
            **setup_of(model, reward, per_task, steps, guidance, split.value, half),
            "seeds": seeds,
            "few_steps": sorted(set(few_steps or (4, 6, 8, 10))),
            "batch_size": batch_size,
        }
        folder = out / split.value
        check_settings(folder, setup)
        record_settings(folder, setup)
        generate(setup, SPLITS[split.value](per_task), folder)


@app.command()
def simulate(
    out: Out,
    split: Prompts = Split.tuning,
    subsets: Annotated[int, typer.Option(min=1, help="Random orders of each prompt's seeds.")] = 200,
    seed: Annotated[int, typer.Option(help="Of these.")] = 0,
) -> None:
    """What search rules would have chosen, and what says early how good an image will be."""
    with one_line_errors():
        stored = read_stored(out / split.value)
        write_table(out / f"{split.value}-predictors", predictors(stored), scores=["rank_correlation"])
        write_table(out / f"{split.value}-rules", compare(stored, rules_of(stored), pools_of(stored, subsets, seed)))


if __name__ == "__main__":
    app()

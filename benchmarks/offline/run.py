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
from fk_steer.cli.options import DEFAULT_REWARD, BatchSize, Guidance, Guide, Half, Model, PerTask, one_line_errors
from fk_steer.evaluation.world import SPLITS, setup_of, write_table
from fk_steer.files import check_settings, record_settings
from fk_steer.loading import quiet_libraries


class Split(str, Enum):
    tuning = "tuning"
    held_out = "held-out"


app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)
Out = Annotated[Path, typer.Option(help="Write rewards and tables to this folder.")]
Prompts = Annotated[Split, typer.Option(help="Take these prompts of the bundled world.")]


@app.command()
def store(
    out: Out,
    split: Prompts = Split.tuning,
    model: Model = "shapes",
    reward: Guide = DEFAULT_REWARD,
    per_task: PerTask = 20,
    seeds: Annotated[int, typer.Option(min=2, help="Run this many seeds of each prompt.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Take this many steps of DDIM in the full loop.")] = 25,
    few_steps: Annotated[
        list[int] | None,
        typer.Option(
            min=1, help="Solve the whole loop in this many steps of DPM-Solver++ too.", show_default="4, 6, 8 and 10"
        ),
    ] = None,
    guidance: Guidance = None,
    batch_size: BatchSize = 6,
    half: Half = False,
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
    subsets: Annotated[int, typer.Option(min=1, help="Draw this many random orders of each prompt's seeds.")] = 200,
    seed: Annotated[int, typer.Option(help="Draw these orders from this seed.")] = 0,
) -> None:
    """Tell what search rules would have chosen, and what says early how good an image will be."""
    with one_line_errors():
        stored = read_stored(out / split.value)
        write_table(out / f"{split.value}-predictors", predictors(stored), scores=["rank_correlation"])
        write_table(out / f"{split.value}-rules", compare(stored, rules_of(stored), pools_of(stored, subsets, seed)))


if __name__ == "__main__":
    app()

"""Presets against one another at equal denoiser compute."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.figure import Figure

from fk_steer.cli.options import BatchSize, Guidance, Guide, Model, PerTask, Processes, Seeds, Steps, one_line_errors
from fk_steer.evaluation.world import Record, Row, differences, measure_all, setup_of, sized, summarize, write_table
from fk_steer.files import write_atomically
from fk_steer.loading import quiet_libraries
from fk_steer.report.figures import figure_png
from fk_steer.search import DEFAULT_PRESET, PRESETS


BASELINES = {
    "best-of-n": ("best-of-n", 1.0),
    "fk-paper": ("fk-paper", 1.0),
    DEFAULT_PRESET: (DEFAULT_PRESET, 1.0),
    "best-of-n at twice the budget": ("best-of-n", 2.0),
}
"""What runs are compared with: name -> preset and share of the run's own budget."""


def difference_columns(records: Mapping[str, Sequence[Record]]) -> dict[str, Row]:
    """How runs named 'PRESET@BUDGET' differ from those of `BASELINES` that were made.

    Returns:
        Run, or 'PRESET, all budgets' for all above one together, -> 'MEASURE - BASELINE' -> mean and standard error,
        see `differences`.
    """
    rows = {}
    for run, some in records.items():
        budget = float(run.split("@")[1])
        others = {name: f"{preset}@{share * budget:g}" for name, (preset, share) in BASELINES.items()}
        rows[run] = {
            f"{measure} - {name}": value
            for name, other in others.items()
            if other != run and other in records
            for measure, value in differences(some, records[other]).items()
        }
    return rows | _over_budgets(records)


def _over_budgets(records: Mapping[str, Sequence[Record]]) -> dict[str, Row]:
    """The differences to baselines of the same budget, over the budgets at which there is something to choose."""
    budgets = dict.fromkeys(budget for _, budget in (run.split("@") for run in records) if float(budget) > 1)
    rows = {}
    for preset in dict.fromkeys(run.split("@")[0] for run in records):
        row: Row = {}
        for name, (baseline, share) in BASELINES.items():
            pairs = [(f"{preset}@{budget}", f"{baseline}@{budget}") for budget in budgets]
            pairs = [pair for pair in pairs if records.keys() >= {*pair}]
            if share == 1 and baseline != preset and len(pairs) > 1:
                some, others = (_pooled([records[run] for run in runs]) for runs in zip(*pairs))
                row |= {f"{measure} - {name}": value for measure, value in differences(some, others).items()}
        if row:
            rows[f"{preset}, all budgets"] = row
    return rows


def _pooled(runs: Sequence[Sequence[Record]]) -> list[Record]:
    """The records of several runs, with seeds that tell the runs apart."""
    return [replace(record, seed=record.seed * len(runs) + n) for n, run in enumerate(runs) for record in run]


def with_seconds_of(rows: Mapping[str, Row], timed: Mapping[str, Mapping[str, Any]]) -> dict[str, Row]:
    """The rows of `summarize` with the seconds of other runs of the same names.

    Raises:
        ValueError: for a row that was not timed.
    """
    if untimed := [name for name in rows if name not in timed]:
        raise ValueError(f"Expected seconds of {', '.join(untimed)}, but they were not timed.")
    return {name: {**row, "seconds": (float(timed[name]["seconds"][0]), None)} for name, row in rows.items()}


def plot(rows: Mapping[str, Row]) -> Figure:
    """Guide reward and accuracy against denoiser rows and against seconds, a line per preset, with standard errors.

    Args:
        rows: 'PRESET@BUDGET' -> column -> (mean, standard error), see `summarize`.
    """
    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(2, 2, sharey="row", sharex="col")
    for preset in dict.fromkeys(run.split("@")[0] for run in rows):
        own = sorted((row for run, row in rows.items() if run.split("@")[0] == preset), key=lambda row: row["nfe"][0])
        for line, measure in zip(axes, ("reward", "overall")):
            for axis, cost in zip(line, ("nfe", "seconds")):
                axis.errorbar(
                    [row[cost][0] for row in own],
                    [row[measure][0] for row in own],
                    yerr=[row[measure][1] or 0.0 for row in own],
                    marker="o",
                    markersize=4,
                    capsize=2,
                    label=preset,
                )
    for axis, label in zip(axes[:, 0], ("guide reward of the best image", "overall accuracy, %")):
        axis.set_ylabel(label)
    for axis, label in zip(axes[-1], ("denoiser rows per image", "seconds per image")):
        axis.set_xlabel(label)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
    axes[0, 0].legend(fontsize="small")
    return figure


app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)


@app.command()
def main(
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
    """Presets side by side at equal denoiser compute, from the same initial noise. Runs are shared with
    `benchmarks/shapes` in the same folder."""

    quiet_libraries()
    with one_line_errors():
        setup = setup_of(model, reward, per_task, steps, guidance)
        budgets = sorted(budget or (1.0, 2.0, 4.0, 8.0, 16.0))
        presets = preset or list(PRESETS)
        names = [f"{name}@{size:g}" for size in budgets for name in presets if "@" not in name]
        names += [name for name in presets if "@" in name]
        named = {name: sized(name, setup["steps"]) for name in names}
        records = measure_all(named, setup, out, seeds, batch_size, processes)
        rows = {name: summarize(some) for name, some in records.items()}
        if timing is not None:
            rows = with_seconds_of(rows, json.loads(timing.read_text()))
        write_table(out / "table", rows)
        write_table(out / "differences", difference_columns(records))
        write_atomically(out / "compute.png", figure_png(plot(rows)))


if __name__ == "__main__":
    app()

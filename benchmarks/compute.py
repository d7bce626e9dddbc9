"""Presets against one another at equal denoiser compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fk_steer.config import DEFAULT_PRESET

from .shapes import Record, differences


if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASELINES = {
    "best-of-n": ("best-of-n", 1.0),
    "fk-paper": ("fk-paper", 1.0),
    DEFAULT_PRESET: (DEFAULT_PRESET, 1.0),
    "best-of-n at twice the budget": ("best-of-n", 2.0),
}
"""What runs are compared with: name -> preset and share of the run's own budget."""


def difference_columns(records: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, tuple[float, float | None]]]:
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


def _over_budgets(records: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, tuple[float, float | None]]]:
    """The differences to baselines of the same budget, over the budgets at which there is something to choose."""
    budgets = dict.fromkeys(budget for _, budget in (run.split("@") for run in records) if float(budget) > 1)
    rows = {}
    for preset in dict.fromkeys(run.split("@")[0] for run in records):
        row: dict[str, tuple[float, float | None]] = {}
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


def with_seconds_of(
    rows: Mapping[str, Mapping[str, tuple[float, float | None]]], timed: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, tuple[float, float | None]]]:
    """The rows of `summarize` with the seconds of other runs of the same names.

    Raises:
        ValueError: for a row that was not timed.
    """
    if untimed := [name for name in rows if name not in timed]:
        raise ValueError(f"Expected seconds of {', '.join(untimed)}, but they were not timed.")
    return {name: {**row, "seconds": (float(timed[name]["seconds"][0]), None)} for name, row in rows.items()}


def plot(rows: Mapping[str, Mapping[str, tuple[float, float | None]]]) -> Figure:
    """Guide reward and accuracy against denoiser rows and against seconds, a line per preset, with standard errors.

    Args:
        rows: 'PRESET@BUDGET' -> column -> (mean, standard error), see `summarize`.
    """
    from matplotlib.figure import Figure

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

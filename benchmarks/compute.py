"""Presets against one another at equal denoiser compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .shapes import Record, differences


if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASELINES = ("best-of-n", "fk-paper")


def difference_columns(
    records: Mapping[str, Sequence[Record]], baselines: Sequence[str] = BASELINES
) -> dict[str, dict[str, tuple[float, float | None]]]:
    """How runs named 'PRESET@BUDGET' differ from the baselines at the same budget.

    Returns:
        Run -> 'MEASURE - BASELINE' -> mean and standard error, see `differences`.
    """
    rows = {}
    for run, some in records.items():
        preset, budget = run.split("@")
        others = [name for name in baselines if name != preset and f"{name}@{budget}" in records]
        rows[run] = {
            f"{measure} - {name}": value
            for name in others
            for measure, value in differences(some, records[f"{name}@{budget}"]).items()
        }
    return rows


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

"""Presets at equal denoiser compute, each with the steps and the sampler that suit it best."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from matplotlib.figure import Figure

from fk_steer.cli.options import (
    DEFAULT_MODEL,
    DEFAULT_REWARD,
    BatchSize,
    Guidance,
    Guide,
    Half,
    Model,
    PerTask,
    Processes,
    ResultsFolder,
    Seeds,
    one_line_errors,
)
from fk_steer.evaluation.world import Record, Row, differences, measure_all, setup_of, summarize, write_table
from fk_steer.files import write_atomically, write_json
from fk_steer.loading import quiet_libraries
from fk_steer.report.figures import figure_png
from fk_steer.search import Strategy, preset
from llava_reward_guide.terminal import taking


GUIDED_ROWS = 2
"""Denoiser rows of a call: guidance doubles them in this world."""

METHODS = ("adaptive", "best-of-n", "fk-paper", "bfs", "psp", "svdd", "finish", "refine")
BUDGETS = (50, 100, 200, 400, 800)
STEPS = (5, 7, 10, 14, 25)
SAMPLERS = ("ddim", "dpmsolver++")

REFERENCES = ("adaptive@200/25/ddim", "adaptive@400/25/ddim", "best-of-n@200/25/ddim", "best-of-n@800/25/ddim")
"""Runs of 25 steps beside those chosen."""

Chosen = dict[str, dict[str, str]]
"""Method -> budget in rows -> run."""


_RUN = re.compile(r"([^@/]+)@(\d+)(?:/(\d+)/([^/]+)(?:/(0?\.\d+|1))?)?")


def strategy_of(run: str) -> Strategy:
    """The settings of a run 'PRESET@ROWS', whose steps and sampler the budget decides, 'PRESET@ROWS/STEPS/SAMPLER', or
    'PRESET@ROWS/STEPS/SAMPLER/STOP' with guidance up to that share of the loop.

    Raises:
        ValueError: for another form, or an unknown preset.
    """
    parts = _RUN.fullmatch(run)
    if parts is None:
        raise ValueError(f"Expected PRESET@ROWS, or PRESET@ROWS/STEPS/SAMPLER and perhaps /STOP, but got {run!r}.")
    name, rows, steps, sampler, stop = parts.groups()
    settings = preset(name)
    rows_of_call: float = GUIDED_ROWS
    if steps is not None:
        settings = settings.replace(steps=int(steps), sampler=sampler)
    if stop is not None:
        settings = settings.replace(guidance_stop=float(stop))
        rows_of_call = 1 + settings.guided_steps(int(steps)) / int(steps)
    return settings.within(calls=int(int(rows) / rows_of_call))


def fits(run: str) -> bool:
    """Whether the budget of a run with fixed steps is enough for one particle."""
    settings = strategy_of(run)
    assert settings.steps is not None
    try:
        settings.resolved(settings.steps)
    except ValueError:
        return False
    return True


def best_of(rows: Mapping[str, Row]) -> Chosen:
    """The run of highest guide reward of each method at each budget."""
    found: Chosen = {}
    for run, row in rows.items():
        method, budget = run.split("/")[0].split("@")
        best = found.setdefault(method, {}).get(budget)
        if best is None or row["reward"][0] > rows[best]["reward"][0]:
            found[method][budget] = run
    return found


def against(records: Mapping[str, Sequence[Record]], runs: Sequence[str]) -> dict[str, Row]:
    """What some runs gain over each other run, paired: 'RUN less OTHER' -> measure -> mean and standard error."""
    return {
        f"{run} less {other}": differences(records[run], records[other])
        for run in runs
        for other in records
        if other != run
    }


def plot(rows: Mapping[str, Row]) -> Figure:
    """Guide reward and accuracy against the budget, a line per method, with standard errors. Where a method has several
    runs at one budget, those after the first have lines of their own, by their steps and sampler.

    Args:
        rows: run -> column -> (mean, standard error), see `summarize`.
    """
    lines: dict[str, dict[int, Row]] = {}
    for run, row in rows.items():
        (method, budget), *fixed = run.split("/")[0].split("@"), *run.split("/")[1:]
        taken = int(budget) in lines.get(method, {})
        lines.setdefault(f"{method}, {' '.join(fixed)}" if taken and fixed else method, {})[int(budget)] = row
    budgets = sorted({budget for line in lines.values() for budget in line})
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = {"reward": "guide reward of the best image", "overall": "overall accuracy, %"}
    for axis, (measure, label) in zip(figure.subplots(1, 2), panels.items()):
        for name, line in lines.items():
            values = [line[budget][measure] for budget in sorted(line)]
            axis.errorbar(
                sorted(line),
                [mean for mean, _ in values],
                yerr=[error or 0.0 for _, error in values],
                marker="o",
                markersize=4,
                capsize=2,
                label=name,
            )
        axis.set(xscale="log", xlabel="denoiser rows per image", ylabel=label)
        axis.set_xticks(budgets, labels=map(str, budgets))
        axis.set_xticks([], minor=True)
    figure.axes[0].legend(fontsize="small")
    return figure


app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)


@dataclass
class Shared:
    """What `tune` and `held_out` both take."""

    out: ResultsFolder
    model: Model = DEFAULT_MODEL
    reward: Guide = DEFAULT_REWARD
    guidance: Guidance = None
    batch_size: BatchSize = 10
    processes: Processes = 1
    half: Half = False

    def records(
        self, runs: Sequence[str], split: str, folder: str, seeds: int, per_task: int
    ) -> dict[str, list[Record]]:
        """The records of some runs, generated where they are missing."""
        whole = setup_of(self.model, self.reward, per_task, None, self.guidance, split, self.half)
        # A run has its own.
        setup = {**whole, "steps": None}
        named = {run: strategy_of(run) for run in runs}
        return measure_all(named, setup, self.out / folder, seeds, self.batch_size, self.processes)


@app.command()
@taking(Shared)
def tune(
    shared: Shared,
    method: Annotated[
        list[str] | None, typer.Option(help="Tune these presets.", show_default=", ".join(METHODS))
    ] = None,
    budget: Annotated[
        list[int] | None,
        typer.Option(
            help="Spend this many denoiser rows on an image; may be repeated.",
            show_default=", ".join(map(str, BUDGETS)),
        ),
    ] = None,
    steps: Annotated[
        list[int] | None,
        typer.Option(help="Try loops of so many steps; may be repeated.", show_default=", ".join(map(str, STEPS))),
    ] = None,
    sampler: Annotated[
        list[str] | None, typer.Option(help="Try these schedulers.", show_default=", ".join(SAMPLERS))
    ] = None,
    run: Annotated[
        list[str] | None,
        typer.Option(
            help="Try these runs in place of that grid: PRESET@ROWS/STEPS/SAMPLER, perhaps /STOP.",
            show_default="the grid",
        ),
    ] = None,
    seeds: Seeds = 1,
    per_task: PerTask = 20,
) -> None:
    """Find the steps and sampler of each preset at each budget, on prompts for tuning."""
    quiet_libraries()
    with one_line_errors():
        grid = itertools.product(method or METHODS, budget or BUDGETS, steps or STEPS, sampler or SAMPLERS)
        named = [f"{name}@{rows}/{count}/{kind}" for name, rows, count, kind in grid]
        runs = [one for one in run or named if fits(one)]
        records = shared.records(runs, "tuning", "tuning", seeds, per_task)
        rows = {run: summarize(some) for run, some in records.items()}
        chosen = best_of(rows)
        write_table(shared.out / "tuning-table", rows)
        write_json(shared.out / "chosen.json", chosen)
        counts = {name: sum(one.startswith(f"{name}@") for one in runs) for name in chosen}
        typer.echo(f"Settings tried: {', '.join(f'{name} {count}' for name, count in counts.items())}.")


@app.command()
@taking(Shared)
def held_out(
    shared: Shared,
    chosen: Annotated[
        Path | None,
        typer.Option(help="Compare the runs that `tune` has chosen in this file.", show_default="OUT/chosen.json"),
    ] = None,
    run: Annotated[
        list[str] | None,
        typer.Option(
            help="Compare these runs in place of those chosen: PRESET@ROWS, /STEPS/SAMPLER, perhaps /STOP.",
            show_default="those chosen",
        ),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(help="Compare these runs too, and each of them with all others.", show_default="none"),
    ] = None,
    budget: Annotated[
        list[int] | None,
        typer.Option(help="Compare the runs chosen for this many denoiser rows.", show_default="all"),
    ] = None,
    seeds: Seeds = 3,
    per_task: PerTask = 40,
) -> None:
    """Compare the presets, each as chosen, on held-out prompts, from the same initial noise."""
    quiet_libraries()
    with one_line_errors():
        runs = list(run or ())
        if not runs:
            found: Chosen = json.loads((chosen or shared.out / "chosen.json").read_text())
            wanted = None if budget is None else {str(rows) for rows in budget}
            runs = [one for of in found.values() for rows, one in of.items() if wanted is None or rows in wanted]
            runs += [one for one in REFERENCES if one not in runs]
        runs = [*(also or ()), *runs]
        records = shared.records(runs, "held-out", "held-out", seeds, per_task)
        rows = {one: summarize(some) for one, some in records.items()}
        write_table(shared.out / "held-out-table", rows)
        write_table(shared.out / "differences", against(records, also or runs[:1]))
        write_atomically(shared.out / "compute.png", figure_png(plot(rows)))


if __name__ == "__main__":
    app()

"""From the published settings to ours, one ingredient at a time."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import typer

from fk_steer.cli.options import (
    DEFAULT_REWARD,
    BatchSize,
    Guidance,
    Guide,
    Model,
    PerTask,
    Processes,
    ResultsFolder,
    Seeds,
    Steps,
    one_line_errors,
)
from fk_steer.evaluation.world import differences, measure_all, setup_of, summarize, write_table
from fk_steer.loading import quiet_libraries
from fk_steer.search import FKSteering, Noise, Preview, Strategy, preset
from fk_steer.smc import Constant, Difference, Max, Resampling, Rising, Schedule, TargetESS


@dataclass(frozen=True)
class Step:
    """One change of the settings.

    Attributes:
        name: short, for folders and tables.
        change: what is changed, in words.
        settings: with the change.
        before: name of the step whose settings were changed; None for the first.
    """

    name: str
    change: str
    settings: Strategy
    before: str | None


def changes() -> list[Step]:
    """`fk-paper` turned into `adaptive`, change by change; then single changes to it, and `hybrid` and `finish` beside
    it."""
    late = FKSteering.preset("adaptive").schedule.at
    found = [Step("fk-paper", "the published settings", FKSteering.preset("fk-paper"), None)]

    def change(before: Step, name: str, words: str, **fields: Any) -> None:
        found.append(Step(name, words, dataclasses.replace(before.settings, **fields), before.name))

    change(found[-1], "ssp", "SSP instead of multinomial resampling", resampling=Resampling(after_noise=True))
    change(found[-1], "before-noise", "resampling before the noise", resampling=Resampling())
    change(
        found[-1], "difference", "difference potential without floor, exact terminal weight",
        potential=Difference(),
    )  # fmt: skip
    change(found[-1], "rising", "lambda rising to twice its value", tempering=Rising(end=2.0))
    change(
        found[-1],
        "ess-gate",
        "resampling only below half the ESS, weights carried",
        resampling=Resampling(ess_threshold=0.5),
    )
    change(found[-1], "late", "six events from 40% of the loop on", schedule=Schedule(at=late))
    change(found[-1], "adaptive", "lambda solved for the ESS", tempering=TargetESS(), resampling=Resampling())
    ours = found[-1]
    assert ours.settings == FKSteering.preset("adaptive")

    change(ours, "max", "max potential", potential=Max())
    change(ours, "constant", "the reward's lambda, constant", tempering=Constant())
    change(ours, "quiet-end", "no noise in the last tenth", noise=Noise(window=(0.0, 0.9)))
    change(ours, "elite", "the best seed of the first event kept without noise", elite=True)
    change(
        ours, "shrinking", "5 particles, 3 from the first event on",
        num_particles=5, schedule=Schedule(at=late, alive=(0.6,) * len(late)),
    )  # fmt: skip
    change(ours, "cascade", "preview decoder up to 70% of the loop", preview=Preview("shapes", until=0.7))
    found.append(Step("hybrid", "the preset `hybrid` instead", FKSteering.preset("hybrid"), ours.name))
    found.append(Step("finish", "all follow the best from 72% of the loop on", preset("finish"), ours.name))
    return found


app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)


@app.command()
def main(
    out: ResultsFolder,
    model: Model = "shapes",
    reward: Guide = DEFAULT_REWARD,
    seeds: Seeds = 3,
    per_task: PerTask = 40,
    steps: Steps = None,
    guidance: Guidance = None,
    batch_size: BatchSize = 8,
    processes: Processes = 1,
) -> None:
    """Go from the published settings to ours, one change at a time, each compared with the settings before it."""

    quiet_libraries()
    with one_line_errors():
        setup = setup_of(model, reward, per_task, steps, guidance)
        chain = changes()
        records = measure_all({step.name: step.settings for step in chain}, setup, out, seeds, batch_size, processes)
        rows = {}
        for step in chain:
            rows[step.name] = summarize(records[step.name])
            if step.before is not None:
                gains = differences(records[step.name], records[step.before])
                rows[step.name] |= {f"{measure} - before": value for measure, value in gains.items()}
        write_table(out / "ablation", rows)


if __name__ == "__main__":
    app()

"""Several rewards as guides at once: their mean, less what they disagree on, and their votes, beside each alone."""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks.compute.run import strategy_of
from fk_steer.cli.options import (
    DEFAULT_MODEL,
    BatchSize,
    Half,
    PerTask,
    Processes,
    ResultsFolder,
    Seeds,
    one_line_errors,
)
from fk_steer.evaluation.world import Record, differences, measure_all, setup_of, summarize, write_table
from fk_steer.loading import quiet_libraries


REWARDS = ("clip-score", "image-reward", "llava-reward")
MEAN, VOTES = "+".join(REWARDS), "|".join(REWARDS)
RUN = "finish@200"
UNGUIDED = "finish@200/10/dpmsolver++/.5"
"""The same without classifier-free guidance in the second half of the loop, see docs/compute.md."""
GUIDES = {
    "clip": ("clip-score", RUN),
    "mean": (MEAN, RUN),
    "mean - 0.5 sd": (f"{MEAN}-0.5*sd", RUN),
    "majority": (VOTES, RUN),
    "majority, guidance_stop 0.5": (VOTES, UNGUIDED),
}
"""Label -> the reward's name on a command line, and how it steers. The world's rewards, and kappa, are those of
benchmarks/selector."""


def main(
    out: ResultsFolder,
    guide: Annotated[
        list[str] | None, typer.Option(help="Take these guides; may be repeated.", show_default=", ".join(GUIDES))
    ] = None,
    per_task: PerTask = 40,
    seeds: Seeds = 2,
    batch_size: BatchSize = 10,
    processes: Processes = 1,
    half: Half = False,
) -> None:
    """Steer held-out prompts by each guide, from the same noise, and set them against one another."""
    quiet_libraries()
    with one_line_errors():
        labels = guide or list(GUIDES)
        if unknown := [label for label in labels if label not in GUIDES]:
            raise ValueError(f"Unknown guide {unknown[0]!r}. Known: {', '.join(GUIDES)}.")
        records: dict[str, list[Record]] = {}
        for label in labels:
            reward, run = GUIDES[label]
            setup = {**setup_of(DEFAULT_MODEL, reward, per_task, None, None, "held-out", half), "steps": None}
            place = out / label.replace(" ", "")
            records[label] = measure_all({run: strategy_of(run)}, setup, place, seeds, batch_size, processes)[run]
        write_table(out / "table", {label: summarize(some) for label, some in records.items()})
        pairs = [(one, other) for index, other in enumerate(labels) for one in labels[index + 1 :]]
        rows = {f"{one} less {other}": differences(records[one], records[other]) for one, other in pairs}
        write_table(out / "differences", rows)


if __name__ == "__main__":
    typer.run(main)

"""GenEval's six tasks on the bundled world: presets side by side, as in the README's table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fk_steer.cli.options import (
    DEFAULT_REWARD,
    BatchSize,
    Guidance,
    Guide,
    Lmbda,
    Model,
    PerTask,
    Processes,
    ResultsFolder,
    Seeds,
    Steps,
    one_line_errors,
)
from fk_steer.evaluation.world import (
    differences,
    folder_of,
    measure_all,
    preset_name,
    read_records,
    setup_of,
    sized,
    summarize,
    write_table,
)
from fk_steer.loading import quiet_libraries


app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)


@app.command()
def main(
    out: ResultsFolder,
    preset: Annotated[
        list[str],
        typer.Option(
            help="Steer by these settings: PRESET, PRESET:PARTICLES, or PRESET@LOOPS for as many particles as cost "
            "that many whole loops. Several make a row each, compared with the first."
        ),
    ],
    model: Model = "shapes",
    reward: Guide = DEFAULT_REWARD,
    particles: Annotated[
        int | None,
        typer.Option(help="Take this many particles where a preset comes without.", show_default="the preset's"),
    ] = None,
    lmbda: Lmbda = None,
    seeds: Seeds = 3,
    per_task: PerTask = 40,
    steps: Steps = None,
    guidance: Guidance = None,
    batch_size: BatchSize = 8,
    processes: Processes = 1,
    against: Annotated[
        Path | None,
        typer.Option(help="Compare with this folder, of the same presets with another guide.", show_default="none"),
    ] = None,
) -> None:
    """Run GenEval's six tasks on the bundled world's held-out prompts, judged by exact detection."""

    quiet_libraries()
    with one_line_errors():
        setup = setup_of(model, reward, per_task, steps, guidance)
        steerings = [sized(name, setup["steps"], num_particles=particles, lmbda=lmbda) for name in preset]
        named = {
            f"{preset_name(name)}, k = {settings.num_particles}": settings for name, settings in zip(preset, steerings)
        }
        records = measure_all(named, setup, out, seeds, batch_size, processes)
        first = next(iter(records.values()))
        rows = {name: summarize(some, None if some is first else first) for name, some in records.items()}
        if against is not None:
            for name, settings in named.items():
                others = read_records(folder_of(against, name, settings))
                found = differences(records[name], others)
                # Rewards of different guides have different scales.
                rows[name] |= {
                    f"{measure} - {against.name}": found[measure] for measure in found if measure != "reward"
                }
        write_table(out / "table", rows)


if __name__ == "__main__":
    app()

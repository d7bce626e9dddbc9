"""How much faster several processes make a generation run than one, a thread each."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fk_steer.cli.options import one_line_errors
from fk_steer.console import console
from fk_steer.evaluation.costs import machine
from fk_steer.evaluation.generation.folder import Progress, RunFolder
from fk_steer.evaluation.generation.plan import GenerationSettings, Plan
from fk_steer.evaluation.generation.workers import run_processes
from fk_steer.files import write_json
from fk_steer.loading import quiet_libraries


WARM_UP = 0.25
"""Share of the samples that are made before the clock starts: by then every worker has loaded its models."""


def measure(
    settings: GenerationSettings, processes: int, repeats: int, progress: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Samples per second with one process and with several, in turn, so that a change of the machine's load meets both.

    Args:
        settings: of the run that is made each time.
        processes: to compare with one.
        repeats: measurements of each.
        progress: called with a line about each measurement.

    Returns:
        'one' and 'several', the measurements in samples per second; 'ratios' of the pairs and their median 'ratio';
        'load', the load average of the last minute before each pair, and 'cores'.
    """
    measured: dict[str, list[float]] = {"one": [], "several": [], "load": []}
    for repeat in range(repeats):
        measured["load"].append(os.getloadavg()[0])
        # The order alternates as well.
        for name, number in sorted({"one": 1, "several": processes}.items(), reverse=bool(repeat % 2)):
            measured[name].append(_throughput(settings, number))
            progress(f"{number} processes: {measured[name][-1]:.3f} samples/s")
    ratios = [several / one for several, one in zip(measured["several"], measured["one"])]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {**measured, "ratios": ratios, "ratio": statistics.median(ratios), "cores": cores, "processes": processes}


def _throughput(settings: GenerationSettings, processes: int) -> float:
    """Samples per second, by the times at which the records were written."""
    with tempfile.TemporaryDirectory() as out:
        folder = RunFolder(out, Plan.of(settings))
        folder.open()
        run_processes(folder, processes, "cpu", Progress(folder, lambda done, total: None))
        times = sorted(path.stat().st_mtime_ns for path in Path(out).glob("*/records/*.json"))
    start = int(WARM_UP * len(times))
    return (len(times) - 1 - start) / (times[-1] - times[start]) * 1e9


app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Write samples per second and ratios to this JSON file.")],
    processes: Annotated[int, typer.Option(min=2, help="Compare this many processes with one; each needs a core.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="Measure each this often, in turn.")] = 3,
    limit: Annotated[int, typer.Option(min=8, help="Generate this many prompts in each measurement.")] = 48,
    steps: Annotated[int, typer.Option(min=1, help="Take this many denoising steps.")] = 10,
) -> None:
    """Measure how much faster several processes make a run than one, a thread each, on a CPU."""
    with one_line_errors():
        quiet_libraries()
        settings = GenerationSettings("shapes", "shapes", limit=limit, steps=steps, samples_per_prompt=1, batch_size=2)
        measured = measure(settings, processes, repeats, lambda line: console.print(line, highlight=False))
        setup = {"prompts": limit, "steps": steps, "batch_size": settings.batch_size, "machine": machine("cpu")}
        write_json(out, {**setup, **measured})
        console.print(f"{processes} processes are {measured['ratio']:.2f} times as fast as one", highlight=False)


if __name__ == "__main__":
    app()

"""How much faster several processes make a generation run than one, a thread each."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .generation_folder import Progress, RunFolder
from .generation_plan import GenerationSettings, Plan
from .generation_workers import run_processes


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

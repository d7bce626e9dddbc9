"""Images for a list of prompts, steered or not: any number of processes or machines, one folder, nothing lost.

A folder is the record of a run, in GenEval's official layout with a record beside each image:

    settings.json               what the images were made with
    00000/metadata.jsonl        the prompt's entry of the list, for example its line of GenEval's metadata
    00000/samples/00000.png     the best image of a sample by final reward
    00000/records/00000.json    its `SampleRecord`
    00000/traces/00000.json     of a steered sample, its `fk_steer.Trace` without the seconds
    00000/grid.png              the prompt's samples side by side

A sample is one steered call of K particles, of which the best image is kept; the samples of a prompt are independent
repeats. Its noise follows from the seed and the numbers of the prompt and the repeat alone, and the calls that samples
are batched into are fixed by the settings, so that a run gives the same bytes however it is spread, interrupted and
resumed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ...loading import find_model
from ...records import read_record, say_set_aside
from ...rewards.loading import default_device
from ...smc import unknown
from .folder import Progress, RunFolder
from .plan import GenerationSettings, Plan, SampleRecord


__all__ = ["GenerationSettings", "SampleRecord", "generate", "is_complete", "read_records"]


ENGINES = ("local", "ray")


def generate(
    settings: GenerationSettings,
    out: str | Path,
    *,
    processes: int = 1,
    engine: str = "local",
    device: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    repair: bool = False,
    before: Callable[[Plan], None] = lambda plan: None,
) -> None:
    """Make what is missing in a folder; returns when it is complete, at once and without loading a model if it is.

    Under `accelerate launch`, or started several times on a folder that all can see, the processes share the work and
    all return when it is done; what a process that died was at is taken over by the others.

    Args:
        settings: what to make.
        out: the folder.
        processes: workers; several have one thread each, or a GPU in turn.
        engine: 'local', or 'ray' for workers on a Ray cluster; lost ones are replaced.
        device: None for CUDA if there is a device, else the CPU.
        progress: called with the numbers of samples there and of all.
        repair: set aside what cannot be read, in `.unreadable` within the folder, and make it anew.
        before: called with what is to be made, if anything is missing, before models are loaded.

    Raises:
        ValueError: if the folder was made with other settings, naming the first that differs; for an unknown engine,
            or workers of workers; `UnreadableFile` for broken files, unless `repair`.
        OSError: if the prompts cannot be had or a file not be written. What was finished is there.
        ImportError: for the engine 'ray' without Ray.
        RuntimeError: if all workers were lost.
    """
    if processes < 1:
        raise ValueError(f"Expected `processes` to be at least 1, but got {processes}.")
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    launched = launched_processes() > 1
    if launched and (processes > 1 or engine == "ray"):
        raise ValueError("Expected one process and the engine 'local' where a launcher has started several already.")
    if not (Path(out) / "settings.json").exists():
        # Before prompts are fetched, and the folder is that of a model which is none.
        find_model(settings.model)
    plan = Plan.of(settings)
    folder = RunFolder(out, plan)
    if repair:
        for problem in folder.repair():
            say_set_aside(problem)
    folder.check()
    folder.check_files()
    rank, world = 0, 1
    if launched:
        from accelerate import PartialState

        # Before anything that the processes could see differently: they wait for one another here.
        state = PartialState(cpu=default_device(device).type == "cpu")
        rank, world, device = state.process_index, state.num_processes, str(state.device)
    if not folder.missing_shares():
        progress(plan.num_samples, plan.num_samples)
        return
    before(plan)
    folder.open()
    counter = Progress(folder, progress)
    if engine == "ray":
        from .ray import run_on_ray

        run_on_ray(folder, processes, device, counter)
    elif processes > 1:
        from .workers import run_processes

        run_processes(folder, processes, device, counter)
    else:
        from .workers import work

        work(folder, rank, world, device, counter)
    folder.close()


def launched_processes() -> int:
    """How many processes a launcher such as `accelerate launch` has started; 1 without."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this is the one that does what is not shared."""
    return launched_processes() == 1 or os.environ.get("RANK", "0") == "0"


def is_complete(settings: GenerationSettings, out: str | Path) -> bool:
    """Whether a folder holds everything that `generate` makes with these settings.

    Raises:
        ValueError: if the folder was made with other settings, naming the first that differs.
        OSError: if the prompts cannot be had.
    """
    folder = RunFolder(out, Plan.of(settings))
    folder.check()
    return not folder.missing_shares()


def read_records(out: str | Path) -> list[SampleRecord]:
    """The records of a folder, by prompt and sample; those of unfinished runs too."""
    paths = sorted(Path(out).glob("*/records/*.json"))
    return [read_record(path, SampleRecord.from_dict) for path in paths]

"""The cells of a study, each generated, judged and scored in a folder of its own.

    OUT/PROMPTS/MODEL/GUIDE/                 see `generation`
    OUT/PROMPTS/MODEL/GUIDE/evaluation/      see `accuracy`
    OUT/PROMPTS/MODEL/GUIDE/panel/           see `panel`

Whatever is finished is kept; running a study again does what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from ...console import progress_bar, report_failure, say
from ...records import check_folder, read_record, say_set_aside, set_aside, unreadable
from ..folders import Item, prompt_folders, read_items
from ..generation.run import generate, is_first_process
from ..geneval.accuracy import detector_settings, evaluate_folders
from ..geneval.evaluator import read_results
from ..panel.metrics import Metric
from ..panel.panel import score_all
from ..panel.scores import read_scores
from .study import Cell, Study


def run_study(
    study: Study,
    out: Path,
    *,
    device: str | None = None,
    processes: int = 1,
    metric_batch_size: int = 8,
    repair: bool = False,
) -> dict[str, str]:
    """Do what is missing: generate all cells, then judge them by one detector, then score them by one metric after the
    other. Under `accelerate launch` the processes generate together, and the first one does the rest alone.

    Args:
        study: what to do.
        out: its folder.
        device: None for CUDA if there is a device, else the CPU.
        processes: workers that generate, see `generate`.
        metric_batch_size: images scored at a time.
        repair: set aside what cannot be read, and make it anew.

    Returns:
        What -> what went wrong with it. The rest is done nevertheless.
    """
    failures: dict[str, str] = {}
    for number, cell in enumerate(study.cells(), 1):
        if speaks := is_first_process():
            say(f"[{number} of {len(study.cells())}] Images of {cell.name}")
        try:
            _generate(cell, out, device, processes, repair)
            if speaks:
                _check_derived(out / cell.name, repair)
        # Such as weights that are not there: of no concern to the other cells.
        except Exception as error:
            failures[cell.name] = report_failure(cell.name, error)
    if not is_first_process():
        return failures
    done = [cell for cell in study.cells() if cell.name not in failures]
    if any(judged(out / cell.name) for cell in done):
        say("Verdicts by GenEval's rules")
    failures |= _judge(study, done, out, device)
    by_metric: dict[str, tuple[Metric, list[tuple[list[Item], Path]]]] = {}
    for cell in done:
        items = read_items(out / cell.name)
        for metric in study.metrics_of(cell):
            # On models of both kinds a label may stand for two metrics.
            key = json.dumps([metric.label, metric.settings], sort_keys=True, default=str)
            by_metric.setdefault(key, (metric, []))[1].append((items, out / cell.name / "panel"))
    for number, (metric, folders) in enumerate(by_metric.values(), 1):
        say(f"[{number} of {len(by_metric)}] Scores by {metric.label}")
        failures |= score_all(folders, [metric], metric_batch_size, device)
    return failures


def judged(folder: Path) -> bool:
    """Whether the prompts of a folder have GenEval's metadata, so that its images are right or wrong."""
    record = next((record for record, _ in prompt_folders(folder)), None)
    return record is not None and "include" in read_record(record, dict)


def _generate(cell: Cell, out: Path, device: str | None, processes: int, repair: bool) -> None:
    with progress_bar() as bar:
        task = bar.add_task(cell.name, total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        folder = out / cell.name
        generate(cell.settings, folder, device=device, processes=processes, progress=progress, repair=repair)


def _check_derived(folder: Path, repair: bool) -> None:
    """Make sure that what was made of a cell's images can be read, or set aside what cannot."""
    looks: list[tuple[Path, Callable[[Path], object]]] = [
        (folder / "evaluation", check_folder),
        (folder / "panel", check_folder),
        (folder / "evaluation" / "settings.json", lambda path: read_record(path, dict)),
        (folder / "evaluation" / "summary.json", lambda path: read_record(path, dict)),
        (folder / "evaluation" / "results.jsonl", read_results),
    ]
    looks += [(file, lambda path: read_scores(path.parent, path.stem)) for file in folder.glob("panel/*.json")]
    found = unreadable(looks)
    if found and not repair:
        raise found[0]
    for problem in found:
        set_aside(problem.path, folder)
        say_set_aside(problem)
    verdicts = folder / "evaluation" / "results.jsonl"
    if verdicts.exists() and not verdicts.with_name("settings.json").exists():
        # By which detector is not known: they are made anew.
        set_aside(verdicts, folder)


def _judge(study: Study, cells: Sequence[Cell], out: Path, device: str | None) -> dict[str, str]:
    failures = {}
    for world in (True, False):
        folders = [out / cell.name for cell in cells if cell.world is world and judged(out / cell.name)]
        if not folders:
            continue
        try:
            settings = detector_settings("shapes") if world else detector_settings("mask2former", **study.detector)
            evaluate_folders([(folder, folder / "evaluation") for folder in folders], settings, device)
        except Exception as error:
            failures["accuracy"] = report_failure("accuracy", error)
    return failures

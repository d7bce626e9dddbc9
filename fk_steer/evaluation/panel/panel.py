"""What `fk-steer eval panel` does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from llava_reward_guide.texts import read_yaml

from ...console import console, progress_bar, report_failure
from ...csvs import csv_text
from ...files import write_atomically, write_json
from ...rewards.loading import default_device
from ..folders import Item, read_items
from ..geneval.accuracy import detector_settings, evaluate_folders
from .metrics import PANEL, LazyScorer, Metric, in_world, parse_metrics, read_metrics
from .scores import check_file, score_images, summarize_panel


WORLD_PANEL = {
    "clip-score": {},
    "held-out-clip": {"metric": "clip-score", "path": "shapes-held-out"},
    "shapes-oracle": {},
    "diversity": {},
}
"""The default metrics on the bundled world: the CLIP that may have guided, one that never does, and the exact
detector."""


def run(
    source: Path,
    names: list[str] | None,
    options: list[str] | None,
    file: Path | None,
    detector: str | None,
    out: Path | None,
    batch_size: int,
    device: str | None,
) -> bool:
    """Whether every metric could be had."""
    metrics = chosen(names, options, file, world=detector == "shapes")
    items = read_items(source)
    out = out or (source if source.is_dir() else source.parent) / "panel"
    failures = score_all([(items, out)], metrics, batch_size, device)
    summary = summarize_panel(items, out, metrics)
    if detector is not None:
        summary["geneval"] = _accuracy(source, detector, device)
    write_json(out / "summary.json", {"metrics": summary, "failures": failures})
    columns = ("metric", "mean", "standard_error", "images", "prompts")
    rows: list[list[Any]] = [list(columns)]
    shown = Table(*(column.replace("_", " ") for column in columns), box=None, padding=(0, 2))
    for label, row in summary.items():
        rows.append([label, *(row[column] for column in columns[1:])])
        error = "" if row["standard_error"] is None else f"{row['standard_error']:.4f}"
        shown.add_row(label, f"{row['mean']:.4f}", error, str(row["images"]), str(row["prompts"]))
    write_atomically(out / "summary.csv", csv_text(rows).encode())
    console.print(shown)
    return not failures


def chosen(names: list[str] | None, options: list[str] | None, file: Path | None, world: bool) -> list[Metric]:
    """The metrics asked for, or the default ones.

    Raises:
        ValueError: for metrics from both places, or anything wrong with them.
    """
    if file is not None and (names or options):
        raise ValueError("Expected metrics by --metric and --metric-option, or from a file by --metrics, but got both.")
    if file is not None:
        metrics = read_metrics(read_yaml(file))
    elif names is None and world:
        metrics = read_metrics(WORLD_PANEL)
    else:
        metrics = parse_metrics(names or PANEL, options or [])
    return [in_world(metric) for metric in metrics] if world else metrics


def score_all(
    folders: Sequence[tuple[Sequence[Item], Path]], metrics: Sequence[Metric], batch_size: int, device: str | None
) -> dict[str, str]:
    """Score the images of all folders by one metric after the other.

    Args:
        folders: images, and the folder of the panel that their scores go to.

    Returns:
        Label -> what went wrong, for the metrics that failed.

    Raises:
        ValueError: before anything is scored, if a file has the scores of another metric under a label.
    """
    for _, folder in folders:
        for metric in metrics:
            check_file(folder, metric)
    failures: dict[str, str] = {}
    with progress_bar() as bar:
        for metric in metrics:
            task = bar.add_task(metric.label, total=sum(len(items) for items, _ in folders))
            advance = partial(bar.advance, task)
            scorer = LazyScorer(metric, default_device(device))
            try:
                for items, folder in folders:
                    unreadable = score_images(items, scorer, folder, batch_size, advance)
                    for name, problem in unreadable.items():
                        console.print(
                            f"[yellow]skipped[/yellow] {escape(f'{name}: {problem}')}", highlight=False, soft_wrap=True
                        )
            # The other metrics are worth having whatever is wrong with this one.
            except Exception as error:
                failures[metric.label] = report_failure(metric.label, error)
            finally:
                scorer.free()
    return failures


def _accuracy(folder: Path, detector: str, device: str | None) -> dict[str, Any]:
    out = folder / "evaluation"
    (summary,) = evaluate_folders([(folder, out)], detector_settings(detector), device)
    mean, error = summary.overall
    return {
        "mean": mean,
        "standard_error": error,
        "images": summary.images,
        "prompts": summary.prompts,
        "detector": detector,
        "file": str(out / "results.jsonl"),
    }

"""Scores of images by a panel of metrics, one file per metric.

The file is the record: it names the metric with its options and holds a score per image with what identifies the image.
Running again scores what is missing or has changed.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llava_reward_guide.images import ImageError, load_image

from ...files import write_json
from ...records import read_record
from ..folders import Item
from ..statistics import Estimate, clustered_mean
from .metrics import LazyScorer, Metric


WRITE_EVERY = 10.0
"""Seconds between writes of the scores so far."""


@dataclass(frozen=True)
class Row:
    """The score of an image, and of which image and prompt it is.

    Attributes:
        prompt: the text.
        group: see `Item`.
        score: None if the metric had none for the image.
        size, mtime_ns: of the file. If one of them differs, the digest decides.
        sha256: of the file's content.
    """

    prompt: str
    group: str
    score: float | None
    size: int
    mtime_ns: int
    sha256: str


def scores_file(folder: Path, label: str) -> Path:
    """Where the scores of a metric are, in the folder of a panel."""
    return folder / f"{label}.json"


def check_file(folder: Path, metric: Metric) -> None:
    """Make sure that the scores of a label, if there are any, are of this metric.

    Raises:
        ValueError: if they were made with other options.
    """
    file = scores_file(folder, metric.label)
    if file.exists() and (before := read_record(file, lambda values: values["settings"])) != metric.settings:
        raise ValueError(
            f"{file} was made with {before} instead of {metric.settings}. Give the metric another label, or move the "
            "file away."
        )


def read_scores(folder: Path, label: str) -> dict[str, Row]:
    """Name of an image -> its row; empty if there is no file."""
    file = scores_file(folder, label)
    if not file.exists():
        return {}
    return read_record(file, lambda values: {name: _parsed(row) for name, row in values["scores"].items()})


def _parsed(values: dict[str, Any]) -> Row:
    row = Row(**values)
    if not isinstance(row.score, (int, float, type(None))):
        raise ValueError(f"expected `score` to be a number, got {row.score!r}")
    return row


def score_images(
    items: Sequence[Item],
    scorer: LazyScorer,
    folder: Path,
    batch_size: int = 8,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, str]:
    """Score what has no score by this metric yet.

    Args:
        items: the images.
        scorer: the metric; it is loaded only if there is something to do.
        folder: of the panel; the scores go to a file in it, now and then on the way and at the end, also if it fails.
        batch_size: images at a time.
        progress: called with the number of images done.

    Returns:
        Name of an image -> what is wrong, for those that cannot be read.

    Raises:
        Exception: whatever the metric raises.
    """
    metric = scorer.metric
    file = scores_file(folder, metric.label)
    rows = _still_true(read_scores(folder, metric.label), items, metric.of_groups)
    missing = [item for item in items if item.name not in rows]
    progress(len(items) - len(missing))
    unreadable: dict[str, str] = {}
    if not missing:
        return unreadable

    def write() -> None:
        ordered = {item.name: asdict(rows[item.name]) for item in items if item.name in rows}
        write_json(file, {"metric": metric.label, "settings": metric.settings, "scores": ordered})

    written, scored = time.monotonic(), False
    try:
        for batch in _batches(missing, batch_size, metric.of_groups):
            images = []
            for item in batch:
                try:
                    images.append((item, load_image(item.path, keep_mode=True)))
                except ImageError as error:
                    unreadable[item.name] = str(error)
            if images:
                texts = [item.group if metric.of_groups else item.prompt for item, _ in images]
                scores = scorer([image for _, image in images], texts)
                rows |= {item.name: _row(item, score) for (item, _), score in zip(images, scores, strict=True)}
                scored = True
            progress(len(batch))
            if time.monotonic() - written > WRITE_EVERY:
                write()
                written = time.monotonic()
    finally:
        if scored:
            write()
    return unreadable


def panel_mean(items: Sequence[Item], rows: Mapping[str, Row]) -> tuple[Estimate, int, int] | None:
    """Mean over the images that have a score, with its standard error clustered by prompt, their number and that of
    their prompts; None without scores."""
    clusters: dict[str, list[float]] = {}
    for item in items:
        if item.name in rows and (score := rows[item.name].score) is not None:
            clusters.setdefault(item.prompt, []).append(score)
    if not clusters:
        return None
    return clustered_mean(list(clusters.values())), sum(map(len, clusters.values())), len(clusters)


def summarize_panel(items: Sequence[Item], folder: Path, metrics: Sequence[Metric]) -> dict[str, dict[str, Any]]:
    """Label -> mean, standard error, images, prompts and file, for the metrics that have scores."""
    summary = {}
    for metric in metrics:
        if found := panel_mean(items, read_scores(folder, metric.label)):
            (mean, error), images, prompts = found
            summary[metric.label] = {
                "mean": mean,
                "standard_error": error,
                "images": images,
                "prompts": prompts,
                **metric.settings,
                "file": scores_file(folder, metric.label).name,
            }
    return summary


def _row(item: Item, score: float | None) -> Row:
    status = item.path.stat()
    return Row(item.prompt, item.group, score, status.st_size, status.st_mtime_ns, _digest(item.path))


def _still_true(rows: dict[str, Row], items: Sequence[Item], of_groups: bool) -> dict[str, Row]:
    """The rows that are of these images as they are now, and for a metric of groups of groups that are as they were."""
    true = {item.name: rows[item.name] for item in items if item.name in rows and _is_of(rows[item.name], item)}
    if not of_groups:
        return true
    before = Counter(row.group for row in rows.values())
    now = Counter(item.group for item in items)
    still = Counter(row.group for row in true.values())
    whole = {group for group, number in now.items() if before[group] == still[group] == number}
    return {name: row for name, row in true.items() if row.group in whole}


def _is_of(row: Row, item: Item) -> bool:
    if (row.prompt, row.group) != (item.prompt, item.group):
        return False
    status = item.path.stat()
    if (row.size, row.mtime_ns) == (status.st_size, status.st_mtime_ns):
        return True
    return row.size == status.st_size and row.sha256 == _digest(item.path)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _batches(items: Sequence[Item], size: int, of_groups: bool) -> Iterator[list[Item]]:
    """Of `size` images; for a metric of groups a group each."""
    if not of_groups:
        for start in range(0, len(items), size):
            yield list(items[start : start + size])
        return
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    yield from groups.values()

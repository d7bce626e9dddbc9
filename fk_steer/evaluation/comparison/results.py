"""What the files of a study say: estimates with standard errors, differences, ranks, and where each comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...combinations import by_reward
from ...records import Misplaced, UnreadableFile
from ...report.trace import strict
from ..folders import Item, read_items
from ..generation.run import SampleRecord, read_records
from ..geneval.evaluator import read_results
from ..panel.metrics import Metric
from ..panel.scores import read_scores, scores_file
from ..statistics import Estimate, clustered_mean, mean_by, mean_of_means
from .study import Cell, Study


TASKS = ("color_attr", "counting", "position", "colors", "two_object", "single_object")
"""GenEval's tasks in the order of the LLaVA-Reward paper's table."""

UNREADABLE = (f"{UnreadableFile.__name__}:", f"{Misplaced.__name__}:")
"""How the failures of cells begin of which a file cannot be read."""

OVERALL = "overall"
COSTS = ("nfe", "reward_calls", "seconds")
"""Fields of `SampleRecord`."""


@dataclass(frozen=True)
class Value:
    """One number of a table.

    Attributes:
        mean, error: and its standard error, clustered by prompt; None if there is none.
        images, prompts: what it is over.
        file: where it comes from, relative to the study's folder.
        difference: to the same number without steering, paired by prompt, with its standard error; None for that one
            itself.
        self_scored: whether the metric is the very reward that guided, or one of those.
        rank: 1 for the best of the model's guides on the same prompts, equal ones sharing it; None for costs and
            without others.
        fair_rank: the same among those that are not self-scored.
    """

    mean: float
    error: float | None
    images: int
    prompts: int
    file: str
    difference: Estimate | None = None
    self_scored: bool = False
    rank: int | None = None
    fair_rank: int | None = None


@dataclass(frozen=True)
class Picture:
    """One image of a cell and all that is known of it.

    Attributes:
        item: the image.
        scores: label of a metric -> score.
        correct: GenEval's verdict; None without one.
        reason: why it is not.
        record: of its generation.
    """

    item: Item
    scores: dict[str, float]
    correct: bool | None
    reason: str
    record: SampleRecord | None


@dataclass
class CellResults:
    """A cell and what its files say.

    Attributes:
        cell: which one.
        pictures: its images, by prompt and sample.
        accuracy, metrics, costs: column -> value.
        measured: what the metrics are.
    """

    cell: Cell
    pictures: list[Picture]
    accuracy: dict[str, Value]
    metrics: dict[str, Value]
    costs: dict[str, Value]
    measured: Sequence[Metric] = ()

    def values(self) -> dict[str, Value]:
        """All of them, accuracies as 'accuracy/TASK' and costs as 'cost/COST'."""
        accuracy = {f"accuracy/{task}": value for task, value in self.accuracy.items()}
        return accuracy | self.metrics | {f"cost/{name}": value for name, value in self.costs.items()}


def gather(study: Study, out: Path, failures: Mapping[str, str]) -> list[CellResults]:
    """The results of the cells that have images, from their files alone; those of which files cannot be read, as
    `failures` says, are left out."""
    results = []
    for cell in study.cells():
        if failures.get(cell.name, "").startswith(UNREADABLE):
            continue
        folder = out / cell.name
        try:
            items = read_items(folder)
        except FileNotFoundError:
            continue
        results.append(_read(cell, study.metrics_of(cell), items, out))
    _compare(results, study.baseline)
    return results


def _read(cell: Cell, metrics: Sequence[Metric], items: Sequence[Item], out: Path) -> CellResults:
    folder = out / cell.name
    verdicts = _verdicts(folder / "evaluation" / "results.jsonl")
    scores = {metric.label: read_scores(folder / "panel", metric.label) for metric in metrics}
    records = {(record.prompt_index, record.sample): record for record in read_records(folder)}
    pictures = []
    for item in items:
        correct, reason = verdicts.get(item.name, (None, ""))
        own = {label: rows[item.name].score for label, rows in scores.items() if item.name in rows}
        known = {label: score for label, score in own.items() if score is not None}
        record = records.get((int(item.group), int(item.path.stem)))
        pictures.append(Picture(item, known, correct, reason, record))

    of_each = by_reward(cell.settings.reward, cell.settings.reward_options) if cell.settings.reward else {}
    guided_by = [{"reward": name, "options": dict(options)} for name, options in of_each.items()]
    accuracy = {}
    file = f"{cell.name}/evaluation/results.jsonl"
    found = {picture.item.tag for picture in pictures if picture.correct is not None}
    for task in [*(task for task in TASKS if task in found), *sorted(found - set(TASKS))]:
        accuracy[task] = _value([p for p in pictures if p.item.tag == task], verdict, file)
    if accuracy:
        mean, error = mean_of_means([(value.mean, value.error) for value in accuracy.values()])
        images, prompts = (sum(getattr(v, name) for v in accuracy.values()) for name in ("images", "prompts"))
        accuracy[OVERALL] = Value(mean, error, images, prompts, file)
    own_metrics = {}
    for metric in metrics:
        if any(metric.label in picture.scores for picture in pictures):
            value = _value(
                pictures, score_of(metric.label), scores_file(Path(cell.name, "panel"), metric.label).as_posix()
            )
            own_metrics[metric.label] = dataclasses.replace(value, self_scored=metric.settings in guided_by)
    costs = {}
    if any(picture.record for picture in pictures):
        costs = {name: _value(pictures, cost(name), f"{cell.name}/*/records/*.json") for name in COSTS}
    return CellResults(cell, pictures, accuracy, own_metrics, costs, metrics)


def _verdicts(file: Path) -> dict[str, tuple[bool, str]]:
    """Name of an image -> whether it is correct and why not."""
    if not file.exists():
        return {}
    return {"/".join(Path(one.filename).parts[-3:]): (one.correct, one.reason) for one in read_results(file)}


Measure = Callable[[Picture], float | None]


def verdict(picture: Picture) -> float | None:
    return None if picture.correct is None else float(picture.correct)


def score_of(label: str) -> Measure:
    return lambda picture: picture.scores.get(label)


def cost(name: str) -> Measure:
    return lambda picture: getattr(picture.record, name, None)


def _value(pictures: Iterable[Picture], measure: Measure, file: str) -> Value:
    clusters: dict[str, list[float]] = {}
    for picture in pictures:
        if (value := measure(picture)) is not None:
            clusters.setdefault(picture.item.prompt, []).append(value)
    mean, error = clustered_mean(list(clusters.values()))
    return Value(mean, error, sum(map(len, clusters.values())), len(clusters), file)


def paired_difference(pictures: Iterable[Picture], others: Iterable[Picture], measure: Measure) -> Estimate | None:
    """Mean over the prompts that both have of the difference between the means of their images, with its standard
    error clustered by prompt: entries of the list with the same text are one cluster. None if they share none."""
    own, theirs = _group_means(pictures, measure), _group_means(others, measure)
    shared = [key for key in own if key in theirs]
    return mean_by((key[1], own[key] - theirs[key]) for key in shared) if shared else None


def _group_means(pictures: Iterable[Picture], measure: Measure) -> dict[tuple[str, str], float]:
    values: dict[tuple[str, str], list[float]] = {}
    for picture in pictures:
        if (value := measure(picture)) is not None:
            values.setdefault((picture.item.group, picture.item.prompt), []).append(value)
    return {key: sum(some) / len(some) for key, some in values.items()}


def _compare(results: Sequence[CellResults], baseline_guide: str | None) -> None:
    """Add differences to the baseline, and ranks, among the guides of a model on the same prompts."""
    blocks: dict[tuple[str, str], list[CellResults]] = {}
    for one in results:
        blocks.setdefault((one.cell.prompts, one.cell.model), []).append(one)
    for block in blocks.values():
        baseline = next((one for one in block if one.cell.guide == baseline_guide), None)
        if baseline is not None:
            for one in block:
                if one is not baseline:
                    _add_differences(one, baseline)
        for kind in ("accuracy", "metrics"):
            _add_ranks([getattr(one, kind) for one in block])


def _add_differences(one: CellResults, baseline: CellResults) -> None:
    def add(values: dict[str, Value], name: str, difference: Estimate | None) -> None:
        values[name] = dataclasses.replace(values[name], difference=difference)

    for label in one.metrics:
        add(one.metrics, label, paired_difference(one.pictures, baseline.pictures, score_of(label)))
    for name in one.costs:
        add(one.costs, name, paired_difference(one.pictures, baseline.pictures, cost(name)))
    by_task: list[Estimate] = []
    for task in [task for task in one.accuracy if task != OVERALL]:
        own, theirs = ([p for p in some.pictures if p.item.tag == task] for some in (one, baseline))
        difference = paired_difference(own, theirs, verdict)
        add(one.accuracy, task, difference)
        if difference is not None:
            by_task.append(difference)
    if by_task and len(by_task) == len(one.accuracy) - 1:
        add(one.accuracy, OVERALL, mean_of_means(by_task))


def _add_ranks(rows: Sequence[dict[str, Value]]) -> None:
    for column in dict.fromkeys(column for row in rows for column in row):
        holders = [row for row in rows if column in row]
        fair = [row for row in holders if not row[column].self_scored]
        for row, rank in _ranks(holders, column):
            row[column] = dataclasses.replace(row[column], rank=rank)
        for row, rank in _ranks(fair, column):
            row[column] = dataclasses.replace(row[column], fair_rank=rank)


def _ranks(rows: list[dict[str, Value]], column: str) -> list[tuple[dict[str, Value], int]]:
    # A row on its own is the best of nothing.
    return list(zip(rows, ranked([row[column].mean for row in rows]))) if len(rows) > 1 else []


def ranked(values: Sequence[float]) -> list[int]:
    """1 for the largest, 2 for the next smaller one and so on; equal values share a rank. Values that differ by less
    than floating-point sums do count as equal."""
    ranks: dict[int, int] = {}
    rank, last = 0, None
    for index in sorted(range(len(values)), key=lambda index: -values[index]):
        if last is None or last - values[index] > 1e-9 * max(1.0, abs(last)):
            rank, last = rank + 1, values[index]
        ranks[index] = rank
    return [ranks[index] for index in range(len(values))]


def to_dict(results: Sequence[CellResults], study: Study, failures: Mapping[str, str]) -> dict[str, Any]:
    """Plain values: the study, and of each cell all values with their files."""
    cells = []
    for one in results:
        cell = one.cell
        cells.append(
            {
                "prompts": cell.prompts,
                "model": cell.model,
                "guide": cell.guide,
                "folder": cell.name,
                "values": {name: dataclasses.asdict(value) for name, value in one.values().items()},
            }
        )
    return {"baseline": study.baseline, "cells": strict(cells), "failures": dict(failures), "study": study.to_dict()}

"""What `fk-steer eval dpg`, `geneval2` and their kin do."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rich.markup import escape
from rich.table import Table

from llava_reward_guide.images import ImageError, load_image
from llava_reward_guide.texts import read_json

from ...console import console, progress_bar
from ...csvs import csv_text
from ...files import check_settings, record_settings, write_atomically, write_json
from ...loading import load_guide
from ...records import read_lines
from ...rewards.check_writing import Checklists
from ...rewards.checks import Check, Checklist, check_of, checklist_of
from ...rewards.loading import default_device
from ...rewards.local import LocalReward
from ...rewards.registry import reward_factory
from ..folders import prompt_folders
from ..panel.metrics import Metric, parse_metrics
from ..statistics import plus_minus
from .benchmarks import BENCHMARKS, Asked
from .summaries import Answered, Line, Summary, checklist


WRITE_EVERY = 10.0
"""Seconds between writes of the answers so far."""

Ask = Callable[[Mapping[str, Any]], tuple[dict[str, Any], Checklist | None]]


@runtime_checkable
class Judge(Protocol):
    """Who answers: `ChecklistReward`, `ChecklistChat`, or another reward with this method."""

    def answers(self, images: Sequence[Any], checklists: Sequence[Sequence[Check]]) -> list[list[float | None]]:
        """For each image the probabilities of the expected answers, None for what could not be had."""
        ...


@dataclass(frozen=True)
class Picture:
    """An image to be judged.

    Attributes:
        name: its path within the folder, with slashes.
        path: where it is.
        entry: what is known of the prompt.
        checks: what is asked.
    """

    name: str
    path: Path
    entry: dict[str, Any]
    checks: Checklist


def run(
    name: str,
    folder: Path,
    out: Path | None,
    judge: str,
    judge_options: Sequence[str],
    prompts_file: Path | None = None,
    questions: Path | None = None,
    batch_size: int = 8,
    device: str | None = None,
) -> list[Line]:
    """Judge the images of a folder in GenEval's layout by a benchmark, and print its table.

    Args:
        name: one of `BENCHMARKS`, or 'checklist' for questions of one's own, or made from the wording.
        out: where answers and summary go; None for a folder of that name beside the images.
        judge: NAME, NAME:VARIANT, NAME=PATH or NAME:VARIANT=PATH of a reward that answers.
        judge_options: KEY=VALUE each, of it.
        prompts_file: a copy of the list, see `Asked`.
        questions: DPG-Bench's table, or for 'checklist' a file of checklists.

    Returns:
        The lines of the table.

    Raises:
        OSError: if there are no images, or a list or table cannot be had.
        ValueError: for a judge that does not answer questions, a prompt that is not in the list, or answers that were
            given by another judge.
    """
    metric = _judge(judge, judge_options)
    # Before anything is fetched for it.
    if not folder.is_dir():
        raise FileNotFoundError(f"Expected a folder of images at {folder}, but there is none.")
    ask = _ask_of(name, prompts_file, questions)
    pictures, left_out = find(folder, ask)
    out = out or folder / name
    settings = {"benchmark": name, "judge": {"id": judge_id(metric), **metric.settings}}
    check_settings(out, settings)

    def load() -> Judge:
        made = load_guide(metric.reward, default_device(device), **metric.options)
        assert isinstance(made, Judge)
        record_settings(out, settings)
        return made

    with progress_bar() as bar:
        task = bar.add_task(name, total=len(pictures))
        answered, problems = answer_all(
            pictures, load, out / "answers.jsonl", batch_size, lambda done: bar.advance(task, done)
        )
    for one, problem in problems.items():
        console.print(f"[yellow]skipped[/yellow] {escape(f'{one}: {problem}')}", highlight=False, soft_wrap=True)
    if not answered:
        raise ValueError(f"None of the {len(pictures)} images in {folder} could be judged.")
    sum_up: Summary = checklist if name == "checklist" else BENCHMARKS[name].sum_up
    lines = sum_up(answered)
    _report(name, out, judge_id(metric), lines, answered, left_out, problems)
    return lines


def find(folder: Path, ask: Ask) -> tuple[list[Picture], int]:
    """The images of a folder that a benchmark judges, and the number of those that it does not.

    Raises:
        OSError: if there are none.
        ValueError: naming the prompt's file, for metadata that are of no use.
    """
    pictures, left_out = [], 0
    for record, images in prompt_folders(folder):
        if not images:
            continue
        metadata = read_json(record)
        try:
            if not isinstance(metadata, dict) or not isinstance(metadata.get("prompt"), str):
                raise ValueError(f"expected an object with a `prompt`, but got {metadata!r}")
            entry, checks = ask(metadata)
        except ValueError as error:
            raise ValueError(f"{record}: {error}") from error
        if checks is None:
            left_out += len(images)
            continue
        pictures += [Picture(path.relative_to(folder).as_posix(), path, entry, checks) for path in images]
    if not pictures:
        raise FileNotFoundError(
            f"Expected images such as {folder / '00000' / 'samples' / '00000.png'}, each prompt's folder with its "
            "metadata.jsonl, but found none to judge."
        )
    return pictures, left_out


@dataclass(frozen=True)
class Row:
    """A line of the file of answers.

    Attributes:
        file: name of the image.
        checks: what was asked, as `Check.to_dict`.
        answers: the probabilities of the expected answers.
    """

    file: str
    checks: list[dict[str, Any]]
    answers: list[float]


def answer_all(
    pictures: Sequence[Picture],
    load: Callable[[], Judge],
    file: Path,
    batch_size: int = 8,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[list[Answered], dict[str, str]]:
    """Ask what has not been answered yet.

    Args:
        load: makes the judge; not called if there is nothing to do.
        file: JSON lines, a `Row` each; written every few seconds, and at the end also if it fails. An image that is
            newer than the beginning of the run it was last judged in, or whose questions have changed, is asked about
            again.
        batch_size: images at a time.
        progress: called with the number of images done.

    Returns:
        What was answered, in the order of the images, and image -> what is wrong for those that could not be judged.
    """
    started = time.time()
    rows = _still_true(file, pictures)
    missing = [one for one in pictures if one.name not in rows]
    progress(len(pictures) - len(missing))
    problems: dict[str, str] = {}
    judge = load() if missing else None
    written = time.monotonic()

    def write() -> None:
        content = "".join(json.dumps(asdict(rows[one.name])) + "\n" for one in pictures if one.name in rows)
        write_atomically(file, content.encode())
        # As old as the images may be that it is about.
        os.utime(file, (started, started))

    try:
        for batch in _batches(missing, batch_size):
            assert judge is not None
            images = []
            for one in batch:
                try:
                    images.append((one, load_image(one.path)))
                except ImageError as error:
                    problems[one.name] = str(error)
            answers = judge.answers([image for _, image in images], [one.checks for one, _ in images]) if images else []
            for (one, _), values in zip(images, answers, strict=True):
                if any(value is None for value in values):
                    problems[one.name] = "the judge gave no answer; run again to ask once more"
                    continue
                own = [value for value in values if value is not None]
                rows[one.name] = Row(one.name, [check.to_dict() for check in one.checks], own)
            progress(len(batch))
            if time.monotonic() - written > WRITE_EVERY:
                write()
                written = time.monotonic()
    finally:
        if missing:
            write()
    return [_answered(one, rows[one.name]) for one in pictures if one.name in rows], problems


def _answered(picture: Picture, row: Row) -> Answered:
    return Answered(picture.entry["prompt"], picture.entry, picture.checks, tuple(row.answers))


def _still_true(file: Path, pictures: Sequence[Picture]) -> dict[str, Row]:
    if not file.exists():
        return {}
    by_name = {row.file: row for row in read_lines(file, _row)}
    since = file.stat().st_mtime
    return {
        one.name: row
        for one in pictures
        if (row := by_name.get(one.name))
        and row.checks == [check.to_dict() for check in one.checks]
        and one.path.stat().st_mtime <= since
    }


def _row(values: dict[str, Any]) -> Row:
    made = Row(**values)
    for check in made.checks:
        check_of(check)
    if len(made.answers) != len(made.checks) or not all(isinstance(one, (int, float)) for one in made.answers):
        raise ValueError(f"expected {len(made.checks)} numbers as `answers`, got {made.answers!r}")
    return made


def _batches(pictures: Sequence[Picture], size: int) -> Iterator[Sequence[Picture]]:
    for start in range(0, len(pictures), size):
        yield pictures[start : start + size]


def _ask_of(name: str, prompts_file: Path | None, questions: Path | None) -> Ask:
    if name != "checklist":
        return Asked(name, prompts_file, questions)
    checklists = Checklists(questions)
    return lambda metadata: (dict(metadata), _own(metadata, checklists))


def _own(metadata: Mapping[str, Any], checklists: Checklists) -> Checklist:
    if metadata.get("checks") or metadata.get("vqa_list"):
        return checklist_of(metadata)
    (checks,) = checklists([metadata["prompt"]])
    return checks


def _judge(text: str, options: Sequence[str]) -> Metric:
    """
    Raises:
        ValueError: for an unknown reward or option, or a reward that answers no questions.
    """
    metrics = parse_metrics([text], options)
    if len(metrics) != 1:
        raise ValueError(f"Expected one judge, but got {text!r}.")
    if not hasattr(reward_factory(metrics[0].reward), "answers"):
        raise ValueError(
            f"The reward '{metrics[0].reward}' does not answer questions. Judges: checklist, and checklist-chat with "
            "--judge-option model=NAME."
        )
    return metrics[0]


def judge_id(metric: Metric) -> str:
    """Who judged, for a table: name, and the model at its commit, folder or server."""
    factory, options = reward_factory(metric.reward), dict(metric.options)
    if isinstance(factory, type) and issubclass(factory, LocalReward):
        variant = options.get("variant") or next(iter(factory.card.variants), "")
        card = factory.card.variant(variant) if variant else factory.card
        model = options.get("path") or card.hub_id
        revision = options.get("revision") or (None if options.get("path") else card.revision)
        return f"{metric.reward} ({model}{f'@{revision}' if revision else ''})"
    model = options.get("model")
    server = options.get("base_url") or os.environ.get("OPENAI_BASE_URL") or ""
    where = f" at {server.rpartition('@')[2]}" if server else ""
    return f"{metric.reward} ({model}{where})" if model else metric.reward


def _report(
    name: str,
    out: Path,
    judge: str,
    lines: Sequence[Line],
    answered: Sequence[Answered],
    left_out: int,
    problems: Mapping[str, str],
) -> None:
    title = f"{BENCHMARKS[name].title if name in BENCHMARKS else 'Checklist'}, judged by {judge}"
    published = f"Published numbers: judged by {BENCHMARKS[name].published_judge}." if name in BENCHMARKS else ""
    notes = [
        f"{len(answered)} images of {len({one.prompt for one in answered})} prompts; per cent ± standard error.",
        *([published] if published else []),
        *([f"{left_out} images of prompts that are not judged by questions are left out."] if left_out else []),
    ]
    summary = {
        "benchmark": name,
        "judge": judge,
        "images": len(answered),
        "left_out": left_out,
        "unanswered": dict(problems),
        "lines": [asdict(line) for line in lines],
    }
    plain = json.loads(json.dumps(summary))
    file = out / "summary.json"
    # A finished evaluation is left as it is.
    if not file.exists() or json.loads(file.read_text(encoding="utf-8")) != plain:
        write_json(file, plain)
        write_atomically(out / "summary.csv", csv_text(_rows(lines, judge)).encode())
        text = "\n".join([title, "", *_text_lines(lines), "", *notes]) + "\n"
        write_atomically(out / "summary.txt", text.encode())
    shown = Table("", "", "%", "prompts", "values", box=None, padding=(0, 2), title=title, title_justify="left")
    for line in lines:
        shown.add_row(line.group, line.name, plus_minus(line.estimate, ".2f"), str(line.prompts), str(line.values))
    console.print(shown)
    for note in notes:
        console.print(note, highlight=False, soft_wrap=True)


def _rows(lines: Iterable[Line], judge: str) -> list[list[Any]]:
    head: list[Any] = ["group", "name", "percent", "standard_error", "prompts", "values", "judge"]
    return [head] + [
        [line.group, line.name, line.estimate[0], line.estimate[1], line.prompts, line.values, judge] for line in lines
    ]


def _text_lines(lines: Sequence[Line]) -> list[str]:
    """The table as text."""
    widths = [max(len(getattr(line, name)) for line in lines) for name in ("group", "name")]
    return [
        f"{line.group:<{widths[0]}}  {line.name:<{widths[1]}}  {plus_minus(line.estimate, '.2f'):<16}  "
        f"{line.prompts} prompts, {line.values} values"
        for line in lines
    ]

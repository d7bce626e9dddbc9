"""GenEval's evaluation (Ghosh et al., arXiv 2310.11513) of a folder of images, and its summary.

Layout: FOLDER/00000/metadata.jsonl holds a prompt's line of GenEval's metadata, FOLDER/00000/samples/00000.png and on
its images.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from llava_reward_guide.images import ImageError, load_image
from llava_reward_guide.texts import read_json

from ...files import write_atomically
from ...records import read_lines
from ..folders import prompt_folders
from ..prompts import check_metadata
from ..statistics import Estimate, clustered_mean, mean_of_means, plus_minus
from .detector import Detector
from .rules import evaluate


@dataclass(frozen=True)
class Result:
    """The verdict on one image, in the columns of GenEval's results file.

    Attributes:
        filename: of the image.
        tag: the task.
        prompt: its text.
        correct: whether the image shows what the prompt says.
        reason: why not, a line per requirement that is not met.
        metadata: the prompt's metadata, as JSON.
        details: class -> boxes (left, top, right, bottom, score) of the detections that counted, as JSON.
    """

    filename: str
    tag: str
    prompt: str
    correct: bool
    reason: str
    metadata: str
    details: str


@dataclass(frozen=True)
class Sample:
    """An image and its prompt's metadata."""

    path: Path
    metadata: dict[str, Any]


def samples(folder: Path) -> list[Sample]:
    """The images of a folder in GenEval's layout, in order.

    Raises:
        OSError: if there are none.
        ValueError: for metadata that is not GenEval's.
    """
    found = []
    for record, images in prompt_folders(folder):
        try:
            metadata = check_metadata(read_json(record))
        except ValueError as error:
            raise ValueError(f"{record} is not GenEval's metadata: {error}") from error
        found += [Sample(path, metadata) for path in images]
    if not found:
        raise FileNotFoundError(
            f"Expected images such as {folder / '00000' / 'samples' / '00000.png'}, each prompt's folder with its "
            "metadata.jsonl, but found none."
        )
    return found


def judge(image: Image.Image, metadata: dict[str, Any], detector: Detector, filename: str) -> Result:
    """The verdict on an image."""
    detections = detector.detect(image, metadata["tag"])
    verdict = evaluate(metadata, detections, lambda name, detection: detector.colour_of(image, name, detection))
    return Result(
        filename=filename,
        tag=metadata["tag"],
        prompt=metadata["prompt"],
        correct=verdict.correct,
        reason="\n".join(condition.text for condition in verdict.conditions if not condition.met),
        metadata=json.dumps(metadata),
        details=json.dumps({name: [[*one.box, one.score] for one in some] for name, some in detections.items()}),
    )


def evaluate_folder(
    images: Sequence[Sample],
    detector: Callable[[], Detector],
    results: Path,
    every: int = 50,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[list[Result], dict[str, str]]:
    """Judge what has not been judged yet.

    Args:
        detector: makes the detector; not called if there is nothing to do.
        results: JSON lines, a `Result` each; written every so many images, and at the end also if it fails. An image
            that is newer than the beginning of the run it was last judged in, or whose prompt has changed, is judged
            again.
        every: so many.
        progress: called with the number of images done.

    Returns:
        The results, in the order of the images, and image -> what is wrong for those that could not be read.
    """
    started = time.time()
    done = _read(results, images) if results.exists() else {}
    missing = [sample for sample in images if str(sample.path) not in done]
    progress(len(images) - len(missing))
    unreadable: dict[str, str] = {}
    eye = detector() if missing else None
    try:
        for number, sample in enumerate(missing, start=1):
            name = str(sample.path)
            try:
                image = load_image(sample.path)
            except ImageError as error:
                unreadable[name] = str(error)
            else:
                assert eye is not None
                done[name] = judge(image, sample.metadata, eye, name)
            if number % every == 0:
                _write(results, _in_order(done, images), started)
            progress(1)
    finally:
        if missing:
            _write(results, _in_order(done, images), started)
    return list(_in_order(done, images)), unreadable


def _read(results: Path, images: Sequence[Sample]) -> dict[str, Result]:
    """Name of an image -> its result, where that is still of this image and this prompt. The folder may have moved."""
    read = read_results(results)
    by_name = {Path(one.filename).parts[-3:]: one for one in read}
    written = results.stat().st_mtime
    found = {}
    for sample in images:
        one = by_name.get(sample.path.parts[-3:])
        if one and one.metadata == json.dumps(sample.metadata) and sample.path.stat().st_mtime <= written:
            found[str(sample.path)] = replace(one, filename=str(sample.path))
    return found


def read_results(file: Path) -> list[Result]:
    """The verdicts in a file of `evaluate_folder`.

    Raises:
        OSError, UnreadableFile: naming the file.
    """
    return read_lines(file, _result)


def _result(values: dict[str, Any]) -> Result:
    made = Result(**values)
    if not isinstance(made.correct, bool) or not isinstance(made.filename, str):
        raise ValueError("expected `correct` to be true or false and `filename` a text")
    return made


def _in_order(done: dict[str, Result], images: Sequence[Sample]) -> Iterator[Result]:
    return (done[str(sample.path)] for sample in images if str(sample.path) in done)


def _write(path: Path, results: Iterable[Result], started: float) -> None:
    """Write what is of images as they were from `started` on: the file gets that time, so that an image which has
    changed since then is newer, whenever it was judged."""
    write_atomically(path, "".join(json.dumps(asdict(one)) + "\n" for one in results).encode())
    os.utime(path, (started, started))


@dataclass(frozen=True)
class Summary:
    """What GenEval reports, shares in [0, 1] with standard errors clustered by prompt.

    Attributes:
        images, prompts: their numbers.
        correct_images: share of correct images.
        correct_prompts: share of prompts with at least one correct image.
        tasks: task -> share of correct images.
        counts: task -> (correct images, images).
        overall: unweighted mean over the tasks, GenEval's score.
        best_of: k -> the same where the best of k images counts, for each k up to the smallest number of images of a
            prompt; see `best_of`.
    """

    images: int
    prompts: int
    correct_images: Estimate
    correct_prompts: Estimate
    tasks: dict[str, Estimate]
    counts: dict[str, tuple[int, int]]
    overall: Estimate
    best_of: dict[int, Estimate]


def summarize(results: Sequence[Result]) -> Summary:
    """GenEval's summary. Images with the same metadata belong to one prompt.

    Raises:
        ValueError: if there are no results.
    """
    if not results:
        raise ValueError("There are no results to summarise.")
    by_task: dict[str, dict[str, list[bool]]] = {}
    for one in results:
        by_task.setdefault(one.tag, {}).setdefault(one.metadata, []).append(one.correct)
    prompts = [correct for task in by_task.values() for correct in task.values()]
    tasks = {task: clustered_mean(list(some.values())) for task, some in by_task.items()}
    return Summary(
        images=len(results),
        prompts=len(prompts),
        correct_images=clustered_mean(prompts),
        correct_prompts=clustered_mean([[any(correct)] for correct in prompts]),
        tasks=tasks,
        counts={task: (sum(map(sum, some.values())), sum(map(len, some.values()))) for task, some in by_task.items()},
        overall=mean_of_means(list(tasks.values())),
        best_of={
            k: mean_of_means(
                [clustered_mean([[best_of(k, correct)] for correct in task.values()]) for task in by_task.values()]
            )
            for k in range(1, min(map(len, prompts)) + 1)
        },
    )


def lines(summary: Summary) -> list[str]:
    """The summary as text, in the lines of GenEval's own script, with standard errors and the best of k."""
    text = ["Summary", "======="]
    text += [f"Total images: {summary.images}", f"Total prompts: {summary.prompts}"]
    text += [f"% correct images: {_percent(summary.correct_images)}"]
    text += [f"% correct prompts: {_percent(summary.correct_prompts)}", "", "Task breakdown", "=============="]
    for task, estimate in summary.tasks.items():
        correct, number = summary.counts[task]
        text.append(f"{task:<16} = {_percent(estimate)} ({correct} / {number})")
    text += ["", f"Overall score (avg. over tasks): {plus_minus(summary.overall, '.5f')}"]
    if len(summary.best_of) > 1:
        text += ["", "Overall score of the best of k images", "====================================="]
        text += [f"k = {k:<12} = {plus_minus(estimate, '.5f')}" for k, estimate in summary.best_of.items()]
    return text


def best_of(k: int, correct: Sequence[bool]) -> float:
    """Probability that at least one of k images drawn from these without replacement is correct: the unbiased estimate
    of what the best of k images gives (Chen et al., arXiv 2107.03374, eq. 1)."""
    return 1.0 - math.comb(len(correct) - sum(correct), k) / math.comb(len(correct), k)


def _percent(estimate: Estimate) -> str:
    return plus_minus(estimate, ".2%")

"""Rewards as judges: scoring what people have judged, and what comes of it.

The folder of a reward is the record of its run: a file of scores per batch, written when the batch is done. Running
again does what is missing.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from llava_reward_guide.images import ImageError, load_image

from ...files import write_json
from ...records import read_record
from ...rewards.base import MissingScoreError, RewardError, RewardFunction, name_of
from ...rewards.judge import JudgeCounts, scores_or_none
from .judgements import JudgeData, Judgement, Subject
from .media import load_frames


FRAMES = 8
"""Of a video that are scored by a reward of images; the mean of their scores is the video's."""


@dataclass(frozen=True)
class Batch:
    """Scores of consecutive judgements.

    Attributes:
        scores: for each judgement a reward per image; None where the image could not be read, or no score could be had.
        problems: path of an image -> why not.
        images: number of images scored.
        seconds: that the reward took, without reading files.
        relative: whether the reward compares, see `Reward`.
    """

    scores: list[list[float | None]]
    problems: dict[str, str]
    images: int
    seconds: float
    relative: bool = False


@dataclass(frozen=True)
class Scored:
    """What a reward made of a data set.

    Attributes:
        judgements: those whose images could all be read and scored.
        scores: a reward for each of their images.
        problems: path of an image that could not be -> why not.
        seconds_per_image: the median over batches; None without a batch.
        relative: whether the reward compares, see `Reward`.
    """

    judgements: list[Judgement]
    scores: list[list[float]]
    problems: dict[str, str]
    seconds_per_image: float | None
    relative: bool = False


def digest(*paths: str | Path | None) -> str:
    """SHA-256 of files, to tell whether they are the same; None is skipped."""
    content = hashlib.sha256()
    for path in paths:
        if path is not None:
            content.update(hashlib.sha256(Path(path).read_bytes()).digest())
    return content.hexdigest()


def check_images(data: JudgeData, root: Path) -> None:
    """Make sure that this is the folder of the images.

    Raises:
        FileNotFoundError: if none of them is in it.
    """
    paths = [root / image for judgement in data.judgements for image in judgement.paths]
    if not any(path.exists() for path in paths):
        raise FileNotFoundError(f"None of the {len(paths)} images is there, such as {paths[0]}. Give their folder.")


def score(
    data: JudgeData,
    root: Path,
    reward: Callable[[], RewardFunction],
    out: Path,
    batch_size: int = 16,
    progress: Callable[[int], None] = lambda done: None,
) -> Scored:
    """Score what has not been scored yet.

    Args:
        root: folder of the images.
        reward: makes the reward; not called if there is nothing to do.
        out: folder of the scores.
        batch_size: judgements at a time.
        progress: called with the number of judgements done.

    Raises:
        RewardError: if the reward returns something unusable, or an infinite reward, or its server does not answer.
        ValueError: if a reward that only compares meets judgements on single images, or the reward does not take what
            was judged.
    """
    judge: RewardFunction | None = None
    batches = []
    for start in range(0, len(data.judgements), batch_size):
        path = out / "scores" / f"{start:06d}.json"
        if path.exists():
            batch = read_record(path, lambda stored: Batch(**stored))
        else:
            if judge is None:
                judge = reward()
                check_subject(judge, data.subject)
            batch = _score(judge, data.judgements[start : start + batch_size], start, root, data.subject)
            write_json(path, asdict(batch))
        batches.append(batch)
        progress(len(batch.scores))
    pairs = list(zip(data.judgements, (scores for batch in batches for scores in batch.scores), strict=True))
    complete = [(one, [s for s in scores if s is not None]) for one, scores in pairs if None not in scores]
    return Scored(
        [one for one, _ in complete],
        [scores for _, scores in complete],
        {path: problem for batch in batches for path, problem in batch.problems.items()},
        float(np.median([batch.seconds / batch.images for batch in batches if batch.images])) if complete else None,
        any(batch.relative for batch in batches),
    )


def check_subject(reward: RewardFunction, subject: Subject) -> None:
    """Make sure that a reward takes what was judged; videos are scored by rewards of images, too, frame by frame.

    Raises:
        ValueError: if it does not, saying which does.
    """
    takes = next((one for one in Subject if getattr(reward, f"takes_{one.name}", False)), Subject.images)
    by_frames = subject is Subject.videos and takes is Subject.images and not getattr(reward, "relative", False)
    # Texts about videos are in none of the formats.
    of_videos = takes is Subject.answers and getattr(reward, "of_videos", False)
    if not (takes is subject or by_frames) or of_videos:
        examples = {
            Subject.images: "unified-reward with variant=pair",
            Subject.videos: "unified-reward with variant=video-pair",
            Subject.edits: "unified-reward with variant=edit-pair",
            Subject.answers: "unified-reward with variant=answer-pair",
        }
        raise ValueError(
            f"The data are of {subject.value}, which '{name_of(reward)}' does not judge. Choose a reward that does, "
            f"such as {examples[subject]}."
        )


def _score(reward: RewardFunction, judgements: Sequence[Judgement], start: int, root: Path, subject: Subject) -> Batch:
    shown: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for path in dict.fromkeys(path for one in judgements for path in one.paths):
        try:
            shown[path] = _load(root / path, reward, subject)
        except ImageError as error:
            problems[path] = str(error)
    relative = bool(getattr(reward, "relative", False))
    scores: list[list[float | None]] = [[None] * len(one.prompts) for one in judgements]
    called = _Called(reward, judgements, shown, subject, f"on the images from judgement {start}")
    calls = _answered if subject is Subject.answers else _together if relative else _all
    pending = list(calls(reward, judgements, shown, start))
    while pending:
        places = pending.pop(0)
        values = called(places)
        if values is None and len({i for i, _ in places}) > 1:
            # It says of none; the others' may be there to be had.
            pending[:0] = [[place for place in places if place[0] == i] for i in dict.fromkeys(i for i, _ in places)]
            continue
        for (i, j), value in zip(places, values or [None] * len(places)):
            if value is None:
                problems[_named(judgements[i], j)] = f"'{name_of(reward)}' has no score for it"
            elif not math.isfinite(value):
                raise RewardError(
                    f"Reward '{name_of(reward)}' returned {value} for an image of judgement {start + i}, but "
                    "statistics need finite rewards."
                )
            scores[i][j] = value
    return Batch(scores, problems, called.scored, called.seconds, relative)


def _load(path: Path, reward: RewardFunction, subject: Subject) -> Any:
    """An image, or the frames of a video that the reward is shown."""
    if subject is not Subject.videos:
        return load_image(path, keep_mode=True)
    task = getattr(reward, "task", None)
    return load_frames(path, getattr(reward, "frames", FRAMES), bool(getattr(task, "to_the_end", True)))


def _named(judgement: Judgement, j: int) -> str:
    return f"{judgement.images[0]} (answer {j + 1})" if judgement.answers else judgement.images[j]


Places = list[tuple[int, int]]
"""Judgement and image (or answer) in it, of the images of one call of a reward."""


class _Called:
    """Calls of a reward on places, and what they took.

    Attributes:
        scored: number of images, videos or answers.
        seconds: that the reward took.
    """

    def __init__(
        self,
        reward: RewardFunction,
        judgements: Sequence[Judgement],
        shown: Mapping[str, Any],
        subject: Subject,
        where: str,
    ) -> None:
        self.reward, self.judgements, self.shown, self.subject, self.where = reward, judgements, shown, subject, where
        self.scored, self.seconds = 0, 0.0

    def __call__(self, places: Places) -> Sequence[float | None] | None:
        """The scores; None where a judge's replies did not say them, and in place of all if they said none."""
        counts = getattr(self.reward, "counts", None)
        failed = counts.failed if isinstance(counts, JudgeCounts) else 0
        started = time.perf_counter()
        try:
            return self._answers(places) if self.subject is Subject.answers else self._values(places)
        except MissingScoreError:
            # A request that failed is worth another run; the same question would bring the same reply.
            if isinstance(counts, JudgeCounts) and counts.failed > failed:
                raise
            return None
        finally:
            self.seconds += time.perf_counter() - started
            self.scored += len(places)

    def _values(self, places: Places) -> Sequence[float | None]:
        texts = [self.judgements[i].prompts[j] for i, j in places]
        pictures = [self.shown[self.judgements[i].images[j]] for i, j in places]
        if self.subject is Subject.edits:
            sources = {self.judgements[i].prompts[j]: self.judgements[i].before for i, j in places}
            self.reward.source = {text: self.shown[str(path)] for text, path in sources.items()}  # type: ignore[union-attr]
        if self.subject is not Subject.videos or getattr(self.reward, "takes_videos", False):
            return scores_or_none(self.reward, pictures, texts, self.where)
        frames = [frame for video in pictures for frame in video]
        captions = [text for video, text in zip(pictures, texts) for _ in video]
        found = iter(scores_or_none(self.reward, frames, captions, self.where))
        return [_mean([next(found) for _ in video]) for video in pictures]

    def _answers(self, places: Places) -> Sequence[float | None]:
        asked: dict[int, list[int]] = {}
        for i, j in places:
            asked.setdefault(i, []).append(j)
        of = [self.judgements[i] for i in asked]
        judge = cast(Any, self.reward)
        failed = judge.counts.failed
        found = judge.judge_answers(
            [(self.shown[one.images[0]],) for one in of],
            [one.prompts[0] for one in of],
            [[one.answers[j] for j in some] for one, some in zip(of, asked.values())],
        )
        values = {(i, j): value for (i, some), row in zip(asked.items(), found) for j, value in zip(some, row)}
        if judge.counts.failed > failed and all(value is None for value in values.values()):
            raise RewardError(f"'{judge.name}' got no answer {self.where}: {judge.ask.last_failure}.")
        return [values[place] for place in places]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _all(
    reward: RewardFunction, judgements: Sequence[Judgement], shown: Mapping[str, Any], start: int
) -> Iterator[Places]:
    """All images in one call, but for edited ones of the same prompt, which are from different images."""
    places = [
        (i, j)
        for i, one in enumerate(judgements)
        for j, path in enumerate(one.images)
        if path in shown and (one.before is None or one.before in shown)
    ]
    edited = any(one.before is not None for one in judgements)
    yield from _distinct(judgements, places) if edited else ([places] if places else [])


def _together(
    reward: RewardFunction, judgements: Sequence[Judgement], shown: Mapping[str, Any], start: int
) -> Iterator[Places]:
    """The images of a judgement in one call, for rewards that compare, in an order by chance: data sets often put the
    better one first, and judges may prefer a place. Judgements on different prompts share a call, in which rewards
    compare by prompt."""
    complete: Places = []
    for i, one in enumerate(judgements):
        if len(one.images) < 2 or len(set(one.prompts)) > 1:
            raise ValueError(
                f"Reward '{name_of(reward)}' compares images of one prompt, but judgement {start + i} has "
                f"{len(one.images)} image(s) and {len(set(one.prompts))} prompt(s). Choose a reward that scores images."
            )
        if all(path in shown for path in one.paths):
            complete += [(i, j) for j in _by_chance(start + i, len(one.images))]
    yield from _distinct(judgements, complete)


def _answered(
    reward: RewardFunction, judgements: Sequence[Judgement], shown: Mapping[str, Any], start: int
) -> Iterator[Places]:
    """All answers in one call, those to a question in an order by chance."""
    places = [
        (i, j)
        for i, one in enumerate(judgements)
        if one.images[0] in shown
        for j in _by_chance(start + i, len(one.answers))
    ]
    if places:
        yield places


def _by_chance(number: int, count: int) -> list[int]:
    order: list[int] = np.random.default_rng([0, number]).permutation(count).tolist()
    return order


def _distinct(judgements: Sequence[Judgement], places: Places) -> Iterator[Places]:
    """The places by calls, in each of which no two judgements are on the same prompt."""
    calls: list[tuple[set[str], Places]] = []
    for i in dict.fromkeys(i for i, _ in places):
        prompts = set(judgements[i].prompts)
        own = [place for place in places if place[0] == i]
        free = next((call for call in calls if not call[0] & prompts), None)
        if free is None:
            calls.append((prompts, own))
        else:
            free[0].update(prompts)
            free[1].extend(own)
    yield from (call for _, call in calls)

"""Rewards as judges: scoring the images of a data set of human judgements, and what comes of it.

The folder of a reward is the record of its run: a file of scores per batch, written when the batch is done. Running
again does what is missing.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from llava_reward_guide.images import ImageError, load_image

from ...files import write_json
from ...records import read_record
from ...rewards.base import MissingScoreError, RewardError, RewardFunction, name_of
from ...rewards.judge import JudgeCounts, scores_or_none
from .data import JudgeData, Judgement


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
    paths = [root / image for judgement in data.judgements for image in judgement.images]
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
        ValueError: if a reward that only compares meets judgements on single images.
    """
    judge: RewardFunction | None = None
    batches = []
    for start in range(0, len(data.judgements), batch_size):
        path = out / "scores" / f"{start:06d}.json"
        if path.exists():
            batch = read_record(path, lambda stored: Batch(**stored))
        else:
            judge = judge or reward()
            batch = _score(judge, data.judgements[start : start + batch_size], start, root)
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


def _score(reward: RewardFunction, judgements: Sequence[Judgement], start: int, root: Path) -> Batch:
    images: dict[str, Image.Image] = {}
    problems: dict[str, str] = {}
    for path in dict.fromkeys(path for one in judgements for path in one.images):
        try:
            images[path] = load_image(root / path, keep_mode=True)
        except ImageError as error:
            problems[path] = str(error)
    scores: list[list[float | None]] = [[None] * len(one.images) for one in judgements]
    relative = bool(getattr(reward, "relative", False))
    calls = _together if relative else _all
    scored, seconds = 0, 0.0
    for places in calls(reward, judgements, images, start):
        texts = [judgements[i].prompts[j] for i, j in places]
        pictures = [images[judgements[i].images[j]] for i, j in places]
        started = time.perf_counter()
        values = _values(reward, pictures, texts, f"on the images from judgement {start}")
        seconds += time.perf_counter() - started
        scored += len(places)
        for (i, j), value in zip(places, values):
            if value is None:
                problems[judgements[i].images[j]] = f"'{name_of(reward)}' has no score for it"
            elif not math.isfinite(value):
                raise RewardError(
                    f"Reward '{name_of(reward)}' returned {value} for an image of judgement {start + i}, but "
                    "statistics need finite rewards."
                )
            scores[i][j] = value
    return Batch(scores, problems, scored, seconds, relative)


def _values(
    reward: RewardFunction, images: Sequence[Image.Image], prompts: Sequence[str], where: str
) -> Sequence[float | None]:
    """The rewards of a call; None where a judge's replies did not say them."""
    counts = getattr(reward, "counts", None)
    failed = counts.failed if isinstance(counts, JudgeCounts) else 0
    try:
        return scores_or_none(reward, images, prompts, where)
    except MissingScoreError:
        # A request that failed is worth another run; the same question would bring the same reply.
        if isinstance(counts, JudgeCounts) and counts.failed > failed:
            raise
        return [None] * len(prompts)


Places = list[tuple[int, int]]
"""Judgement and image in it, of the images of one call of a reward."""


def _all(
    reward: RewardFunction, judgements: Sequence[Judgement], images: dict[str, Image.Image], start: int
) -> Iterator[Places]:
    """All images in one call."""
    places = [(i, j) for i, one in enumerate(judgements) for j, path in enumerate(one.images) if path in images]
    if places:
        yield places


def _together(
    reward: RewardFunction, judgements: Sequence[Judgement], images: dict[str, Image.Image], start: int
) -> Iterator[Places]:
    """The images of a judgement in one call, for rewards that compare, in an order by chance: data sets often put the
    better one first, and judges may prefer a place."""
    for i, one in enumerate(judgements):
        if len(one.images) < 2 or len(set(one.prompts)) > 1:
            raise ValueError(
                f"Reward '{name_of(reward)}' compares images of one prompt, but judgement {start + i} has "
                f"{len(one.images)} image(s) and {len(set(one.prompts))} prompt(s). Choose a reward that scores images."
            )
        if all(path in images for path in one.images):
            order = np.random.default_rng([0, start + i]).permutation(len(one.images))
            yield [(i, int(j)) for j in order]

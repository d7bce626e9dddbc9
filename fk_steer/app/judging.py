"""Pictures that somebody brings along: scored by rewards, and two of them compared."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from llava_reward_guide.images import ImageError, load_image

from ..rewards.base import RewardError, RewardFunction, name_of
from ..rewards.chat.judge import Asker
from ..rewards.judge import scores_or_none
from ..smc.standardize import standardize
from .limits import Limits
from .models import Models


AT_A_TIME = 8
"""Images of a call of a reward that does not compare."""


@dataclass(frozen=True)
class Scored:
    """A picture and what rewards make of it.

    Attributes:
        name: of its file.
        image: None if it cannot be read.
        scores: by the name of the reward; None where a judge did not say.
        overall: mean of its z-scores among all pictures; None for a single one.
        problem: why it has no scores.
    """

    name: str
    image: Image.Image | None
    scores: Mapping[str, float | None]
    overall: float | None = None
    problem: str = ""


def score_images(
    models: Models,
    files: Sequence[str | Path],
    prompt: str,
    options: Mapping[str, Mapping[str, Any]],
    limits: Limits,
) -> list[Scored]:
    """Score image files for a prompt, best first; those that cannot be read come last.

    Args:
        options: of each reward to score by.

    Raises:
        ValueError: for no file, too many, or if none can be read; `RewardError` if a reward returns something that is
            no score.
    """
    if not files:
        raise ValueError("Pictures: choose at least one.")
    if len(files) > limits.images:
        raise ValueError(f"Pictures: expected at most {limits.images} at a time, but got {len(files)}.")
    opened: dict[int, Image.Image] = {}
    problems: dict[int, str] = {}
    for index, path in enumerate(files):
        try:
            opened[index] = load_image(path, keep_mode=True)
        except ImageError as error:
            problems[index] = str(error).replace(f"at '{path}'", "in it")
    if not opened:
        raise ValueError(f"Pictures: none of them can be read. {Path(files[0]).name}: {problems[0]}")
    scores: dict[int, dict[str, float | None]] = {index: {} for index in opened}
    with models.lock:
        models.here()
        for name, own in options.items():
            values = _scores(models.reward(name, own), list(opened.values()), prompt)
            for index, value in zip(opened, values):
                scores[index][name] = value
    overall = _overall([list(scores[index].values()) for index in opened])
    found = [
        Scored(Path(files[index]).name, opened[index], scores[index], mean) for index, mean in zip(opened, overall)
    ]
    found.sort(key=lambda one: -math.inf if one.overall is None else one.overall, reverse=True)
    return found + [Scored(Path(files[index]).name, None, {}, None, text) for index, text in problems.items()]


def table(scored: Sequence[Scored]) -> str:
    """The scores as CSV."""
    names = list(scored[0].scores)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["image", *names, "mean z-score", "problem"])
    for one in scored:
        values = [one.scores.get(name) for name in names]
        writer.writerow([one.name, *("" if v is None else v for v in values), one.overall, one.problem])
    return text.getvalue()


def _scores(reward: RewardFunction, images: Sequence[Image.Image], prompt: str) -> list[float | None]:
    size = len(images) if getattr(reward, "relative", False) else AT_A_TIME
    found: list[float | None] = []
    for start in range(0, len(images), size):
        some = images[start : start + size]
        found += scores_or_none(reward, some, [prompt] * len(some), "for these pictures")
    return found


def _overall(rows: Sequence[Sequence[float | None]]) -> list[float | None]:
    """The mean z-score of each row, over columns."""
    if len(rows) == 1:
        return [None]
    values = torch.tensor([[math.nan if value is None else value for value in row] for row in rows]).double()
    means = standardize(values.T).nanmean(0).tolist()
    return [None if math.isnan(mean) else mean for mean in means]


@dataclass(frozen=True)
class Verdict:
    """What a reward makes of two pictures.

    Attributes:
        reward: its name.
        scores: of the first and the second; None where a judge did not say.
        relative: whether they are probabilities of winning, else scores of each by itself.
        reasons: what it said, with what that was about; empty for a reward that gives numbers alone.
    """

    reward: str
    scores: tuple[float | None, float | None]
    relative: bool
    reasons: tuple[tuple[str, str], ...] = ()

    @property
    def better(self) -> int | None:
        """0 for the first, 1 for the second, None for neither."""
        first, second = self.scores
        if first is None or second is None or math.isclose(first, second, rel_tol=1e-6, abs_tol=1e-9):
            return None
        return int(second > first)


def judge_pair(
    models: Models, first: str | Path, second: str | Path, prompt: str, name: str, options: Mapping[str, Any]
) -> Verdict:
    """Let a reward compare two image files.

    Raises:
        ValueError: `ImageError` if one cannot be read; `RewardError` if a judge says nothing of either.
    """
    images = []
    for where, path in (("first", first), ("second", second)):
        try:
            images.append(load_image(path, keep_mode=True))
        except ImageError as error:
            raise ImageError(str(error).replace(f"at '{path}'", f"as the {where}")) from None
    with models.lock:
        models.here()
        reward = models.reward(name, options)
        scores = scores_or_none(reward, images, [prompt] * 2, "for these pictures")
        asker = getattr(reward, "ask", None)
        replies = list(asker.replies) if isinstance(asker, Asker) else []
    relative = bool(getattr(reward, "relative", False))
    if all(score is None for score in scores):
        raise RewardError(f"'{name_of(reward)}' said nothing of either picture: {getattr(asker, 'last_failure', '')}")
    orders = ["A shown first", "B shown first"] if len(replies) > 1 else [""]
    about = orders if relative else ["of A", "of B"]
    reasons = tuple((title, readable(text)) for title, text in zip(about, replies) if text)
    return Verdict(name_of(reward), (scores[0], scores[1]), relative, reasons)


def readable(reply: str) -> str:
    """A judge's reply as text; one in JSON a line per entry."""
    inside = reply.strip().removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    try:
        content = json.loads(inside)
    except ValueError:
        return reply.strip()
    if not isinstance(content, dict):
        return reply.strip()
    lines = []
    for key, value in content.items():
        parts = [str(one) for one in value.values()] if isinstance(value, dict) else [str(value)]
        parts.sort(key=len)
        lines.append(f"{str(key).replace('_', ' ')}: {', '.join(parts)}")
    return "\n".join(lines)

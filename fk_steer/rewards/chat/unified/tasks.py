"""The tasks of UnifiedReward: what each shows, asks and reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..judge import Task, parse_text
from ..verdicts import (
    AXES,
    VIDEO_AXES,
    axis_scores,
    better_image,
    better_image_in_answer,
    better_video,
    final_score,
)
from . import replies


Reading = Callable[[str, str | None], float | None]
"""(reply, axis) -> score, None if the reply does not say it."""

IMAGE, VIDEO, EDITED, ANSWER, VIDEO_ANSWER = "image", "video", "edited image", "answer", "answer about a video"
POINTS = "points"
LONG = 4096
"""Tokens of replies that reason before they come to the point; one that is cut before is lost."""


@dataclass(frozen=True)
class UnifiedTask:
    """One thing that UnifiedReward is trained to do.

    Attributes:
        subject: what is judged: `IMAGE`, `VIDEO`, `EDITED` (an image beside the one it was made from), `ANSWER` (a text
            about images) or `VIDEO_ANSWER`.
        read: reply -> score, or of two the probability that the first is better.
        reminder: of the form, when a reply could not be read.
        compares: whether two are shown at a time.
        axes: what the score may be of instead of the whole.
        shows_source: of an edited image, whether the one before is shown first.
        fields: placeholders of the template.
        max_tokens: of a reply.
        frames: of a video that are shown.
        to_the_end: whether these go from the first frame to the last, see `frames_of`.
    """

    subject: str
    read: Reading
    reminder: str
    compares: bool = False
    axes: tuple[str, ...] = ()
    shows_source: bool = False
    fields: tuple[str, ...] = ("prompt",)
    max_tokens: int = 512
    frames: int = 8
    to_the_end: bool = False

    def asked(
        self,
        template: str,
        axis: str | None = None,
        max_tokens: int | None = None,
        optional: Mapping[str, Any] | None = None,
    ) -> Task:
        """The task in the words of a template.

        Args:
            max_tokens: of a reply; None for the task's own.
            optional: see `Question`.
        """
        # The first models that score axes list the words of the prompt before.
        own = LONG if "Word-wise" in template else self.max_tokens
        return Task(template, parse_text(lambda reply: self.read(reply, axis)), self.reminder, max_tokens or own, optional or {})


def _whole(read: Callable[[str], float | None]) -> Reading:
    return lambda reply, axis: read(reply)


def _mean_or_one(scores: Callable[[str], Mapping[str, float | None]]) -> Reading:
    def read(reply: str, axis: str | None) -> float | None:
        found = scores(reply)
        wanted = [found[axis]] if axis else list(found.values())
        known = [score for score in wanted if score is not None]
        return sum(known) / len(known) if len(known) == len(wanted) else None

    return read


def _least_or_one(axes: Sequence[str]) -> Reading:
    """An edit is as good as the worse of its two scores, as in VIEScore (Ku et al., arXiv 2312.14867)."""

    def read(reply: str, axis: str | None) -> float | None:
        scores = replies.two_scores(reply)
        if scores is None:
            return None
        return scores[axes.index(axis)] if axis else min(scores)

    return read


def _flex(what: str) -> Reading:
    return lambda reply, axis: replies.flex_points(reply) if axis == POINTS else replies.flex_winner(reply, what)


def _better(what: str) -> str:
    whole = f" or 'Both {what.lower()}s are equally good.'"
    return f"Reply with '{what} 1 is better than {what} 2.', '{what} 2 is better than {what} 1.'{whole} only."


def _tagged(what: str) -> str:
    return f"Reply with '<answer>{what} 1 is better</answer>' or '<answer>{what} 2 is better</answer>' only."


def _lines(axes: Sequence[str]) -> str:
    first, second, third = (f"'{axis.capitalize()} Score (1-5): {letter}'" for axis, letter in zip(axes, "XYZ"))
    return f"Reply with the three lines {first}, {second} and {third} only."


def _score(lowest: int, highest: int) -> str:
    return f"Reply with the single line 'Final Score: s' only, s being a number from {lowest} to {highest}."


_PAIR = "Reply with 'Answer 1 is better.' or 'Answer 2 is better.' only."
_TWO = 'Reply with the JSON object {"reasoning": "...", "score": [a, b]} only, a and b being numbers from 0 to 25.'
_SIGNED = "Reply with the two lines 'Image 1: x' and 'Image 2: y' only, x and y being numbers with decimals."
_JSON = "Reply with the whole JSON object only, and keep each reason to a few words."
_EDIT_AXES, _QUALITY_AXES = ("success", "preservation"), ("naturalness", "artifacts")


def _shares(what: str, subject: str) -> UnifiedTask:
    return UnifiedTask(
        subject,
        _mean_or_one(partial(replies.pair_shares, axes=AXES, what=what)),
        "Reply with the three blocks 'Alignment Score:', 'Coherence Score:' and 'Style Score:' only, each with the lines "
        f"'{what} 1: X' and '{what} 2: Y'.",
        compares=True,
        axes=AXES,
    )


def _answers(subject: str, highest: int, lowest: int) -> dict[str, UnifiedTask]:
    before = "" if subject == ANSWER else "video-"
    pair = ("question", "first", "second")
    return {
        f"{before}answer": UnifiedTask(
            subject,
            _whole(partial(final_score, highest=float(highest), lowest=float(lowest))),
            _score(lowest, highest),
            fields=("question", "answer"),
            max_tokens=LONG,
        ),
        f"{before}answer-pair": UnifiedTask(
            subject, _whole(replies.better_answer), _PAIR, compares=True, fields=pair, max_tokens=LONG
        ),
        f"{before}answer-think": UnifiedTask(
            subject,
            _whole(lambda reply: replies.better_answer(replies.in_answer_tag(reply))),
            _tagged("Answer"),
            compares=True,
            fields=pair,
            max_tokens=LONG,
            to_the_end=True,
        ),
    }


TASKS: dict[str, UnifiedTask] = {
    "point": UnifiedTask(IMAGE, _whole(final_score), _score(1, 5)),
    "axes": UnifiedTask(IMAGE, _mean_or_one(axis_scores), _lines(AXES), axes=AXES),
    "pair": UnifiedTask(IMAGE, _whole(better_image), _better("Image"), compares=True),
    "pair-scores": _shares("Image", IMAGE),
    "think": UnifiedTask(IMAGE, _whole(better_image_in_answer), _tagged("Image"), compares=True, max_tokens=LONG),
    "flex": UnifiedTask(IMAGE, _flex("Image"), _JSON, compares=True, axes=(POINTS,), max_tokens=LONG),
    "edit": UnifiedTask(EDITED, _least_or_one(_EDIT_AXES), _TWO, axes=_EDIT_AXES, shows_source=True),
    "edit-quality": UnifiedTask(EDITED, _least_or_one(_QUALITY_AXES), _TWO, axes=_QUALITY_AXES, fields=()),
    "edit-pair": UnifiedTask(EDITED, _whole(better_image), _better("Image"), compares=True, shows_source=True),
    "edit-pair-scores": UnifiedTask(
        EDITED,
        _whole(lambda reply: replies.preference(replies.signed_scores(reply))),
        _SIGNED,
        compares=True,
        shows_source=True,
    ),
    "video": UnifiedTask(VIDEO, _whole(partial(final_score, highest=10.0)), _score(1, 10)),
    "video-axes": UnifiedTask(
        VIDEO,
        _mean_or_one(partial(axis_scores, axes=VIDEO_AXES)),
        _lines(VIDEO_AXES),
        axes=VIDEO_AXES,
        # The script of the 2.0 models shows that many; those of every other task show eight.
        frames=16,
    ),
    "video-pair": UnifiedTask(VIDEO, _whole(better_video), _better("Video"), compares=True),
    "video-pair-scores": _shares("Video", VIDEO),
    "video-think": UnifiedTask(
        VIDEO,
        _whole(lambda reply: better_video(replies.in_answer_tag(reply))),
        _tagged("Video"),
        compares=True,
        max_tokens=LONG,
        to_the_end=True,
    ),
    "video-flex": UnifiedTask(
        VIDEO, _flex("Video"), _JSON, compares=True, axes=(POINTS,), max_tokens=LONG, to_the_end=True
    ),
    **_answers(ANSWER, 100, 0),
    **_answers(VIDEO_ANSWER, 5, 1),
}
"""Variant of `unified-reward` -> task."""

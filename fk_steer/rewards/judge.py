"""Scores for statistics, in which what a chat judge failed to say stays missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .asking import check_scores
from .base import Images, RewardError, RewardFunction
from .functions import as_reward


@dataclass
class JudgeCounts:
    """What a judge has been through.

    Attributes:
        questions: asked, repetitions not counted.
        failed: requests without an answer, after all retries of the client.
        unparsed: replies that did not say what was asked for.
        asked_again: questions repeated because of that.
        missing: questions that got no score in the end.
    """

    questions: int = 0
    failed: int = 0
    unparsed: int = 0
    asked_again: int = 0
    missing: int = 0


def scores_or_none(reward: RewardFunction, images: Images, prompts: Sequence[str], where: str) -> list[float | None]:
    """The scores of a batch for statistics: None where a judge had none, which steering would put the mean of the other
    images in place of. A reward that asks a `ChatJudge` has it as `judge`; None if it only compares. One that knows by
    other means which scores are missing has a method `scores_or_none` of images and prompts.

    Raises:
        RewardError: if none of a judge's requests was answered; see also `check_scores`.
    """
    from .chat.judge import ChatJudge

    own = getattr(reward, "scores_or_none", None)
    if own is not None:
        return list(own(images, prompts))
    judge = getattr(reward, "judge", None)
    if not isinstance(judge, ChatJudge):
        return list(check_scores(reward, as_reward(reward)(images, prompts), prompts, where).tolist())
    failed = judge.counts.failed
    scores = list(judge.encode(images, prompts))
    if judge.counts.failed - failed == len(scores):
        raise RewardError(f"'{judge.name}' got no answer {where}: {judge.ask.last_failure}.")
    return scores

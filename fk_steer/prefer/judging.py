"""Rewards and judges as what decides about the candidates of a prompt."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from llava_reward_guide.images import to_pil

from ..rewards import FrameReward
from ..rewards.asking import check_scores
from ..rewards.base import MissingScoreError, Reward, RewardError
from ..rewards.chat.frames import frames_of
from ..rewards.chat.judge import Asker, ChatJudge
from ..rewards.judge import JudgeCounts
from ..rewards.waiting import settled
from .candidates import Candidate
from .panel import Panel, takes_answers
from .rules import Comparison


Said = tuple[list[float | None], list[str | None]]
"""Of each pair the probability that the first is better, and the reply."""


@dataclass
class Verdicts:
    """What was said of the candidates of a prompt, by their numbers.

    Attributes:
        scores: None where there was none.
        replies: of a judge that was asked for them, in its words.
        comparisons: of pairs.
        spoken: of pairs, what the judge said in either order.
        template: SHA-256 of the text that the judge was asked with; None for rewards that are not asked.
        failed: requests that were never answered.
    """

    scores: dict[int, float | None]
    replies: dict[int, str | None]
    comparisons: dict[tuple[int, int], Comparison]
    spoken: dict[tuple[int, int], tuple[str | None, str | None]]
    template: str | None = None
    failed: int = 0

    @classmethod
    def none(cls) -> Verdicts:
        """Nothing yet."""
        return cls({}, {}, {}, {})


class Recorded:
    """The rewards that candidates got when they were made, as a judge."""

    compares = False

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.verdicts = Verdicts.none()
        self.verdicts.scores |= {
            # An infinite reward says nothing of how much better.
            number: one.reward if one.reward is not None and math.isfinite(one.reward) else None
            for number, one in enumerate(candidates)
        }

    def scores(self, which: Sequence[int]) -> dict[int, float | None]:
        """See `Judge`."""
        return {number: self.verdicts.scores[number] for number in which}

    def comparisons(self, pairs: Sequence[tuple[int, int]]) -> dict[tuple[int, int], Comparison]:
        """What the rewards say of pairs, which in either order is the same."""
        return by_scores(pairs, self.scores(sorted({one for pair in pairs for one in pair})))


class OfPrompt:
    """A panel as what decides about the candidates of one prompt. What was said is kept in `verdicts`, and asked for
    once.

    Args:
        panel: gives scores, comparisons or both.
        candidates: of the prompt.
        items: what is seen of each, see `opened`.
    """

    def __init__(self, panel: Panel, candidates: Sequence[Candidate], items: Sequence[Any]) -> None:
        self.panel, self.candidates, self.items = panel, candidates, items
        self.compares = panel.comparing is not None
        self.verdicts = Verdicts.none()
        self.seen: dict[int, Any] = {}
        """What a reward that compares keeps of candidates."""
        self.answers = panel.kind in ("text", "video-text")

    def _text(self, number: int) -> str:
        one = self.candidates[number]
        return one.prompt if one.answer is None else one.answer

    def scores(self, which: Sequence[int]) -> dict[int, float | None]:
        """See `Judge`.

        Raises:
            RewardError: if the reward returns something unusable, or a judge answers nothing at all.
        """
        reward = self.panel.point
        assert reward is not None
        known = self.verdicts.scores
        together = reward.relative
        missing = list(range(len(self.items))) if together else list(which)
        missing = [number for number in missing if number not in known]
        size = len(missing) if together else self.panel.batch_size
        for start in range(0, len(missing), max(size, 1)):
            numbers = missing[start : start + size]
            with self._counted(reward):
                values, replies = self._scored(reward, numbers)
            known |= dict(zip(numbers, values))
            self.verdicts.replies |= dict(zip(numbers, replies))
        return {number: known[number] for number in which}

    def _scored(self, reward: Reward, numbers: list[int]) -> tuple[list[float | None], list[str | None]]:
        texts = [self._text(number) for number in numbers]
        where = f"for the prompt {self.candidates[numbers[0]].prompt!r}"
        judge = getattr(reward, "judge", None)
        if isinstance(judge, ChatJudge):
            failed = judge.counts.failed
            if takes_answers(reward):
                asking: Any = reward
                shown = shown_of([self.items[number] for number in numbers], asking)
                questions = [self.candidates[number].prompt for number in numbers]
                values = [value for (value,) in asking.judge_answers(shown, questions, [[text] for text in texts])]
            else:
                values = list(reward.encode(self._frames(numbers), texts))
            if judge.counts.failed - failed >= len(numbers):
                raise RewardError(f"'{judge.name}' got no answer {where}: {judge.ask.last_failure}.")
            self.verdicts.template = _digest(judge.task.template)
            return values, list(judge.ask.replies)
        missing, failures = _missing(reward), _failed(reward)
        try:
            if self.panel.kind == "video" and not reward.relative:
                # Videos may be of several sizes.
                videos = zip([self.items[number] for number in numbers], texts)
                found = [float(check_scores(reward, reward(one, [text]), [text], where)) for one, text in videos]
            else:
                found = check_scores(reward, reward(self._shown(numbers), texts), texts, where).tolist()
        except MissingScoreError:
            # A request that failed is worth another run; the same question would bring the same reply.
            if _failed(reward) > failures:
                raise
            return [None] * len(numbers), [None] * len(numbers)
        # Something in a combination has no score for somebody, and steering would take the mean of the others for it.
        lost = _missing(reward) > missing
        return [None if lost or not math.isfinite(value) else value for value in found], [None] * len(numbers)

    def _frames(self, numbers: Sequence[int]) -> Any:
        """What a chat model is shown, which takes videos of several lengths and sizes together."""
        if self.panel.kind != "video":
            return self._shown(numbers)
        return [to_pil(self.items[number][0]) for number in numbers]

    def _shown(self, numbers: Sequence[int]) -> Any:
        items = [self.items[number] for number in numbers]
        if self.answers:
            # Rewards of images see how well the answer fits as their prompt.
            return [frames[0] for frames in items]
        if self.panel.kind != "video":
            return items
        if len({item.shape for item in items}) > 1:
            raise RewardError(
                f"Expected the videos of the prompt {self.candidates[numbers[0]].prompt!r} to be of one size and "
                "length, as they are judged together."
            )
        return torch.cat(items)

    def comparisons(self, pairs: Sequence[tuple[int, int]]) -> dict[tuple[int, int], Comparison]:
        """See `Judge`.

        Raises:
            RewardError: see `scores`.
        """
        if self.panel.comparing is None:
            return by_scores(pairs, self.scores(sorted({one for pair in pairs for one in pair})))
        missing = [pair for pair in pairs if pair not in self.verdicts.comparisons]
        for start in range(0, len(missing), self.panel.batch_size):
            self._compare(missing[start : start + self.panel.batch_size])
        return {pair: self.verdicts.comparisons[pair] for pair in pairs}

    def _compare(self, pairs: Sequence[tuple[int, int]]) -> None:
        reward, comparing = self.panel.pair, self.panel.comparing
        assert reward is not None and comparing is not None
        said = []
        with self._counted(reward):
            for order in (list(pairs), [(second, first) for first, second in pairs]):
                said.append(self._asked_answers(reward, order) if self.answers else self._asked(order))
        (forward, replies), (backward, others) = said
        for number, pair in enumerate(pairs):
            turned = backward[number]
            self.verdicts.comparisons[pair] = Comparison(forward[number], None if turned is None else 1.0 - turned)
            self.verdicts.spoken[pair] = (replies[number], others[number])
        task = getattr(comparing.comparer, "task", None)
        if task is not None:
            self.verdicts.template = _digest(task.template)

    def _asked(self, order: Sequence[tuple[int, int]]) -> Said:
        """Of each pair, shown in this order."""
        reward, comparing = self.panel.pair, self.panel.comparing
        assert reward is not None and comparing is not None
        for number in sorted({one for pair in order for one in pair} - self.seen.keys()):
            self.seen[number] = reward.encode(self._frames([number]), [self._text(number)])[0]
        first, second = [self.seen[a] for a, _ in order], [self.seen[b] for _, b in order]
        texts = [self.candidates[a].prompt for a, _ in order]
        failed = _failed(reward)
        values = settled(comparing.comparer(first, second, texts))
        given = [None if value is None or math.isnan(float(value)) else float(value) for value in values]
        if len(given) != len(order) or any(value is not None and not 0.0 <= value <= 1.0 for value in given):
            raise RewardError(
                f"Expected the comparer of '{comparing.name}' to return {len(order)} probabilities in [0, 1], but got "
                f"{given}."
            )
        ask = getattr(comparing.comparer, "ask", None)
        if not isinstance(ask, Asker):
            return given, [None] * len(given)
        self._check_answered(ask, ask.counts.failed - failed, len(order), texts[0])
        return given, list(ask.replies)

    def _asked_answers(self, reward: Any, order: Sequence[tuple[int, int]]) -> Said:
        shown = shown_of([self.items[a] for a, _ in order], reward)
        questions = [self.candidates[a].prompt for a, _ in order]
        failed = reward.counts.failed
        found = reward.judge_answers(shown, questions, [[self._text(a), self._text(b)] for a, b in order])
        self._check_answered(reward.ask, reward.counts.failed - failed, len(order), questions[0])
        return [value for value, _ in found], list(reward.ask.replies)[: len(order)]

    @staticmethod
    def _check_answered(ask: Asker, failed: int, asked: int, prompt: str) -> None:
        if failed >= asked:
            raise RewardError(f"The judge gave no answer for the prompt {prompt!r}: {ask.last_failure}.")

    def _counted(self, reward: Reward) -> _Failures:
        return _Failures(reward, self.verdicts)


class _Failures:
    """Adds the requests that fail meanwhile to verdicts."""

    def __init__(self, reward: Reward, verdicts: Verdicts) -> None:
        self.reward, self.verdicts = reward, verdicts

    def __enter__(self) -> None:
        self.before = _failed(self.reward)

    def __exit__(self, *exception: object) -> None:
        self.verdicts.failed += _failed(self.reward) - self.before


def by_scores(
    pairs: Sequence[tuple[int, int]], scores: Mapping[int, float | None]
) -> dict[tuple[int, int], Comparison]:
    """Comparisons that scores stand for: the higher one wins for certain."""
    verdicts = {}
    for first, second in pairs:
        a, b = scores[first], scores[second]
        value = None if a is None or b is None else (1.0 if a > b else 0.0 if a < b else 0.5)
        verdicts[first, second] = Comparison(value, value)
    return verdicts


def shown_of(items: Sequence[Sequence[Image.Image]], reward: Any) -> list[tuple[Image.Image, ...]]:
    """What a judge of texts is shown: the image, or of a video as many frames as it takes."""
    return list(frames_of(items, reward.frames)) if reward.of_videos else [(frames[0],) for frames in items]


def _counts(reward: Reward) -> Iterator[JudgeCounts]:
    """What the judges in a reward have been through."""
    if isinstance(reward, FrameReward):
        reward = reward.reward
    for leaf in {id(one): one for one in (reward, *reward.leaves)}.values():
        if isinstance(found := getattr(leaf, "counts", None), JudgeCounts):
            yield found


def _failed(reward: Reward) -> int:
    return sum(counts.failed for counts in _counts(reward))


def _missing(reward: Reward) -> int:
    return sum(counts.missing for counts in _counts(reward))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

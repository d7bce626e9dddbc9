"""Asking a chat model for scores, and what stands in for scores that could not be had."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava_reward_guide.images import to_pil
from llava_reward_guide.texts import read_text

from ...smc import unknown
from ..base import Images, MissingScoreError, Reward
from ..judge import JudgeCounts
from ..waiting import settled
from .client import Answer, Chat, ChatClient, Question


TEMPLATES = Path(__file__).parent / "templates"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """One thing to ask.

    Attributes:
        template: text with the placeholder {prompt}, or others.
        parse: answer -> score, None if it does not say.
        reminder: added to the text when the reply could not be read.
        max_tokens: of the reply.
        optional: see `Question`.
    """

    template: str
    parse: Callable[[Answer], float | None]
    reminder: str
    max_tokens: int
    optional: Mapping[str, Any] = field(default_factory=dict)

    def text(self, values: str | Mapping[str, str]) -> str:
        """The template with the values of its placeholders, or the prompt, put in; what they contain stays as it is."""
        values = {"prompt": values} if isinstance(values, str) else values
        if not values:
            return self.template
        return re.sub(rf"\{{({'|'.join(map(re.escape, values))})\}}", lambda found: values[found[1]], self.template)


class Asker:
    """Asks a chat model the questions of a task, and again where the reply cannot be read.

    Asking again adds the task's reminder of the form: the same text at temperature 0 would bring the same reply, and
    the reminder wants the verdict alone, which a reply cut at `max_tokens` did not reach.

    Args:
        attempts: how often a question is asked at most, at least 1.

    Attributes:
        replies: what was said to each question of the last call, in its last attempt; None for nothing.
    """

    def __init__(self, chat: Chat, attempts: int = 2) -> None:
        if attempts < 1:
            raise ValueError(f"Expected `attempts` to be at least 1, but got {attempts}.")
        self.chat, self.attempts = chat, attempts
        self.counts = JudgeCounts()
        self.last_failure = ""
        self.replies: list[str | None] = []

    def __call__(
        self, task: Task, images: Sequence[tuple[Any, ...]], prompts: Sequence[str | Mapping[str, str]]
    ) -> list[float | None]:
        """A score for each tuple of images, None where it could not be had.

        Args:
            prompts: of each, or the values of the template's placeholders.
        """
        scores: list[float | None] = [None] * len(prompts)
        self.replies = [None] * len(prompts)
        pending = list(range(len(prompts)))
        for attempt in range(self.attempts):
            ending = f"\n\n{task.reminder}" if attempt else ""
            questions = [
                Question(images[i], task.text(prompts[i]) + ending, task.optional) for i in pending
            ]
            self.counts.asked_again += len(pending) if attempt else 0
            unparsed = []
            for i, answer in zip(pending, settled(self.chat.ask(questions, task.max_tokens)), strict=True):
                scores[i] = task.parse(answer)
                self.replies[i] = answer.text
                if scores[i] is not None:
                    continue
                self.last_failure = answer.error or f"the reply was {_shortened(answer.text or '')!r}"
                if answer.failed:  # The client has repeated the request already.
                    self.counts.failed += 1
                else:
                    self.counts.unparsed += 1
                    unparsed.append(i)
            pending = unparsed
            if not pending:
                break
        self.counts.questions += len(prompts)
        self.counts.missing += sum(score is None for score in scores)
        return scores


class ChatJudge(Reward):
    """A judge that scores images one by one.

    A score that could not be had is never the worst one, which would kill the particle: it is the mean of the other
    particles of the prompt, which neither favours nor kills it. Without any score for a prompt there is nothing to
    steer by, and that is an error.
    """

    def __init__(self, ask: Asker, task: Task, name: str) -> None:
        self.ask, self.task, self.name = ask, task, name

    @property
    def counts(self) -> JudgeCounts:
        """What the judge has been through so far."""
        return self.ask.counts

    @property
    def judge(self) -> ChatJudge:
        """See `scores_or_none`."""
        return self

    def encode(self, images: Images, prompts: Sequence[str]) -> Sequence[Any]:
        """A score for each image, None where it could not be had."""
        return self.ask(self.task, [(image,) for image in to_pil(images)], prompts)

    def of_particles(
        self, encodings: Tensor | Sequence[Any], members: Sequence[Tensor], prompts: Sequence[str]
    ) -> list[Tensor]:
        """The scores of all particles, those that could not be had replaced by the mean of the others.

        Raises:
            MissingScoreError: if there is no score for any image of a prompt.
        """
        assert not isinstance(encodings, Tensor)
        return [
            self._complete([encodings[i] for i in group.tolist()], prompt) for group, prompt in zip(members, prompts)
        ]

    def _complete(self, scores: list[float | None], prompt: str) -> Tensor:
        known = [score for score in scores if score is not None]
        if not known:
            raise MissingScoreError(
                f"'{self.name}' got no score for any of {len(scores)} images of the prompt {prompt!r}: "
                f"{self.ask.last_failure}. ({dataclasses.asdict(self.counts)})"
            )
        if len(known) < len(scores):
            logger.warning(
                "'%s' got no score for %d of %d images of the prompt %r; they count as the mean of the others.",
                self.name, len(scores) - len(known), len(scores), prompt,
            )  # fmt: skip
        mean = sum(known) / len(known)
        return torch.tensor([mean if score is None else score for score in scores], dtype=torch.float64)


def parse_text(parse: Callable[[str], float | None]) -> Callable[[Answer], float | None]:
    """A parser of replies as one of answers."""
    return lambda answer: None if answer.text is None else parse(answer.text)


def read_template(path: str | Path) -> str:
    """The text of a template file.

    Raises:
        ValueError: if it has no placeholder {prompt}.
    """
    text = read_text(path).strip()
    if "{prompt}" not in text:
        raise ValueError(f"Expected the template {str(path)!r} to contain {{prompt}}, but it does not.")
    return text


def server(options: dict[str, Any]) -> ChatClient:
    """`ChatClient` from the options of a judge.

    Raises:
        ValueError: for an option that it does not have.
    """
    parameters = inspect.signature(ChatClient).parameters
    if strange := [name for name in options if name not in parameters]:
        raise unknown("option", strange[0], parameters, of=" of the server")
    return ChatClient(**options)


def _shortened(reply: str) -> str:
    return reply if len(reply) <= 200 else f"{reply[:100]} ... {reply[-100:]}"

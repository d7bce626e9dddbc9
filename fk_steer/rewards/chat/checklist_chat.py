"""`checklist-chat`: a prompt taken apart into questions, each answered through a chat server."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava_reward_guide.images import to_pil

from ..base import Images, Reward, check_one_prompt_per_image
from ..card import RewardCard
from ..check_writing import Checklists
from ..checklist import IN_ONE_WORD, details_of
from ..checks import Check, Mean, check_mean, mean_of_answers
from .client import Answer, Chat
from .judge import Asker, ChatJudge, Task, server
from .vqa_chat import TOP_LOGPROBS


class ChecklistChat(Reward):
    """The checklist reward through any chat model that sees images, see `ChecklistReward`; 0 to 1.

    The probability of an answer is the sum over its spellings among the 20 most likely first tokens of the reply. A
    server that gives no log-probabilities is taken at its word: 1 for the expected answer, 0 for another.

    What cannot be read or had is asked again; an image of which a question stays open has no score and takes the mean
    of the prompt's other particles; see `ChatJudge`.

    Args:
        model: name under which the server serves it, for example Qwen/Qwen3-VL-8B-Instruct (Apache-2.0).
        questions: a file of checklists, see `fk_steer.rewards.checks.read_checklists`; None for none.
        writer: name of an LLM on a chat server that writes checklists of other prompts into that file; None for none.
        writer_url, writer_key_env: of that server.
        mean: 'arithmetic' or 'geometric'.
        attempts: how often a question is asked at most if the reply cannot be read.
        **options: of the server, see `ChatClient`.

    Raises:
        ValueError: for an unknown option or mean, a file of another form, or a writer without a file.
        OSError: if `questions` is not there and nobody writes it.
        RewardError: when called, if no score of a prompt could be had, or the server refuses the key or the model.
    """

    name = "checklist-chat"
    card = RewardCard(
        summary="The right answers of a chat model to questions that the prompt is taken apart into: the checklist "
        "through a server.",
        paper="arXiv 2512.16853",
        licence="of the model that is served",
        typical_range=(0.0, 1.0),
        default_lmbda=10.0,
    )
    default_lmbda = card.default_lmbda

    def __init__(
        self,
        model: str,
        questions: str | Path | None = None,
        writer: str | None = None,
        writer_url: str | None = None,
        writer_key_env: str = "OPENAI_API_KEY",
        mean: Mean = "arithmetic",
        attempts: int = 2,
        **options: Any,
    ) -> None:
        self.mean = check_mean(mean)
        self.checklists = Checklists(questions, writer, writer_url, writer_key_env)
        self.chat: Chat = server({"model": model, **options})
        self.judge = _Overall(self, Asker(self.chat, attempts))
        """See `scores_or_none`."""

    def encode(self, images: Images, prompts: Sequence[str]) -> Sequence[Any]:
        """The answers of each image to the questions of its prompt, numbers in [0, 1], None for what could not be
        had."""
        check_one_prompt_per_image(images, prompts)
        return self.answers(images, self.checklists(prompts))

    def of_particles(
        self, encodings: Tensor | Sequence[Any], members: Sequence[Tensor], prompts: Sequence[str]
    ) -> list[Tensor]:
        """The scores of all particles, those that could not be had replaced by the mean of the others.

        Raises:
            MissingScoreError: if there is no score for any image of a prompt.
        """
        assert not isinstance(encodings, Tensor)
        checklists = self.checklists(prompts)
        scores: list[float | None] = [None] * len(encodings)
        for group, checks in zip(members, checklists):
            for index in group.tolist():
                scores[index] = self.overall(encodings[index], checks)
        return self.judge.of_particles(scores, members, prompts)

    def details(
        self, encodings: Tensor | Sequence[Any], members: Sequence[Tensor], prompts: Sequence[str]
    ) -> list[list[dict[str, float]]]:
        """What each question got, by its text."""
        return details_of(encodings, members, self.checklists(prompts))

    def answers(self, images: Images, checklists: Sequence[Sequence[Check]]) -> list[list[float | None]]:
        """What images are answered with by checklists of one's own: for each image the probabilities of the expected
        answers, None for what could not be had, parents not counted in."""
        flat = [(image, check) for image, checks in zip(to_pil(images), checklists, strict=True) for check in checks]
        values = iter(self.judge.ask_each(flat))
        return [list(itertools.islice(values, len(checks))) for checks in checklists]

    def overall(self, answers: Sequence[float | None], checks: Sequence[Check]) -> float | None:
        """The score of an image; None if a question is open."""
        if any(answer is None for answer in answers):
            return None
        return float(mean_of_answers(torch.tensor(answers, dtype=torch.float64), checks, self.mean))


class _Overall(ChatJudge):
    """The scores without what they are made of, for those who want numbers."""

    def __init__(self, of: ChecklistChat, ask: Asker) -> None:
        super().__init__(ask, _task(Check("")), of.name)
        self._of = of

    def encode(self, images: Images, prompts: Sequence[str]) -> Sequence[Any]:
        """A score for each image, None where it could not be had."""
        checklists = self._of.checklists(prompts)
        return [self._of.overall(own, checks) for own, checks in zip(self._of.encode(images, prompts), checklists)]

    def ask_each(self, pairs: Sequence[tuple[Any, Check]]) -> list[float | None]:
        """What the check beside each image is answered with."""
        found: list[float | None] = [None] * len(pairs)
        by_answer: dict[tuple[str, ...], list[int]] = {}
        for index, (_, check) in enumerate(pairs):
            by_answer.setdefault(check.spellings, []).append(index)
        for indices in by_answer.values():
            chosen = [pairs[index] for index in indices]
            values = self.ask(
                _task(chosen[0][1]), [(image,) for image, _ in chosen], [check.question for _, check in chosen]
            )
            for index, value in zip(indices, values):
                found[index] = value
        return found


def _task(check: Check) -> Task:
    """Asking questions that are to be answered as this one."""
    return Task(
        IN_ONE_WORD.format("{prompt}"),
        lambda answer: probability(answer, check),
        "Reply with a single word or number.",
        2,
        {"logprobs": True, "top_logprobs": TOP_LOGPROBS},
    )


def probability(answer: Answer, check: Check) -> float | None:
    """P(the reply is the expected answer), in [0, 1]; None without a reply."""
    accepted = {spelling.strip().lower() for spelling in check.spellings}
    if answer.first_token is not None:
        return min(sum(math.exp(p) for token, p in answer.first_token.items() if _word(token) in accepted), 1.0)
    if answer.text is None or not answer.text.strip():
        return None
    return float(_word(answer.text.split()[0]) in accepted)


def _word(token: str) -> str:
    return token.strip().strip("▁Ġ.,!\"'*").lower()

"""`vqa-chat`: VQAScore through a chat model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_reward_guide.images import to_pil

from ..base import Images
from ..card import RewardCard
from .client import Answer
from .judge import TEMPLATES, Asker, ChatJudge, Task, parse_text, read_template, server
from .verdicts import percentage, probability_of_yes


TOP_LOGPROBS = 20  # the most that OpenAI's interface and vLLM's default allow

logger = logging.getLogger(__name__)


class VQAChat(ChatJudge):
    """VQAScore (Lin et al., arXiv 2404.01291) through any chat model that sees images: the probability in [0, 1] of
    answering Yes to whether the image shows the prompt.

    The probability is read off the first token of the reply, over the forms of 'Yes' among the 20 most likely tokens;
    typically near 0 or 1, with the values between that make it a reward for well-matched models. A server that gives no
    log-probabilities is asked for a percentage in words instead, from then on and with a warning: a coarser score on
    its own scale.

    What cannot be read or had is asked again, and then takes the mean of the prompt's other particles; see `ChatJudge`.

    Args:
        model: name under which the server serves it, for example Qwen/Qwen2.5-VL-7B-Instruct (Apache-2.0).
        template, fallback_template: text files with the placeholder {prompt} to ask with instead of ours, for the
            answer Yes or No and for the percentage.
        attempts: how often a question is asked at most if the reply cannot be read.
        **options: of the server, see `ChatClient`.

    Raises:
        ValueError: for an unknown option, or a template without the placeholder.
        RewardError: when called, if no score of a prompt could be had, or the server refuses the key or the model.
    """

    name = "vqa-chat"
    card = RewardCard(
        summary="A chat model's probability of Yes to whether the image shows the prompt: VQAScore through a server.",
        paper="arXiv 2404.01291",
        licence="of the model that is served",
        typical_range=(0.0, 1.0),
        default_lmbda=5.0,
    )
    default_lmbda = card.default_lmbda

    def __init__(
        self,
        model: str,
        template: str | Path | None = None,
        fallback_template: str | Path | None = None,
        attempts: int = 2,
        **options: Any,
    ) -> None:
        self._gives_logprobs = False
        task = Task(
            read_template(template or TEMPLATES / f"{self.name}.txt"),
            self._yes,
            "Reply with the single word Yes or No.",
            1,
            {"logprobs": True, "top_logprobs": TOP_LOGPROBS},
        )
        self._fallback = Task(
            read_template(fallback_template or TEMPLATES / f"{self.name}-percentage.txt"),
            parse_text(percentage),
            "Reply with the single line 'Probability: p' only, p being a number from 0 to 100.",
            64,
        )
        super().__init__(Asker(server({"model": model, **options}), attempts), task, self.name)

    def encode(self, images: Images, prompts: Sequence[str]) -> Sequence[Any]:
        """A probability for each image, None where it could not be had."""
        shown = [(image,) for image in to_pil(images)]
        try:
            return self.ask(self.task, shown, prompts)
        except _NoLogprobs:
            logger.warning("%r gives no log-probabilities; asking for percentages instead.", self.ask.chat)
            self.task = self._fallback
            return self.ask(self.task, shown, prompts)

    def _yes(self, answer: Answer) -> float | None:
        if answer.first_token is not None:
            self._gives_logprobs = True
            return probability_of_yes(answer.first_token)
        if answer.text is not None and not self._gives_logprobs:
            raise _NoLogprobs
        return None


class _NoLogprobs(Exception):
    """The first reply of a server came without them."""

"""`llm-grader`: a chat model grades images on five axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...smc import unknown
from ..card import RewardCard
from .client import Answer
from .judge import TEMPLATES, Asker, ChatJudge, Task, read_template, server
from .verdicts import GRADER_AXES, OVERALL, grades


_SCORE = {
    "type": "object",
    "properties": {"explanation": {"type": "string"}, "score": {"type": "number"}},
    "required": ["explanation", "score"],
    "additionalProperties": False,
}
RESPONSE_FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "grading",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": dict.fromkeys((*GRADER_AXES, OVERALL), _SCORE),
            "required": [*GRADER_AXES, OVERALL],
            "additionalProperties": False,
        },
    },
}


class LLMGrader(ChatJudge):
    """A grade in 0 to 10 from any chat model that sees images, with the axes of Ma et al. (arXiv 2501.09732).

    The model is asked for JSON with six scores: accuracy to the prompt, creativity and originality, visual quality and
    realism, consistency and cohesion, emotional or thematic resonance, and an overall score, which is its own weighing
    and not computed here; only where it is missing and the five axes are there, it is their mean. Typically 5 to 9.
    Servers that take a JSON schema (`response_format`) are given it.

    What cannot be read or had is asked again, and then takes the mean of the prompt's other particles; see `ChatJudge`.

    Args:
        model: name under which the server serves it, for example Qwen/Qwen2.5-VL-7B-Instruct (Apache-2.0).
        axis: which of the six scores is the reward.
        template: a text file with the placeholder {prompt} to ask with instead of ours.
        attempts: how often a question is asked at most if the reply cannot be read.
        max_tokens: of a reply.
        **options: of the server, see `ChatClient`.

    Raises:
        ValueError: for an unknown axis or option, or a template without the placeholder.
        RewardError: when called, if no score of a prompt could be had, or the server refuses the key or the model.
    """

    name = "llm-grader"
    card = RewardCard(
        summary="A chat model that sees images grades them on five axes and overall.",
        paper="arXiv 2501.09732",
        licence="of the model that is served",
        typical_range=(5.0, 9.0),
        default_lmbda=1.0,
    )
    default_lmbda = card.default_lmbda

    def __init__(
        self,
        model: str,
        axis: str = OVERALL,
        template: str | Path | None = None,
        attempts: int = 2,
        max_tokens: int = 1024,
        **options: Any,
    ) -> None:
        if axis not in (*GRADER_AXES, OVERALL):
            raise unknown("axis", axis, (*GRADER_AXES, OVERALL), of=f" of {self.name}")

        def parse(answer: Answer) -> float | None:
            return (grades(answer.text or "") or {}).get(axis)

        task = Task(
            read_template(template or TEMPLATES / f"{self.name}.txt"),
            parse,
            "Reply with the JSON object only, and keep each explanation to a few words.",
            max_tokens,
            {"response_format": RESPONSE_FORMAT},
        )
        super().__init__(Asker(server({"model": model, **options}), attempts), task, self.name)
        self.axis = axis

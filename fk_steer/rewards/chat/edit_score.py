"""`edit-score`: a chat model judges how well an instruction to edit an image was carried out."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL.Image import Image

from llava_reward_guide.images import as_rgb, load_image, to_pil
from llava_reward_guide.texts import read_text

from ...smc import integer
from ..base import Images, RewardError
from ..card import RewardCard
from .client import Answer
from .judge import TEMPLATES, Asker, ChatJudge, Task, read_template, server
from .verdicts import score_list


HIGHEST = 25.0
"""Of the scale the models grade on."""

SAMPLING = {"temperature": 0.7, "top_p": 0.9}
"""Of replies, where there are several of each image; as published."""

SEED = 42

Sources = Image | str | Path | Mapping[str, Image | str | Path]
"""The image that is edited, or its file, the same for all prompts or one for each."""


class EditScore(ChatJudge):
    """EditScore (Luo et al., arXiv 2509.23909): a grade in 0 to 10 of an edited image.

    For pipelines that take an image and an instruction. The prompt is the instruction, and the reward has to be told
    what image is edited:

    ```py
    reward = load_reward("edit-score", base_url="http://127.0.0.1:8000/v1")
    out = steer(pipe, reward.editing(image))("make the sky red", image=image)
    ```

    Per pass the model is asked twice: what became of the instruction and of the rest, with both images, and how well
    the edited one is made. The grade is the geometric mean of the worse of the first two numbers and the worse of the
    second two; that of an image is the mean over the passes (the publication's self-ensemble).

    Weights: EditScore/EditScore-Qwen3-VL-8B-Instruct and -4B-Instruct, adapters of Qwen3-VL, and
    EditScore/EditScore-7B, -32B and -72B of Qwen2.5-VL, licence Apache-2.0; served by vLLM (`--enable-lora`). The
    questions are our own words; `template` and `quality_template` take others, such as those the models were trained
    with. The typical range is of the scale, not measured.

    What cannot be read or had is asked again, and then takes the mean of the prompt's other particles; see `ChatJudge`.

    Args:
        source: the image that is edited, see `editing`.
        model: name under which the server serves it.
        passes: replies to each question, of which the mean is taken. One is decoded greedily, several are sampled.
        template, quality_template: text files to ask with instead of ours; the first has the placeholder {prompt}.
        attempts: how often a question is asked at most if the reply cannot be read.
        max_tokens: of a reply.
        **options: of the server, see `ChatClient`.

    Raises:
        ValueError: for passes below 1, an unknown option, or a template without the placeholder.
        RewardError: when called, if the source is not known, no score of a prompt could be had, or the server refuses
            the key or the model.
    """

    name = "edit-score"
    card = RewardCard(
        summary="How well an instruction to edit an image was carried out, graded by a model trained for that.",
        paper="arXiv 2509.23909",
        hub_id="EditScore/EditScore-Qwen3-VL-8B-Instruct",
        files=("adapter_config.json", "adapter_model.safetensors"),
        licence="Apache-2.0",
        typical_range=(3.0, 9.0),
        default_lmbda=1.0,
    )
    default_lmbda = card.default_lmbda

    def __init__(
        self,
        source: Sources | None = None,
        model: str = "EditScore",
        passes: int = 1,
        template: str | Path | None = None,
        quality_template: str | Path | None = None,
        attempts: int = 2,
        max_tokens: int = 512,
        **options: Any,
    ) -> None:
        self.passes = integer("passes", passes, 1)
        texts = (
            read_template(template or TEMPLATES / f"{self.name}.txt"),
            read_text(quality_template or TEMPLATES / f"{self.name}-quality.txt").strip(),
        )
        reminder = 'Reply with {"reasoning": "...", "score": [a, b]} only, a and b being numbers from 0 to 25.'
        parse = partial(_worse, highest=HIGHEST)
        self.tasks = [
            tuple(
                Task(text, parse, reminder, max_tokens, {**SAMPLING, "seed": SEED + i} if self.passes > 1 else {})
                for text in texts
            )
            for i in range(self.passes)
        ]
        super().__init__(Asker(server({"model": model, **options}), attempts), self.tasks[0][0], self.name)
        self.sources = None if source is None else _opened(source)

    def editing(self, source: Sources) -> EditScore:
        """The same judge of edits of an image.

        Args:
            source: the image, or its file; or a mapping of prompts to such, where they are of different images.
        """
        other = copy.copy(self)
        other.sources = _opened(source)
        return other

    def encode(self, images: Images, prompts: Sequence[str]) -> Sequence[Any]:
        """A score for each image, None where it could not be had."""
        edited = to_pil(images)
        pairs = [(self._source_of(prompt), image) for prompt, image in zip(prompts, edited, strict=True)]
        passes = []
        for edit, quality in self.tasks:
            first = self.ask(edit, pairs, prompts)
            passes.append([_together(*both) for both in zip(first, self.ask(quality, [(i,) for i in edited], prompts))])
        return [_mean([score for score in scores if score is not None]) for scores in zip(*passes)]

    def _source_of(self, prompt: str) -> Image:
        sources = self.sources
        source = sources.get(prompt) if isinstance(sources, dict) else sources
        if source is None:
            raise RewardError(
                f"'{self.name}' does not know which image the prompt {prompt!r} edits. Expected "
                "`reward.editing(image)`, or a mapping of prompts to images there."
            )
        return source


def _opened(source: Sources) -> Image | dict[str, Image]:
    if isinstance(source, Mapping):
        return {prompt: _opened_one(image) for prompt, image in source.items()}
    return _opened_one(source)


def _opened_one(source: Image | str | Path) -> Image:
    return load_image(source) if isinstance(source, (str, Path)) else as_rgb(source)


def _worse(answer: Answer, highest: float) -> float | None:
    """The worse of a reply's numbers, in 0 to 10."""
    scores = score_list(answer.text or "", highest)
    return min(scores) * 10 / highest if scores else None


def _together(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else math.sqrt(first * second)


def _mean(scores: list[float]) -> float | None:
    return sum(scores) / len(scores) if scores else None

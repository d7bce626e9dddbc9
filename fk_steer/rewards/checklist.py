"""`checklist`: a prompt taken apart into questions, each answered by a model that looks at the image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llava_reward_guide.images import to_pil

from ..smc import integer
from . import image_text_vqa, qwen_vqa
from .base import Images, check_one_prompt_per_image
from .card import RewardCard
from .check_writing import Checklists
from .checks import Check, Checklist, Mean, check_mean, mean_of_answers
from .image_text_vqa import ImageTextVQA
from .local import LocalReward, Source
from .qwen_vqa import QwenVQA
from .vqa_score import T5_FILES, VQAScore


IN_ONE_WORD = "{} Answer in one word."
"""How GenEval 2's evaluation.py (facebookresearch/GenEval2) asks a question."""


# The judge of GenEval 2 comes first; CLIP-FlanT5 was trained to answer otherwise.
_VARIANTS = {
    name: VQAScore.card.variants[name]
    for name in sorted(VQAScore.card.variants, key=lambda name: not name.startswith("qwen3"))
    if VQAScore.card.variants[name].files != T5_FILES
}


@dataclass(frozen=True)
class _Asked:
    """A check with its question as the model takes it, and the ids of the first tokens of its answer."""

    check: Check
    text: Any
    answers: Tensor


class ChecklistReward(LocalReward):
    """How well an image answers the questions that its prompt is taken apart into; 0 to 1.

    Soft-TIFA (Kamath et al., arXiv 2512.16853): each question gets the probability of its expected answer, the sum over
    the answer's spellings of P(first token of the reply), and the score is the mean of these. A question whose parent
    has less than 0.5 counts as 0. What each question got is in the trace and the report, see `Reward.details`.

    The questions of a prompt are those of the file `questions`, else what a `writer` makes of it, else they are made
    from its wording, which is taken apart if it is like the prompts of GenEval and GenEval 2 ('a photo of two clocks',
    'a red dog to the left of three bagels') and is one question otherwise.

    Variants, commits as pinned on the card of VQAScore:
        - 'qwen3-vl-8b', the judge of GenEval 2, 'qwen3-vl-4b' and 'qwen3-vl-2b': Qwen/Qwen3-VL-8B-Instruct,
          Qwen/Qwen3-VL-4B-Instruct and Qwen/Qwen3-VL-2B-Instruct, licence Apache-2.0.
        - 'qwen2.5-vl-7b' and 'qwen2.5-vl-3b': Qwen/Qwen2.5-VL-7B-Instruct, licence Apache-2.0, and
          Qwen/Qwen2.5-VL-3B-Instruct, Qwen research licence.
        - 'any': the model of images and text that `path` names, asked through its own processor and chat template, so
          that there are no gradients.

    Args:
        variant: one of the above.
        questions: a file of checklists, see `fk_steer.rewards.checks.read_checklists`; None for none.
        writer: name of an LLM on a chat server that writes checklists of other prompts into that file; None for none.
        writer_url, writer_key_env: of that server, see `ChatClient`.
        mean: 'arithmetic', an estimate of the share of requirements that are met, or 'geometric', (prod_i p_i)^(1/n),
            an estimate of whether all are.
        batch_size: questions per forward pass, at least 1.
        path: folder or hub id of the weights; a folder has to hold the tokenizer too unless `tokenizer` is given.
        tokenizer: hub id or folder; with 'any' of the whole processor.
        revision: of a hub id given as `path`.
        device: None for a CUDA device if there is one.
        dtype: None for bfloat16 on CUDA devices and float32 elsewhere.
        compile: run the language model through `torch.compile`.

    Raises:
        ValueError: for an unknown variant or mean, a file of another form, or a writer without a file.
        OSError: if `questions` is not there and nobody writes it.
        RewardLoadError: if the weights cannot be loaded.
    """

    name = "checklist"
    card = RewardCard(
        summary="Mean probability of the right answers to questions that the prompt is taken apart into.",
        paper="arXiv 2512.16853",
        typical_range=(0.0, 1.0),
        licence="Apache-2.0",
        default_lmbda=10.0,
        dtype="bfloat16",
        variants=_VARIANTS,
    )
    model: QwenVQA | ImageTextVQA
    mean: Mean = "arithmetic"
    batch_size: int = 16
    checklists: Checklists

    def load(
        self,
        source: Source,
        *,
        tokenizer: str | None = None,
        questions: str | Path | None = None,
        writer: str | None = None,
        writer_url: str | None = None,
        writer_key_env: str = "OPENAI_API_KEY",
        mean: Mean = "arithmetic",
        batch_size: int = 16,
    ) -> tuple[Any, ...]:
        """See `LocalReward`."""
        self.mean, self.batch_size = check_mean(mean), integer("batch_size", batch_size, 1)
        self.checklists = Checklists(questions, writer, writer_url, writer_key_env)
        module: Any = qwen_vqa if source.card.files else image_text_vqa
        return module.load(source, tokenizer, self.name)

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """Whether `score` has gradients: with all but the variant 'any'."""
        return self.model.differentiable

    @property
    def compiled(self) -> Iterable[nn.Module]:
        """See `LocalReward`."""
        return self.model.compiled

    def read(self, prompts: list[str]) -> Iterable[Any]:
        """The checklists, as the model is asked."""
        return [self._asked(checks) for checks in self.checklists(prompts)]

    def preprocess(self, images: Images, exact: bool = True) -> Any:
        """What the model takes, see the models' `preprocess`."""
        return self.model.preprocess(images, exact, self.device, self.dtype)

    def rate(self, inputs: Any, prompts: Sequence[str]) -> Tensor:
        """The scores (B,)."""
        asked = self.prompts(prompts)
        answers = self._answers(inputs, asked)
        return torch.stack(
            [
                mean_of_answers(values, [one.check for one in checks], self.mean)
                for values, checks in zip(answers, asked)
            ]
        )

    @torch.no_grad()
    def encode(self, images: Images, prompts: Sequence[str]) -> Sequence[Any]:
        """The answers of each image to the questions of its prompt, a list of Q numbers in [0, 1] each."""
        check_one_prompt_per_image(images, prompts)
        return [one.tolist() for one in self._answers(self.preprocess(images), self.prompts(prompts))]

    def of_particles(
        self, encodings: Tensor | Sequence[Any], members: Sequence[Tensor], prompts: Sequence[str]
    ) -> list[Tensor]:
        """The scores of all particles."""
        found = []
        for group, checks in zip(members, self.checklists(prompts)):
            answers = torch.tensor([encodings[i] for i in group.tolist()], dtype=torch.float64)
            found.append(mean_of_answers(answers.view(len(group), len(checks)), checks, self.mean))
        return found

    def details(
        self, encodings: Tensor | Sequence[Any], members: Sequence[Tensor], prompts: Sequence[str]
    ) -> list[list[dict[str, float]]]:
        """What each question got, by its text."""
        return details_of(encodings, members, self.checklists(prompts))

    @torch.no_grad()
    def answers(self, images: Images, checklists: Sequence[Sequence[Check]]) -> list[list[float | None]]:
        """What images are answered with by checklists of one's own: for each image the probabilities of the expected
        answers, parents not counted in.

        Raises:
            ValueError: unless there is a checklist per image.
        """
        pictures = images if isinstance(images, Tensor) else to_pil(images)
        if len(pictures) != len(checklists):
            raise ValueError(
                f"Expected one checklist per image, but got {len(pictures)} images and {len(checklists)} checklists."
            )
        asked = [self._asked(tuple(checks)) for checks in checklists]
        return [one.tolist() for one in self._answers(self.preprocess(pictures), asked)]

    def _asked(self, checks: Checklist) -> list[_Asked]:
        return [
            _Asked(
                check,
                self.model.ask(self.tokenizer, IN_ONE_WORD.format(check.question)),
                first_tokens(self.tokenizer, check.spellings),
            )
            for check in checks
        ]

    def _answers(self, inputs: Any, asked: Sequence[Sequence[_Asked]]) -> list[Tensor]:
        """For each image the probabilities (Q,) of the expected answers."""
        flat = [(image, one) for image, checks in enumerate(asked) for one in checks]
        found = []
        for start in range(0, len(flat), self.batch_size):
            some = flat[start : start + self.batch_size]
            # Each kind of model reads what it has made of the images.
            own: Any = self.model.of_images(inputs, [image for image, _ in some])
            logits, *_ = self.model.first_logits(own, [one.text for _, one in some])
            probabilities = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
            for row, (_, one) in zip(probabilities, some):
                # A sum of probabilities may exceed 1 by a rounding error.
                found.append(row[one.answers.to(row.device)].sum().clamp(max=1.0))
        return list(torch.stack(found).split([len(checks) for checks in asked]))


def first_tokens(tokenizer: Any, spellings: Sequence[str]) -> Tensor:
    """The ids of the first tokens of texts, each once."""
    return torch.tensor(
        list(dict.fromkeys(tokenizer(text, add_special_tokens=False).input_ids[0] for text in spellings))
    )


def details_of(
    encodings: Any, members: Sequence[Tensor], checklists: Sequence[Checklist]
) -> list[list[dict[str, float]]]:
    """For each prompt and particle: question -> what it got, from the answers of images; what could not be had is left
    out. A question that is asked twice has its number behind it."""
    found = []
    for group, checks in zip(members, checklists):
        names: dict[str, None] = {}
        for place, check in enumerate(checks, 1):
            names[check.question if check.question not in names else f"{check.question} ({place})"] = None
        found.append(
            [{name: value for name, value in zip(names, encodings[i]) if value is not None} for i in group.tolist()]
        )
    return found

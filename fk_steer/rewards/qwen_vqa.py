"""Qwen2.5-VL and Qwen3-VL as VQAScore asks them.

Question and probability: linzhiqiu/t2v_metrics, t2v_metrics/models/vqascore_models/qwen2vl_model.py and
qwen3vl_model.py; chat: the models' own templates.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import qwen_vl
from .base import Images
from .loading import RewardLoadError, load_pretrained
from .local import Source


QUESTION = 'Does this figure show "{}"? Please answer Yes or No.'
ANSWER = "Yes"
KNOWN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
"""Models, as their configurations call them, that are asked so."""


class QwenVQA(nn.Module):
    """Asks whether the figure shows the prompt.

    Args:
        qwen: a model of the Qwen-VL family `ForConditionalGeneration`.
    """

    differentiable = True

    def __init__(self, qwen: Any) -> None:
        super().__init__()
        self.qwen = qwen

    @property
    def compiled(self) -> list[nn.Module]:
        return [self.qwen.model.language_model]

    def preprocess(
        self, images: Images, exact: bool, device: torch.device, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """See `qwen_vl.image_inputs`."""
        config = self.qwen.config
        sizes = [partial(qwen_vl.smart_size, factor=qwen_vl.factor_of(config))]
        return qwen_vl.image_inputs(images, config, exact, device, dtype, sizes)

    def tokenize(self, tokenizer: Any, prompt: str) -> tuple[Tensor, Tensor, Tensor]:
        """Ids before the image, after it, and of the answer."""
        texts = (
            qwen_vl.before_image(self.qwen.config),
            qwen_vl.VISION_END + QUESTION.format(prompt) + qwen_vl.REPLY,
            ANSWER,
        )
        before, after, answer = (torch.tensor(tokenizer(text).input_ids) for text in texts)
        if len(answer) != 1:
            raise RewardLoadError(
                f"Expected the tokenizer of a Qwen-VL to have one token for {ANSWER!r}, but got {answer.tolist()}."
            )
        return before, after, answer

    def answer_probability(
        self, inputs: tuple[Tensor, Tensor], tokens: Sequence[tuple[Tensor, ...]], plain: bool
    ) -> Tensor:
        """(B,): the probability that the reply begins with the answer, with the repetition penalty of the model's
        generation settings; if `plain`, without.
        """
        patches, grids = inputs
        config = self.qwen.config
        rows = qwen_vl.with_image_tokens(grids, [(before, after) for before, after, _ in tokens], config)
        # On the left, so that the last position is that of the reply in every row.
        input_ids, mask = qwen_vl.padded(rows, "left", patches.device)
        logits = self.qwen(
            input_ids=input_ids,
            attention_mask=mask,
            pixel_values=patches,
            image_grid_thw=grids,
            mm_token_type_ids=qwen_vl.is_image(input_ids, mask, config),
            use_cache=False,
            logits_to_keep=1,
        ).logits[:, -1]
        answers = torch.cat([answer for _, _, answer in tokens]).to(patches.device)
        penalty = 1.0 if plain else self.qwen.generation_config.repetition_penalty or 1.0
        return first_token_probability(logits, answers, penalty, input_ids, mask)


def first_token_probability(logits: Tensor, answers: Tensor, penalty: float, input_ids: Tensor, mask: Tensor) -> Tensor:
    """The probabilities (B,) of tokens (B,) from logits (B, V) of the first token of replies.

    Args:
        penalty: repetition penalty (Keskar et al., arXiv 1909.05858), 1 for none: the question's own words, 'Yes' among
            them, count as repeated.
        input_ids, mask: of the questions (B, L).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if penalty != 1.0:
        repeated = torch.zeros_like(logits).scatter_add_(1, input_ids, mask.to(logits.dtype)) > 0
        logits = torch.where(repeated, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    return logits.softmax(-1).gather(1, answers[:, None])[:, 0]


def load(source: Source, tokenizer: str | None, reward: str) -> tuple[QwenVQA, Any]:
    """The model and its tokenizer, of another place if `tokenizer` says so."""
    model = load_image_text_model(source.path, reward, source.revision, source.dtype)
    if model.config.model_type not in KNOWN:
        raise RewardLoadError(
            f"Expected a model of the Qwen-VL family for this variant of '{reward}', but {source.path!r} is a "
            f"{model.config.model_type!r}, which the variant 'any' takes."
        )
    words = qwen_vl.load_tokenizer(tokenizer or source.path, reward, None if tokenizer else source.revision)
    return QwenVQA(model), words


def load_image_text_model(path: str, reward: str, revision: str | None, dtype: torch.dtype) -> Any:
    """A model of transformers that takes images and text and writes text, whatever its class.

    Raises:
        RewardLoadError: if it cannot be loaded, or is none of those that transformers knows.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = load_pretrained(AutoConfig, path, reward, revision=revision, trust_remote_code=False)
    kind = AutoModelForImageTextToText._model_mapping.get(type(config), None)
    if kind is None:
        raise RewardLoadError(
            f"Expected a model of images and text for the reward '{reward}', but {path!r} is a {config.model_type!r}."
        )
    return load_pretrained(kind, path, reward, revision=revision, dtype=dtype)

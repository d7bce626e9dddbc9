"""Chat with a Qwen2.5-VL or Qwen3-VL model in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..loading import RewardLoadError, default_device, load_pretrained
from .client import Answer, Question


@dataclass(frozen=True)
class _Kind:
    """A kind of model.

    Attributes:
        network: class of transformers.
        system: message that its chat template puts first; None for none.
    """

    network: str
    system: str | None


KINDS = {
    "qwen2_5_vl": _Kind("Qwen2_5_VLForConditionalGeneration", "You are a helpful assistant."),
    "qwen3_vl": _Kind("Qwen3VLForConditionalGeneration", None),
}
"""`model_type` of a configuration -> kind."""


class QwenChat:
    """A Qwen2.5-VL or Qwen3-VL model that answers `Question`s with greedy decoding.

    Images are preprocessed as the folder's `preprocessor_config.json` says, prompts cannot smuggle in special tokens,
    and batches are padded on the left.

    Args:
        path: hub id or folder of a model of one of `KINDS` with its tokenizer and image processor.
        reward: the reward's name, for messages.
        revision: of a hub id.
        device: None for a CUDA device if there is one.
        dtype: None for bfloat16 on CUDA devices and float32 elsewhere.
        batch_size: questions per forward pass.

    Raises:
        RewardLoadError: if the model cannot be loaded, is of another kind, or its tokenizer lacks the tokens of Qwen's
            chats.
    """

    def __init__(
        self,
        path: str,
        reward: str,
        revision: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        batch_size: int = 8,
    ) -> None:
        import transformers
        from transformers import AutoConfig, AutoTokenizer, GenerationConfig, Qwen2VLImageProcessorPil

        self.model, self.batch_size = path, batch_size
        self.device = default_device(device)
        dtype = dtype or (torch.bfloat16 if self.device.type == "cuda" else torch.float32)
        model_type = load_pretrained(AutoConfig, path, reward, revision=revision).model_type
        if model_type not in KINDS:
            raise RewardLoadError(
                f"Expected a model of one of the kinds {', '.join(KINDS)} in {path!r}, but it is {model_type!r}. Serve "
                "it, and take the backend 'server'."
            )
        self._kind = KINDS[model_type]
        network = getattr(transformers, self._kind.network)
        self._network = load_pretrained(network, path, reward, revision=revision, dtype=dtype)
        self._network.to(self.device).eval().requires_grad_(False)
        self._tokenizer = load_pretrained(AutoTokenizer, path, reward, revision=revision)
        self._image_processor = load_pretrained(Qwen2VLImageProcessorPil, path, reward, revision=revision)
        names = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
        self._special = {name: self._tokenizer.convert_tokens_to_ids(name) for name in names}
        lacking = [name for name, index in self._special.items() if index in (None, self._tokenizer.unk_token_id)]
        if lacking or self._special["<|image_pad|>"] != self._network.config.image_token_id:
            raise RewardLoadError(
                f"Expected the tokenizer in {path!r} to be Qwen-VL's, with <|image_pad|> at "
                f"{self._network.config.image_token_id}, but it lacks {lacking or 'that'}."
            )
        # The published configuration samples and penalises repetition, and what a call leaves open is taken from it.
        end = self._special["<|im_end|>"]
        stops = [end, self._tokenizer.get_vocab().get("<|endoftext|>", end)]
        self._network.generation_config = GenerationConfig(do_sample=False, eos_token_id=stops, pad_token_id=end)

    @torch.no_grad()
    def ask(self, questions: Sequence[Question], max_tokens: int) -> list[Answer]:
        """See `Chat`."""
        starts = range(0, len(questions), self.batch_size)
        return [a for i in starts for a in self._generate(questions[i : i + self.batch_size], max_tokens)]

    def _generate(self, questions: Sequence[Question], max_tokens: int) -> list[Answer]:
        inputs = self._inputs(questions)
        tokens = self._network.generate(**inputs, max_new_tokens=max_tokens)
        replies = tokens[:, inputs["input_ids"].shape[1] :]
        return [Answer(text) for text in self._tokenizer.batch_decode(replies, skip_special_tokens=True)]

    def _inputs(self, questions: Sequence[Question]) -> dict[str, Any]:
        images = [image for question in questions for image in question.images]
        vision = self._image_processor(images=images, return_tensors="pt")
        num_tokens = iter((vision["image_grid_thw"].prod(1) // self._image_processor.merge_size**2).tolist())
        rows = [self._tokens(question, [next(num_tokens) for _ in question.images]) for question in questions]
        width, pad = max(map(len, rows)), self._special["<|im_end|>"]
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        image_rows: Tensor = ids == self._special["<|image_pad|>"]
        inputs = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": image_rows.int(), **vision}
        inputs["pixel_values"] = inputs["pixel_values"].to(self._network.dtype)
        return {name: value.to(self.device) for name, value in inputs.items()}

    def _tokens(self, question: Question, num_image_tokens: list[int]) -> list[int]:
        """Qwen's chat template: a system message if the kind has one, the images and the text of the user, the
        assistant's turn."""
        start, end, vision_start, vision_end, image = self._special.values()
        vision = [t for n in num_image_tokens for t in (vision_start, *[image] * n, vision_end)]
        message = self._kind.system
        system = [start, *self._text(f"system\n{message}"), end, *self._text("\n")] if message else []
        user = [start, *self._text("user\n"), *vision, *self._text(question.text), end, *self._text("\n")]
        return [*system, *user, start, *self._text("assistant\n")]

    def _text(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

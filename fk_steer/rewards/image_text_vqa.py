"""Any model of transformers that takes images and text, as VQAScore asks it: through its own processor and template.

Question and probability: linzhiqiu/t2v_metrics, t2v_metrics/models/vqascore_models/gemma3_model.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from llava_reward_guide.images import to_pil

from .base import Images
from .loading import RewardLoadError, load_pretrained
from .local import Source
from .qwen_vqa import ANSWER, QUESTION, first_token_probability, load_image_text_model


class ImageTextVQA(nn.Module):
    """Asks whether the figure shows the prompt. Pixels go through the processor, which has no gradients.

    Args:
        network: what transformers calls a model for image-text-to-text.
        processor: its own, with a chat template.
    """

    differentiable = False

    def __init__(self, network: Any, processor: Any) -> None:
        super().__init__()
        self.network, self.processor = network, processor

    @property
    def compiled(self) -> list[nn.Module]:
        return [self.network]

    def preprocess(self, images: Images, exact: bool, device: torch.device, dtype: torch.dtype) -> list[Image]:
        """The images as they would be saved, RGB."""
        return to_pil(images)

    def tokenize(self, tokenizer: Any, prompt: str) -> tuple[str, int]:
        """The question, and the first token of the answer."""
        return QUESTION.format(prompt), tokenizer(ANSWER, add_special_tokens=False).input_ids[0]

    def answer_probability(self, inputs: list[Image], tokens: Sequence[tuple[str, int]], plain: bool) -> Tensor:
        """(B,): the probability that the reply begins with the answer, with the repetition penalty of the model's
        generation settings; if `plain`, without.
        """
        logits, input_ids, mask = self.first_logits(inputs, [question for question, _ in tokens])
        answers = torch.tensor([answer for _, answer in tokens], device=logits.device)
        penalty = 1.0 if plain else self.network.generation_config.repetition_penalty or 1.0
        return first_token_probability(logits, answers, penalty, input_ids, mask)

    def first_logits(self, inputs: list[Image], texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """The logits (B, V) of the first token of the reply, with the ids and the mask of what was asked."""
        chats = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
            for image, question in zip(inputs, texts, strict=True)
        ]
        batch = self.processor.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            # What looks like a special token in a prompt is none.
            sanitize_control_tokens=True,
            # What templates of models that think by default ask for an answer at once.
            enable_thinking=False,
            # On the left, so that the last position is that of the reply in every row.
            processor_kwargs={"padding": True, "padding_side": "left"},
        ).to(self.network.device)
        floats = {name: value.to(self.network.dtype) for name, value in batch.items() if value.is_floating_point()}
        logits = self.network(**{**batch, **floats}, use_cache=False, logits_to_keep=1).logits[:, -1]
        return logits, batch["input_ids"], batch["attention_mask"]

    def of_images(self, inputs: list[Image], indices: Sequence[int]) -> list[Image]:
        """The inputs of some of the images, each as often as it is named."""
        return [inputs[index] for index in indices]

    def ask(self, tokenizer: Any, text: str) -> str:
        """A question of one's own."""
        return text


def load(source: Source, tokenizer: str | None, reward: str) -> tuple[ImageTextVQA, Any]:
    """The model and its tokenizer; the processor is of another place if `tokenizer` says so.

    Raises:
        RewardLoadError: if no path is given, or there is no chat template.
    """
    from transformers import AutoProcessor

    if not source.given:
        raise RewardLoadError(
            f"Expected `path` of the reward '{reward}' with the variant 'any' to be the hub id or folder of a model of "
            "images and text, but got none."
        )
    network = load_image_text_model(source.path, reward, source.revision, source.dtype)
    place = tokenizer or source.path
    revision = None if tokenizer else source.revision
    processor = load_pretrained(AutoProcessor, place, reward, revision=revision, trust_remote_code=False)
    if getattr(processor, "chat_template", None) is None:
        raise RewardLoadError(f"Expected the processor of the reward '{reward}' in {place!r} to have a chat template.")
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return ImageTextVQA(network, processor), processor.tokenizer

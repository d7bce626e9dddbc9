"""Qwen2.5-VL as VQAScore asks it.

Question and template: linzhiqiu/t2v_metrics, t2v_metrics/models/vqascore_models/qwen2vl_model.py, and the model's own
chat template; sizes of images: `smart_resize` of QwenLM/Qwen2.5-VL's qwen-vl-utils.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .base import Images
from .images import normalize, resize, to_float, to_pixels
from .loading import RewardLoadError, load_pretrained
from .local import Source


BEFORE_IMAGE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
AFTER_QUESTION = "<|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n"
AFTER_IMAGE = AFTER_QUESTION.format('Does this figure show "{}"? Please answer Yes or No.')
ANSWER = "Yes"
MIN_PIXELS, MAX_PIXELS = 4 * 28 * 28, 16384 * 28 * 28


class QwenVQA(nn.Module):
    """Asks whether the figure shows the prompt.

    Args:
        qwen: a `Qwen2_5_VLForConditionalGeneration`.
    """

    def __init__(self, qwen: Any) -> None:
        super().__init__()
        self.qwen = qwen

    @property
    def compiled(self) -> list[nn.Module]:
        return [self.qwen.model.language_model]

    def preprocess(
        self, images: Images, exact: bool, device: torch.device, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Patches of all images (N, channels * temporal * patch * patch) and their numbers (B, 3) in time, height and
        width."""
        vision = self.qwen.config.vision_config
        factor = vision.patch_size * vision.spatial_merge_size
        patches, grids = [], []
        for image in to_pixels(images, device, exact):
            height, width = image.shape[-2:]
            size = smart_size(height, width, factor)
            pixels = normalize(to_float(resize(image[None], size)))[0]
            patches.append(_patches(pixels, vision).to(dtype))
            grids.append([1, size[0] // vision.patch_size, size[1] // vision.patch_size])
        return torch.cat(patches), torch.tensor(grids, device=device)

    def tokenize(self, tokenizer: Any, prompt: str) -> tuple[Tensor, Tensor, Tensor]:
        """Ids before the image, after it, and of the answer."""
        before, after, answer = (
            torch.tensor(tokenizer(text).input_ids) for text in (BEFORE_IMAGE, AFTER_IMAGE.format(prompt), ANSWER)
        )
        if len(answer) != 1:
            raise RewardLoadError(
                f"Expected the tokenizer of Qwen2.5-VL to have one token for {ANSWER!r}, but got {answer.tolist()}."
            )
        return before, after, answer

    def answer_probability(
        self, inputs: tuple[Tensor, Tensor], tokens: Sequence[tuple[Tensor, ...]], plain: bool
    ) -> Tensor:
        """(B,): the probability that the reply begins with the answer, with the repetition penalty of the model's
        generation settings; if `plain`, without.
        """
        logits, input_ids, mask = self.first_logits(inputs, [(before, after) for before, after, _ in tokens])
        if not plain:
            logits = self._penalize(logits, input_ids, mask)
        answer = torch.cat([answer for _, _, answer in tokens]).to(logits.device)
        return logits.softmax(-1).gather(1, answer[:, None])[:, 0]

    def first_logits(
        self, inputs: tuple[Tensor, Tensor], texts: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The logits (B, V) of the first token of the reply, float32 or better, with the ids and the mask of what was
        asked.

        Args:
            texts: ids before the image and after it.
        """
        patches, grids = inputs
        config = self.qwen.config
        num_tokens = (grids.prod(1) // config.vision_config.spatial_merge_size**2).tolist()
        rows = [
            torch.cat([before, before.new_full((count,), config.image_token_id), after])
            for count, (before, after) in zip(num_tokens, texts)
        ]
        # On the left, so that the last position is that of the reply in every row.
        pad = nn.utils.rnn.pad_sequence
        input_ids = pad(rows, batch_first=True, padding_side="left").to(patches.device)
        mask = pad([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left").to(patches.device)
        logits = self.qwen(
            input_ids=input_ids,
            attention_mask=mask,
            pixel_values=patches,
            image_grid_thw=grids,
            mm_token_type_ids=((input_ids == config.image_token_id) & mask.bool()).int(),
            use_cache=False,
            logits_to_keep=1,
        ).logits[:, -1]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits, input_ids, mask

    def of_images(self, inputs: tuple[Tensor, Tensor], indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The inputs of some of the images, each as often as it is named."""
        patches, grids = inputs
        own = patches.split(grids.prod(1).tolist())
        return torch.cat([own[index] for index in indices]), grids[list(indices)]

    def ask(self, tokenizer: Any, text: str) -> tuple[Tensor, Tensor]:
        """Ids before the image and after it, for a question of one's own."""
        before, after = (
            torch.tensor(tokenizer(part).input_ids) for part in (BEFORE_IMAGE, AFTER_QUESTION.format(text))
        )
        return before, after

    def _penalize(self, logits: Tensor, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Repetition penalty (Keskar et al., arXiv 1909.05858): the question's own words, 'Yes' among them, count as
        repeated."""
        penalty = self.qwen.generation_config.repetition_penalty or 1.0
        repeated = torch.zeros_like(logits).scatter_add_(1, input_ids, mask.to(logits.dtype)) > 0
        return torch.where(repeated, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def smart_size(height: int, width: int, factor: int) -> tuple[int, int]:
    """The size nearest to (height, width) in multiples of `factor`, between `MIN_PIXELS` and `MAX_PIXELS` in all.

    Raises:
        ValueError: for images more than 200 times as long as wide, which the model refuses.
    """
    if max(height, width) > 200 * min(height, width):
        raise ValueError(f"Expected images at most 200 times as long as wide, but got {height} x {width} pixels.")
    rows, columns = (max(factor, round(length / factor) * factor) for length in (height, width))
    if rows * columns > MAX_PIXELS:
        scale = math.sqrt(height * width / MAX_PIXELS)
        rows, columns = (max(factor, math.floor(length / scale / factor) * factor) for length in (height, width))
    elif rows * columns < MIN_PIXELS:
        scale = math.sqrt(MIN_PIXELS / (height * width))
        rows, columns = (math.ceil(length * scale / factor) * factor for length in (height, width))
    return rows, columns


def _patches(pixels: Tensor, vision: Any) -> Tensor:
    """(3, H, W) as rows of patches, those that are merged next to one another, each repeated over the frames."""
    size, merge = vision.patch_size, vision.spatial_merge_size
    channels, height, width = pixels.shape
    patches = pixels.view(channels, height // size // merge, merge, size, width // size // merge, merge, size)
    patches = patches.permute(1, 4, 2, 5, 0, 3, 6)[:, :, :, :, :, None]
    patches = patches.expand(-1, -1, -1, -1, -1, vision.temporal_patch_size, -1, -1)
    return patches.reshape(-1, channels * vision.temporal_patch_size * size * size)


def load(source: Source, tokenizer: str | None, reward: str) -> tuple[QwenVQA, Any]:
    """The model and its tokenizer, of another place if `tokenizer` says so."""
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    model = load_pretrained(
        Qwen2_5_VLForConditionalGeneration,
        source.path,
        reward,
        revision=source.revision,
        dtype=source.dtype,
    )
    words = load_pretrained(
        AutoTokenizer,
        tokenizer or source.path,
        reward,
        revision=None if tokenizer else source.revision,
        trust_remote_code=False,
    )
    return QwenVQA(model), words

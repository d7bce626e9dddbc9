"""Qwen2.5-VL."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from transformers import Qwen2_5_VLModel

from ..images import ImageError, normalize
from .base import Backbone, BackboneInputs, Row, load_weights
from .text import TextTokenizer


MERGED = 28
"""Side in pixels of what becomes one visual token: 2 x 2 patches of 14."""

LOADING_PIXELS = (4 * MERGED**2, 16384 * MERGED**2)
PROCESSOR_PIXELS = (256 * MERGED**2, 1280 * MERGED**2)


def smart_size(width: int, height: int, pixels: tuple[int, int]) -> tuple[int, int]:
    """Multiples of 28 nearest to a size, scaled where the area is outside `pixels` (least, most).

    Raises:
        ImageError: for an image more elongated than 200:1, which the model cannot take.
    """
    if max(width, height) > 200 * min(width, height):
        raise ImageError(f"Expected an image less elongated than 200:1, but got {width} x {height}.")
    least, most = pixels
    # At least 28 in the first resize; in the second sides are so long already.
    size = [max(MERGED, round(side / MERGED) * MERGED) for side in (width, height)]
    area = size[0] * size[1]
    if area > most:
        scale = math.sqrt(width * height / most)
        size = [max(MERGED, math.floor(side / scale / MERGED) * MERGED) for side in (width, height)]
    elif area < least:
        scale = math.sqrt(least / (width * height))
        size = [math.ceil(side * scale / MERGED) * MERGED for side in (width, height)]
    return size[0], size[1]


def resize_twice(image: Image.Image, pixels: tuple[int, int] = PROCESSOR_PIXELS) -> Image.Image:
    """The two resizes of the published pipeline: when an image is loaded, and in the processor."""
    for limits in (LOADING_PIXELS, pixels):
        size = smart_size(*image.size, limits)
        if size != image.size:
            image = image.resize(size, Image.Resampling.BICUBIC)
    return image


def patchify(image: Image.Image, patch: int = 14, merge: int = 2, frames: int = 2) -> Tensor:
    """Patches (rows * columns, 3 * frames * patch * patch) float32 of an RGB image, 2 x 2 of them in a row.

    A still image is a video of two equal frames.
    """
    values = normalize(image)
    rows, columns = values.shape[1] // patch, values.shape[2] // patch
    blocks = values.view(3, rows // merge, merge, patch, columns // merge, merge, patch)
    blocks = blocks.permute(1, 4, 2, 5, 0, 3, 6).unsqueeze(5).expand(-1, -1, -1, -1, -1, frames, -1, -1)
    return blocks.reshape(rows * columns, -1)


class Qwen25VL(Backbone):
    """Qwen2.5-VL-7B-Instruct, and its sizes.

    Args:
        model: a `Qwen2_5_VLModel`.
        tokenizer: of Qwen2.
        pixels: least and most pixels of an image after resizing.
    """

    model_type = "qwen2_5_vl"
    default_id = "Qwen/Qwen2.5-VL-7B-Instruct"
    projector_name = "visual.merger"
    projector_prefixes = ("visual.merger.", "model.visual.merger.")
    adapter_prefixes: ClassVar[dict[str, str]] = {
        "model.": "language_model.",
        "model.language_model.": "language_model.",
        "visual.": "visual.",
        "model.visual.": "visual.",
    }

    def __init__(
        self, model: Qwen2_5_VLModel, tokenizer: TextTokenizer, pixels: tuple[int, int] = PROCESSOR_PIXELS
    ) -> None:
        super().__init__(model, tokenizer.id_of("<|endoftext|>"))
        self.tokenizer = tokenizer
        self.pixels = pixels
        tokenizer.expect("<|image_pad|>", [model.config.image_token_id])
        tokenizer.expect("<|im_end|>", [tokenizer.id_of("<|im_end|>")])

    @classmethod
    def from_pretrained(cls, path: str, **options: Any) -> Qwen25VL:
        tokenizer = TextTokenizer.from_pretrained(path, options.get("revision"))
        return cls(load_weights(Qwen2_5_VLModel, path, **options), tokenizer)

    @property
    def text_model(self) -> Any:
        return self.model.language_model

    def prepare_row(self, image: Image.Image, prompt: str, num_crops: int | None = None) -> Row:
        """One turn of the user in the chat format, without the system's; the end of the turn is read."""
        resized = resize_twice(image, self.pixels)
        grid = (resized.height // 14, resized.width // 14)
        # The original strips the whole text, which changes nothing: it begins and ends with special tokens.
        before = self.tokenizer.encode("<|im_start|>user\n<|vision_start|>")
        after = self.tokenizer.encode(f"<|vision_end|>{prompt}<|im_end|>")
        image_id = self.model.config.image_token_id
        ids = torch.tensor([*before, *[image_id] * (grid[0] * grid[1] // 4), *after])
        mask = torch.zeros(len(ids), dtype=torch.bool)
        mask[len(before) : len(ids) - len(after)] = True
        return Row(ids, mask, patchify(resized), grid)

    def embed_images(self, inputs: BackboneInputs) -> Tensor:
        pixels = torch.cat(inputs.pixels)
        return torch.cat(self.model.get_image_features(pixels, self._grids(inputs)).pooler_output)

    def position_ids(self, inputs: BackboneInputs) -> Tensor:
        """(3, B, L): time, row and column."""
        positions, _ = self.model.get_rope_index(
            inputs.input_ids,
            mm_token_type_ids=inputs.image_mask.int(),
            image_grid_thw=self._grids(inputs),
            attention_mask=inputs.attention_mask,
        )
        return positions

    def visual_tokens(
        self, inputs: BackboneInputs, visual: Tensor, embeddings: Tensor, as_coded: bool
    ) -> tuple[Tensor, Tensor | None]:
        """As coded, SkipCA attends to the embeddings of padding: the code compares with the id of the pad token."""
        if not as_coded:
            return super().visual_tokens(inputs, visual, embeddings, as_coded)
        mask = inputs.input_ids == self.pad_token_id
        return embeddings * mask[..., None], mask

    def vision_flops(self, width: int, height: int, num_crops: int | None = None) -> tuple[int, int]:
        for limits in (LOADING_PIXELS, self.pixels):
            width, height = smart_size(width, height, limits)
        config = self.model.config.vision_config
        rows, columns = height // 14, width // 14
        patches, tokens, size = rows * columns, rows * columns // 4, config.hidden_size
        full = sum(index < config.depth for index in config.fullatt_block_indexes)
        window = config.window_size // 14

        def spans(length: int) -> list[int]:
            return [min(window, length - start) for start in range(0, length, window)]

        windows = sum((a * b) ** 2 for a in spans(rows) for b in spans(columns))
        embedding = 2 * patches * config.in_channels * config.temporal_patch_size * config.patch_size**2 * size
        linear = 2 * patches * (4 * size * size + 3 * size * config.intermediate_size)
        attention = 4 * size * (full * patches**2 + (config.depth - full) * windows)
        merger = 2 * tokens * (4 * size) * (4 * size + config.out_hidden_size)
        return embedding + config.depth * linear + attention + merger, tokens

    def _grids(self, inputs: BackboneInputs) -> Tensor:
        return torch.tensor([(1, *size) for size in inputs.image_sizes], device=inputs.input_ids.device)

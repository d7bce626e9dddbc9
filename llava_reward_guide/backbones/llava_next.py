"""LLaVA-NeXT (LLaVA-v1.6) with Vicuna."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionConfig, LlavaNextModel
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, select_best_resolution

from ..images import normalize
from .base import Backbone, BackboneInputs, Row, load_weights
from .cost import clip_flops
from .text import TextTokenizer


def anyres_tiles(image: Image.Image, pinpoints: Sequence[Sequence[int]], side: int) -> Tensor:
    """The views that CLIP sees of an image: the whole of it, then the tiles of the best of several resolutions.

    As `transformers` 4.50 made them, with which the checkpoints were trained: where the padding is odd, a pixel of it
    is lost and the last tile is scaled up to its size. (Releases since pad the image in full.)

    Args:
        image: RGB.
        pinpoints: (height, width) of the resolutions.
        side: of a tile in pixels.

    Returns:
        (1 + tiles, 3, side, side) float32, normalised as for CLIP.
    """
    height, width = select_best_resolution((image.height, image.width), pinpoints)
    if width / image.width < height / image.height:
        size = (width, min(math.ceil(image.height * (width / image.width)), height))
    else:
        size = (min(math.ceil(image.width * (height / image.height)), width), height)
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    padded = Image.new("RGB", (size[0] + 2 * left, size[1] + 2 * top))
    padded.paste(image.resize(size, Image.Resampling.BICUBIC), (left, top))
    tiles = [image.resize((side, side), Image.Resampling.BICUBIC)]
    for y in range(0, padded.height, side):
        for x in range(0, padded.width, side):
            box = (x, y, min(x + side, padded.width), min(y + side, padded.height))
            tiles.append(_shortest_side_and_crop(padded.crop(box), side))
    return torch.stack([normalize(tile) for tile in tiles])


def _shortest_side_and_crop(tile: Image.Image, side: int) -> Image.Image:
    short = min(tile.size)
    if short != side:
        size = (int(side * tile.width / short), int(side * tile.height / short))
        tile = tile.resize(size, Image.Resampling.BICUBIC)
    left, top = (tile.width - side) // 2, (tile.height - side) // 2
    return tile.crop((left, top, left + side, top + side))


class LlavaNext(Backbone):
    """LLaVA-v1.6-vicuna-13b, and its sizes.

    Args:
        model: a `LlavaNextModel`.
        tokenizer: of Llama.
    """

    model_type = "llava_next"
    default_id = "llava-hf/llava-v1.6-vicuna-13b-hf"
    projector_name = "multi_modal_projector"
    projector_prefixes = ("multi_modal_projector.", "model.multi_modal_projector.")
    adapter_prefixes: ClassVar[dict[str, str]] = {
        "language_model.model.": "language_model.",
        "model.language_model.": "language_model.",
        "vision_tower.vision_model.": "vision_tower.",
    }
    supports_skip_ca = False

    def __init__(self, model: LlavaNextModel, tokenizer: TextTokenizer) -> None:
        padding = model.config.text_config.pad_token_id
        super().__init__(model, tokenizer.id_of("</s>") if padding is None else padding)
        self.tokenizer = tokenizer
        tokenizer.expect("<image>", [model.config.image_token_id])

    @classmethod
    def from_pretrained(cls, path: str, **options: Any) -> LlavaNext:
        tokenizer = TextTokenizer.from_pretrained(path, options.get("revision"))
        return cls(load_weights(LlavaNextModel, path, **options), tokenizer)

    @property
    def text_model(self) -> Any:
        return self.model.language_model

    def prepare_row(self, image: Image.Image, prompt: str, num_crops: int | None = None) -> Row:
        """`USER: `, the image and the prompt, then the end of the sequence at once."""
        size = (image.height, image.width)
        config = self.model.config
        pixels = anyres_tiles(image, config.image_grid_pinpoints, config.vision_config.image_size)
        tokens = "<image>" * self.num_image_tokens(*size)
        ids = [self.tokenizer.id_of("<s>"), *self.tokenizer.encode(f"USER: {tokens}\n{prompt}</s>")]
        input_ids = torch.tensor(ids)
        return Row(input_ids, input_ids == config.image_token_id, pixels, size)

    def num_image_tokens(self, height: int, width: int) -> int:
        """Of an image of this size: the whole of it, then its tiles without their padding, each row ended."""
        config = self.model.config
        side = config.vision_config.image_size // config.vision_config.patch_size
        rows, columns = (
            tiles * side
            for tiles in get_anyres_image_grid_shape(
                (height, width), config.image_grid_pinpoints, config.vision_config.image_size
            )
        )
        if width / height > columns / rows:
            rows -= 2 * ((rows - int(round(height * (columns / width), 7))) // 2)
        else:
            columns -= 2 * ((columns - int(round(width * (rows / height), 7))) // 2)
        return side * side + rows * (columns + 1)

    def embed_images(self, inputs: BackboneInputs) -> Tensor:
        pixels = torch.cat(inputs.pixels).to(self.model.dtype)
        sizes = torch.tensor(inputs.image_sizes)
        return torch.cat(self.model.get_image_features(pixels, sizes, return_dict=True).pooler_output)

    def vision_flops(self, width: int, height: int, num_crops: int | None = None) -> tuple[int, int]:
        config = self.model.config
        vision: CLIPVisionConfig = config.vision_config
        rows, columns = get_anyres_image_grid_shape((height, width), config.image_grid_pinpoints, vision.image_size)
        views = 1 + rows * columns
        patches = (vision.image_size // vision.patch_size) ** 2
        size = self.hidden_size
        projector = 2 * views * patches * (vision.hidden_size * size + size * size)
        return views * clip_flops(vision) + projector, self.num_image_tokens(height, width)

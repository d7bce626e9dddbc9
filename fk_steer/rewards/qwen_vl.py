"""Images, tokens and sizes of the models of the Qwen-VL family: Qwen2-VL, Qwen2.5-VL and Qwen3-VL.

Sizes of images: `smart_resize` of QwenLM/Qwen2.5-VL's qwen-vl-utils; patches: transformers' `Qwen2VLImageProcessor`;
sizes of models: config.json of Qwen/Qwen2-VL-7B-Instruct and Qwen/Qwen3-VL-8B-Instruct.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .base import Images
from .images import CLIP_MEAN, CLIP_STD, normalize, resize, to_float, to_pixels
from .loading import RewardLoadError, load_pretrained, read_json


QWEN2_VL_7B: dict[str, Any] = {
    "text_config": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {"depth": 32, "embed_dim": 1280, "num_heads": 16, "hidden_size": 3584},
}

QWEN3_VL_8B: dict[str, Any] = {
    "text_config": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": [24, 20, 20],
            "mrope_interleaved": True,
        },
    },
    "vision_config": {"out_hidden_size": 4096},
}

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
USER, REPLY = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"


def is_third(config: Any) -> bool:
    """Whether a model is a Qwen3-VL: pixels normalised to [-1, 1], and chats without a system message."""
    return str(config.model_type).startswith("qwen3")


def before_image(config: Any) -> str:
    """What a chat begins with up to the tokens of its image, as the models' own templates have it."""
    return ("" if is_third(config) else SYSTEM) + USER + VISION_START


def smart_size(
    height: int, width: int, factor: int, min_pixels: int | None = None, max_pixels: int | None = None
) -> tuple[int, int]:
    """The size nearest to (height, width) in multiples of `factor`, between two numbers of pixels in all.

    Args:
        min_pixels, max_pixels: None for 4 and 16384 squares of `factor`.

    Raises:
        ValueError: for images more than 200 times as long as wide, which the models refuse.
    """
    least = 4 * factor**2 if min_pixels is None else min_pixels
    most = 16384 * factor**2 if max_pixels is None else max_pixels
    if max(height, width) > 200 * min(height, width):
        raise ValueError(f"Expected images at most 200 times as long as wide, but got {height} x {width} pixels.")
    rows, columns = (max(factor, round(length / factor) * factor) for length in (height, width))
    if rows * columns > most:
        scale = math.sqrt(height * width / most)
        rows, columns = (max(factor, math.floor(length / scale / factor) * factor) for length in (height, width))
    elif rows * columns < least:
        scale = math.sqrt(least / (height * width))
        rows, columns = (math.ceil(length * scale / factor) * factor for length in (height, width))
    return rows, columns


def factor_of(config: Any) -> int:
    """What the sides of an image are multiples of: merged patches."""
    return int(config.vision_config.patch_size * config.vision_config.spatial_merge_size)


def image_inputs(
    images: Images,
    config: Any,
    exact: bool,
    device: torch.device,
    dtype: torch.dtype,
    sizes: Sequence[Callable[[int, int], tuple[int, int]]],
) -> tuple[Tensor, Tensor]:
    """What the vision model takes.

    Args:
        images: as for a reward.
        config: of the whole model.
        exact: round to 8 bits, see `images.to_pixels`.
        sizes: height and width -> those to resize to; one resizing after the other.

    Returns:
        Patches of all images (N, channels * temporal * patch * patch) and their numbers (B, 3) in time, height and
        width.
    """
    vision = config.vision_config
    mean, std = ((0.5,) * 3, (0.5,) * 3) if is_third(config) else (CLIP_MEAN, CLIP_STD)
    rows, grids = [], []
    for image in to_pixels(images, device, exact):
        pixels = image[None]
        for size in sizes:
            pixels = resize(pixels, size(*pixels.shape[-2:]))
        rows.append(patches(normalize(to_float(pixels), mean, std)[0], vision).to(dtype))
        grids.append([1, *(length // vision.patch_size for length in pixels.shape[-2:])])
    return torch.cat(rows), torch.tensor(grids, device=device)


def patches(pixels: Tensor, vision: Any) -> Tensor:
    """(3, H, W) as rows of patches, those that are merged next to one another, each repeated over the frames."""
    size, merge = vision.patch_size, vision.spatial_merge_size
    channels, height, width = pixels.shape
    split = pixels.view(channels, height // size // merge, merge, size, width // size // merge, merge, size)
    split = split.permute(1, 4, 2, 5, 0, 3, 6)[:, :, :, :, :, None]
    split = split.expand(-1, -1, -1, -1, -1, vision.temporal_patch_size, -1, -1)
    return split.reshape(-1, channels * vision.temporal_patch_size * size * size)


def with_image_tokens(grids: Tensor, texts: Sequence[tuple[Tensor, Tensor]], config: Any) -> list[Tensor]:
    """Ids of each chat: those before its image, as many image tokens as the image takes, those after it."""
    counts = (grids.prod(1) // config.vision_config.spatial_merge_size**2).tolist()
    return [
        torch.cat([before, before.new_full((count,), config.image_token_id), after])
        for count, (before, after) in zip(counts, texts, strict=True)
    ]


def padded(rows: Sequence[Tensor], side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids (B, L) of rows of several lengths, padded on a side, and their mask (B, L)."""
    pad = nn.utils.rnn.pad_sequence
    ids = pad(list(rows), batch_first=True, padding_side=side)
    mask = pad([torch.ones_like(row) for row in rows], batch_first=True, padding_side=side)
    return ids.to(device), mask.to(device)


def is_image(input_ids: Tensor, mask: Tensor, config: Any) -> Tensor:
    """(B, L), 1 for image tokens: what transformers calls `mm_token_type_ids`."""
    return ((input_ids == config.image_token_id) & mask.bool()).int()


def token_ids(tokenizer: Any, text: str) -> Tensor:
    """The ids (L,) of text in which nothing is a special token, whatever a prompt holds."""
    return torch.tensor(
        tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids, dtype=torch.long
    )


def mark(tokenizer: Any, name: str, reward: str) -> Tensor:
    """The id (1,) of a special token.

    Raises:
        RewardLoadError: if the tokenizer has none of that name.
    """
    index = tokenizer.convert_tokens_to_ids(name)
    if index is None or index == tokenizer.unk_token_id:
        raise RewardLoadError(f"Expected the tokenizer of the reward '{reward}' to be Qwen's, but it lacks {name}.")
    return torch.tensor([index])


def load_tokenizer(path: str, reward: str, revision: str | None = None) -> Any:
    """Qwen's tokenizer from a folder or hub id."""
    from transformers import AutoTokenizer

    return load_pretrained(AutoTokenizer, path, reward, revision=revision, trust_remote_code=False)


def config_for(kind: Any, folder: Path, sizes: Mapping[str, Any], vocabulary: int) -> Any:
    """The configuration of a model.

    Args:
        kind: its class.
        folder: of the weights; a config.json there says of another size than the published one.
        sizes: of the published one.
        vocabulary: rows of the embeddings.
    """
    file = folder / "config.json"
    config = kind.from_dict(read_json(file) if file.exists() else dict(sizes))
    config.text_config.vocab_size = vocabulary
    return config

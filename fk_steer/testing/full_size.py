"""Models of published size with random weights: what a model costs does not depend on what it has learnt."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import BatchEncoding, CLIPConfig, CLIPModel, CLIPTextModel, CLIPTextModelWithProjection

from ..loading import load_guide, load_pipeline
from ..rewards.base import RewardFunction
from ..rewards.clip_flant5 import VIT_L_14_336
from ..rewards.clip_score import CLIPScore
from ..rewards.loading import default_device, empty
from ..shapes import BUNDLED, GUIDANCE_SCALE, NUM_INFERENCE_STEPS
from .pipelines import clip_text_config, clip_tokenizer, quiet, sd_scheduler


UNETS: dict[str, dict[str, Any]] = {
    "sd21": {
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    },
    "sdxl": {
        "sample_size": 128,
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "use_linear_projection": True,
    },
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
# Layers, width and heads of the published text encoders; the vocabulary is the tests' own and small.
TEXT = {
    "sd21": {"num_hidden_layers": 23, "hidden_size": 1024, "num_attention_heads": 16},
    "sdxl": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12},
}
SDXL_SECOND_TEXT = {"num_hidden_layers": 32, "hidden_size": 1280, "num_attention_heads": 20, "projection_dim": 1280}


def random_pipeline(name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Any:
    """SD v2.1 ('sd21') or SDXL ('sdxl') with random weights, never held in float32, and a DDIM scheduler.

    Raises:
        ValueError: for another name.
    """
    if name not in UNETS:
        raise ValueError(f"Unknown full-size model {name!r}. Known: {', '.join(UNETS)}.")

    def make(kind: Any, *config: Any, **options: Any) -> Any:
        return randomize(lambda: kind(*config, **options), torch.device(device), dtype)

    def text(kind: Any, **config: Any) -> Any:
        return make(kind, clip_text_config(intermediate_size=4 * config["hidden_size"], **config))

    parts = {
        "unet": make(UNet2DConditionModel, **UNETS[name]),
        "vae": make(AutoencoderKL, **VAE, sample_size=8 * UNETS[name]["sample_size"]),
        "text_encoder": text(CLIPTextModel, **TEXT[name]),
        "tokenizer": clip_tokenizer(),
        "scheduler": sd_scheduler("v_prediction" if name == "sd21" else "epsilon"),
    }
    if name == "sdxl":
        second = text(CLIPTextModelWithProjection, **SDXL_SECOND_TEXT)
        pipe = StableDiffusionXLPipeline(
            **parts, text_encoder_2=second, tokenizer_2=clip_tokenizer(), add_watermarker=False
        )
    else:
        pipe = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    return quiet(pipe)


def bundled_or_full_size(
    model: str, full_size: str | None, device: torch.device | str | None, steps: int | None, size: int | None
) -> tuple[Any, RewardFunction, dict[str, Any]]:
    """What a measurement of costs is of: a pipeline, its guide and the arguments of a call.

    Args:
        model: name of a bundled pipeline.
        full_size: 'sd21' or 'sdxl' for an architecture of published size with random bfloat16 weights instead, guided
            by a CLIP of ViT-L/14's size.
        steps: None for the bundled models' own number.
        size: height and width in pixels; None for the model's own.

    Raises:
        ValueError: for an unknown model.
    """
    call: dict[str, Any] = {"num_inference_steps": steps or NUM_INFERENCE_STEPS, "guidance_scale": GUIDANCE_SCALE}
    if size is not None:
        call |= {"height": size, "width": size}
    target = default_device(device)
    if full_size is not None:
        return random_pipeline(full_size, target), clip_score(target, torch.bfloat16), call
    if model not in BUNDLED:
        raise ValueError(f"Unknown bundled model {model!r}. Known: {', '.join(BUNDLED)}.")
    pipe = load_pipeline(model, dtype="float32", device=target)
    pipe.set_progress_bar_config(disable=True)
    return pipe, load_guide("clip-score", target, path=model), call


class WordTokenizer:
    """A stand-in: one token a word, which is about what real ones make of such prompts.

    Args:
        vocab_size: number of ids.
        end: whether a text ends with a token of its own.
    """

    unk_token_id = None

    def __init__(self, vocab_size: int, end: bool = True) -> None:
        self.vocab_size, self.end = vocab_size, end

    def __call__(self, text: str | list[str], max_length: int | None = None, **_: Any) -> Any:
        if isinstance(text, str):
            return BatchEncoding({"input_ids": self._ids(text)})
        rows = [self._ids(line) for line in text]
        length = max_length or max(map(len, rows))
        ids = [(row + [0] * length)[:length] for row in rows]
        mask = [([1] * len(row) + [0] * length)[:length] for row in rows]
        return BatchEncoding({"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)})

    def convert_tokens_to_ids(self, name: str) -> int:
        """The id of a word."""
        return self._ids(name)[0]

    def _ids(self, text: str) -> list[int]:
        # The last one is end-of-text, the largest id, which is where CLIP looks.
        words = [1 + zlib.crc32(word.encode()) % (self.vocab_size // 2) for word in text.split()]
        return [*words, self.vocab_size - 1] if self.end else words


def randomize(make: Callable[[], nn.Module], device: torch.device, dtype: torch.dtype) -> Any:
    """`make()` on a device, with weights that keep activations finite."""
    module = empty(make).to(dtype)
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    module.to_empty(device=device)
    # `to_empty` loses what buffers hold.
    for name, buffer in module.named_buffers():
        buffer.copy_(buffers[name])
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.fill_(1.0) if "norm" in name and parameter.ndim == 1 else parameter.normal_(0.0, 0.02)
    return module


def clip_score(device: torch.device, dtype: torch.dtype) -> Any:
    """ViT-L/14."""
    model = randomize(lambda: CLIPModel(vit_l_14()), device, dtype)
    return CLIPScore.from_modules(model, WordTokenizer(49408), device=device, dtype=dtype)


def vit_l_14() -> Any:
    """OpenAI's, as config.json of openai/clip-vit-large-patch14 has it."""
    vision = {**VIT_L_14_336, "image_size": 224, "projection_dim": 768}
    text = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "projection_dim": 768,
        "eos_token_id": 2,
    }
    return CLIPConfig(vision_config=vision, text_config=text, projection_dim=768)

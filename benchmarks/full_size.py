"""Pipelines of published size with random weights: what a model costs does not depend on what it has learnt."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from fk_steer.testing import clip_text_config, clip_tokenizer, quiet, sd_scheduler

from .rewards import randomize


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

"""Tiny pipelines of stock Diffusers classes with random weights, and rewards to steer them with: for tests, of this
package and of plugins, that take seconds on a CPU and need no download."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from .tokenizers import CHARACTERS


PROMPTS = ["a red circle", "two blue squares"]
DIM = 32


@cache
def clip_tokenizer() -> CLIPTokenizer:
    """Byte-level: every character is a token, no merges."""
    words = [*CHARACTERS, *(f"{character}</w>" for character in CHARACTERS), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=32)


@cache
def t5_tokenizer() -> PreTrainedTokenizerFast:
    words = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *" ".join(PROMPTS).split()])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def clip_text_config(**overrides: Any) -> CLIPTextConfig:
    tokenizer = clip_tokenizer()
    config = {
        "vocab_size": len(tokenizer),
        "hidden_size": DIM,
        "intermediate_size": 2 * DIM,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
        "projection_dim": DIM,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
    }
    return CLIPTextConfig(**{**config, **overrides})


def vae(latent_channels: int = 4, **overrides: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=16,
        **overrides,
    )


def unet(cross_attention_dim: int = DIM, **overrides: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=8,
        norm_num_groups=4,
        cross_attention_dim=cross_attention_dim,
        **overrides,
    )


def sd(scheduler: Any = None, prediction_type: str = "v_prediction") -> StableDiffusionPipeline:
    torch.manual_seed(0)
    pipe = StableDiffusionPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(clip_text_config()),
        tokenizer=clip_tokenizer(),
        unet=unet(),
        scheduler=scheduler or sd_scheduler(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return quiet(pipe)


def sd_scheduler(prediction_type: str = "v_prediction", kind: Any = DDIMScheduler, **overrides: Any) -> Any:
    """With the betas of SD v2.1."""
    return kind.from_config(
        {
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
            "skip_prk_steps": True,
            "prediction_type": prediction_type,
            **overrides,
        }
    )


def sdxl(scheduler: Any = None) -> StableDiffusionXLPipeline:
    torch.manual_seed(0)
    pipe = StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(clip_text_config()),
        text_encoder_2=CLIPTextModelWithProjection(clip_text_config()),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet(
            2 * DIM,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 2),
            projection_class_embeddings_input_dim=6 * 8 + DIM,
            use_linear_projection=True,
        ),
        scheduler=scheduler or sd_scheduler("epsilon", EulerDiscreteScheduler),
        add_watermarker=False,
    )
    return quiet(pipe)


def sd3() -> StableDiffusion3Pipeline:
    torch.manual_seed(0)
    pipe = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=1,
            in_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=DIM,
            caption_projection_dim=DIM,
            pooled_projection_dim=2 * DIM,
            out_channels=4,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(shift_factor=0.06),
        text_encoder=CLIPTextModelWithProjection(clip_text_config()),
        tokenizer=clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip_text_config()),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )
    # The two CLIP embeddings side by side are padded to the width of the missing T5.
    pipe.transformer.register_to_config(joint_attention_dim=2 * DIM)
    pipe.transformer.context_embedder = torch.nn.Linear(2 * DIM, DIM)
    return quiet(pipe)


def flux() -> FluxPipeline:
    torch.manual_seed(0)
    pipe = FluxPipeline(
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=DIM,
            pooled_projection_dim=DIM,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(shift_factor=0.06),
        text_encoder=CLIPTextModel(clip_text_config()),
        tokenizer=clip_tokenizer(),
        text_encoder_2=T5EncoderModel(
            T5Config(vocab_size=len(t5_tokenizer()), d_model=DIM, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
        ),
        tokenizer_2=t5_tokenizer(),
    )
    return quiet(pipe)


def save_clip(folder: str | Path) -> str:
    """A tiny CLIP with its tokenizer, saved where `load_reward("clip-score", path=folder)` finds it."""
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=clip_text_config().to_dict(),
        vision_config=CLIPVisionConfig(
            hidden_size=DIM,
            intermediate_size=2 * DIM,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
            projection_dim=DIM,
        ).to_dict(),
        projection_dim=DIM,
    )
    CLIPModel(config).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    return str(folder)


SIZE = {"height": 16, "width": 16}
CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sd": (sd, {**SIZE, "guidance_scale": 5.0}),
    "sdxl": (lambda: sdxl(sd_scheduler("epsilon")), {**SIZE, "guidance_scale": 5.0}),
    "sd3": (sd3, {**SIZE, "guidance_scale": 5.0}),
    "flux": (flux, {**SIZE, "guidance_scale": 3.5, "max_sequence_length": 16}),
}
"""Name -> function that makes the pipeline, arguments of its call."""


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    return pipe


def redness(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """A reward: mean red minus mean blue, scaled so that lambda 10 matters on random pipelines."""
    return 20 * (images[:, 0] - images[:, 2]).mean((1, 2))


def row_generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]

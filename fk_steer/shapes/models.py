"""The bundled models: their shapes before training, and loading them after it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from .tokenizer import MAX_LENGTH
from .world import SIZE


WIDTH = 128
SECOND_WIDTH = 96


def make_clip(tokenizer: CLIPTokenizer, width: int = WIDTH, text_layers: int = 2, vision_layers: int = 3) -> CLIPModel:
    """A CLIP for 64 x 64 images in patches of 8."""
    heads = width // 32
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": text_layers,
        "num_attention_heads": heads,
        "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "projection_dim": width,
    }
    vision = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": vision_layers,
        "num_attention_heads": heads,
        "image_size": SIZE,
        "patch_size": 8,
        "projection_dim": width,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width))


def make_vae() -> AutoencoderKL:
    """A KL autoencoder, 64 x 64 x 3 to 8 x 8 x 4, with half a million weights per side or so."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
    )


def make_tiny() -> AutoencoderTiny:
    """The autoencoder's stand-in for previews, of the kind of TAESD. Its latents are the scaled ones."""
    return AutoencoderTiny(
        encoder_block_out_channels=(16,) * 4,
        decoder_block_out_channels=(16,) * 4,
        num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(2, 2, 1, 1),
    )


def make_unet(**overrides: Any) -> UNet2DConditionModel:
    """A conditional UNet on 8 x 8 latents, with attention at both of its resolutions."""
    config = {
        "sample_size": SIZE // 8,
        "block_out_channels": (64, 128),
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "norm_num_groups": 16,
        "cross_attention_dim": WIDTH,
        "use_linear_projection": True,
    }
    return UNet2DConditionModel(**{**config, **overrides})


def make_scheduler(prediction_type: str = "v_prediction") -> DDIMScheduler:
    """DDIM with the configuration of SD v2.1."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def make_unet_xl() -> UNet2DConditionModel:
    """The SDXL twin's UNet: wider text, pooled text and size conditioning, a little narrower itself."""
    return make_unet(
        block_out_channels=(64, 112),
        cross_attention_dim=WIDTH + SECOND_WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=6 * 32 + SECOND_WIDTH,
    )


def assemble(clip: CLIPModel, tokenizer: CLIPTokenizer, vae: AutoencoderKL, unet: Any) -> StableDiffusionPipeline:
    """The world's Stable Diffusion, of stock classes, with the sampler of SD v2.1."""
    text_encoder = CLIPTextModel(clip.config.text_config)
    _load_exactly(text_encoder, clip.text_model.state_dict())
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def assemble_xl(
    clip: CLIPModel, second: CLIPModel, tokenizer: CLIPTokenizer, vae: AutoencoderKL, unet: Any
) -> StableDiffusionXLPipeline:
    """The world's Stable Diffusion XL, of stock classes, with SDXL's sampler and epsilon prediction."""
    text_encoder = CLIPTextModel(clip.config.text_config)
    _load_exactly(text_encoder, clip.text_model.state_dict())
    text_encoder_2 = CLIPTextModelWithProjection(second.config.text_config)
    weights = {f"text_model.{name}": value for name, value in second.text_model.state_dict().items()}
    _load_exactly(text_encoder_2, {**weights, "text_projection.weight": second.text_projection.weight})
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler.from_config(
            make_scheduler("epsilon").config, timestep_spacing="leading", interpolation_type="linear"
        ),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def _load_exactly(module: Any, weights: dict[str, Any]) -> None:
    weights = {name: value for name, value in weights.items() if not name.endswith("position_ids")}
    module.load_state_dict(weights)


def save_half(model: Any, folder: Path) -> None:
    """Save a pipeline or model in float16, such that plain `from_pretrained` loads it in float32.

    Diffusers does so by itself; transformers goes by the dtype that the config names, whatever the file holds.
    """
    model.to(torch.float16).save_pretrained(folder)
    _say_full_precision(folder)


def copy_half(source: Path, folder: Path) -> None:
    """Copy the safetensors and JSON files below a folder, tensors in float16; see `save_half`."""
    for path in sorted(source.rglob("*")):
        target = folder / path.relative_to(source)
        if path.suffix not in (".safetensors", ".json"):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            shutil.copy(path, target)
        else:
            halves = {name: tensor.half() for name, tensor in load_file(path).items()}
            save_file(halves, target, metadata={"format": "pt"})
    _say_full_precision(folder)


def _say_full_precision(folder: Path) -> None:
    for path in folder.rglob("config.json"):
        config = json.loads(path.read_text())
        if config.get("dtype") == "float16":
            config["dtype"] = "float32"
        # Where the model lay when it was trained concerns nobody else.
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2) + "\n")

"""Two steered steps of an SD v2.1 or SDXL UNet of published size, random weights; prints size and peak memory.

python tests/diffusion/full_size.py sd21
"""

from __future__ import annotations

import json
import resource
import sys

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from fk_steer import FKSteering, steer
from fk_steer.testing import PROMPTS, clip_text_config, clip_tokenizer, quiet, redness, sd_scheduler, vae


SD21_UNET = {
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
SDXL_UNET = {
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
}


def random_unet(config: dict):
    """A UNet of published size with small random bfloat16 weights, never held in float32."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=16, **config).to(torch.bfloat16)
    unet = unet.to_empty(device="cpu")
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return unet


def run(name: str) -> None:
    """Two steered steps of a full-size UNet; prints its parameters and the process's peak memory as JSON."""
    torch.manual_seed(0)
    config = SD21_UNET if name == "sd21" else SDXL_UNET
    unet = random_unet(config)
    common = {"vae": vae(), "unet": unet, "scheduler": sd_scheduler("v_prediction" if name == "sd21" else "epsilon")}
    if name == "sd21":
        text = CLIPTextModel(clip_text_config(hidden_size=1024))
        pipe = StableDiffusionPipeline(
            text_encoder=text, tokenizer=clip_tokenizer(), safety_checker=None, feature_extractor=None,
            requires_safety_checker=False, **common,
        )  # fmt: skip
    else:
        pipe = StableDiffusionXLPipeline(
            text_encoder=CLIPTextModel(clip_text_config(hidden_size=768)),
            text_encoder_2=CLIPTextModelWithProjection(clip_text_config(hidden_size=1280, projection_dim=1280)),
            tokenizer=clip_tokenizer(), tokenizer_2=clip_tokenizer(), add_watermarker=False, **common,
        )  # fmt: skip
    pipe = quiet(pipe).to(torch.bfloat16)
    settings = FKSteering(num_particles=2, lmbda=1.0, schedule=(0,), ess_threshold=1.0, denoise_batch_size=2)
    output = steer(pipe, redness, settings)(PROMPTS[0], num_inference_steps=2, height=32, width=32)
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    gibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        json.dumps({"parameters": parameters, "gibibytes": gibibytes, "finite": bool(output.rewards.isfinite().all())})
    )


if __name__ == "__main__":
    run(sys.argv[1])

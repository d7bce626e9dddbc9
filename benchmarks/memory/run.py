"""Weights of the pipelines and rewards at published size, counted on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    FluxTransformer2DModel,
    UNet2DConditionModel,
    WanTransformer3DModel,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from fk_steer.files import write_atomically, write_json
from fk_steer.loading import quiet_libraries
from fk_steer.testing.full_size import TEXT, UNETS, VAE


BYTES = 2
"""Of a weight in float16 or bfloat16."""

XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu"}
CLIP_L = {"intermediate_size": 3072, **TEXT["sdxl"]}
OPENCLIP_H = {"intermediate_size": 4096, "projection_dim": 1024, **TEXT["sd21"]}
OPENCLIP_BIG_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}


def clip(kind: Any, **config: Any) -> Callable[[], nn.Module]:
    return lambda: kind(CLIPTextConfig(**config))


PARTS: dict[str, dict[str, Callable[[], nn.Module]]] = {
    "Stable Diffusion 2.1": {
        "denoiser": lambda: UNet2DConditionModel(**UNETS["sd21"]),
        "OpenCLIP-H text encoder": clip(CLIPTextModel, **OPENCLIP_H),
        "VAE": lambda: AutoencoderKL(**VAE),
    },
    "SDXL": {
        "denoiser": lambda: UNet2DConditionModel(**UNETS["sdxl"]),
        "CLIP-L text encoder": clip(CLIPTextModel, **CLIP_L),
        "OpenCLIP-bigG text encoder": clip(CLIPTextModelWithProjection, **OPENCLIP_BIG_G),
        "VAE": lambda: AutoencoderKL(**VAE),
    },
    "Flux.1-dev": {
        "denoiser": lambda: FluxTransformer2DModel(guidance_embeds=True),
        "CLIP-L text encoder": clip(CLIPTextModel, **CLIP_L),
        "T5-XXL text encoder": lambda: T5EncoderModel(T5Config(**XXL)),
        "VAE": lambda: AutoencoderKL(**{**VAE, "latent_channels": 16}),
    },
    "Wan 2.1, 1.3B": {
        "denoiser": lambda: WanTransformer3DModel(num_attention_heads=12, num_layers=30, ffn_dim=8960),
        "UMT5-XXL text encoder": lambda: UMT5EncoderModel(UMT5Config(vocab_size=256384, **XXL)),
        "VAE": AutoencoderKLWan,
    },
    "Wan 2.1, 14B": {
        "denoiser": WanTransformer3DModel,
        "UMT5-XXL text encoder": lambda: UMT5EncoderModel(UMT5Config(vocab_size=256384, **XXL)),
        "VAE": AutoencoderKLWan,
    },
}
"""Model -> component -> what makes it."""


def weights(make: Callable[[], nn.Module]) -> int:
    """How many a model has, none of which is allocated."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in make().parameters())


def table(counts: dict[str, dict[str, int]]) -> str:
    """Markdown: gigabytes (10^9 bytes) of each model in 16 bits, in all and by component."""
    lines = ["| model | 16-bit weights, GB | of these |", "|---|---:|---|"]
    for name, parts in counts.items():
        shares = ", ".join(f"{part} {count * BYTES / 1e9:.1f}" for part, count in parts.items())
        lines.append(f"| {name} | {sum(parts.values()) * BYTES / 1e9:.1f} | {shares} |")
    return "\n".join(lines) + "\n"


def main(
    out: Annotated[
        Path | None,
        typer.Option(help="Write a JSON and a Markdown file of this name, without suffix.", show_default="none"),
    ] = None,
) -> None:
    """Count the weights of the published architectures."""
    quiet_libraries()
    counts = {name: {part: weights(make) for part, make in parts.items()} for name, parts in PARTS.items()}
    typer.echo(table(counts), nl=False)
    if out is not None:
        write_json(out.with_suffix(".json"), counts)
        write_atomically(out.with_suffix(".md"), table(counts).encode())


if __name__ == "__main__":
    typer.run(main)

"""Train the world's preview decoder: an AutoencoderTiny that does as the autoencoder does, at a fraction of the cost.

    python -m fk_steer.shapes.train_tiny --vae runs/vae/model --out runs/preview

It learns from latents of scenes and, because x0 predictions early in the loop are blends of what the image may become,
from blends of several scenes' latents with some noise on them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from diffusers import AutoencoderKL
from torch import Tensor

from .models import make_tiny
from .train_vae import scenes_at
from .training import train


def main(
    out: Annotated[Path, typer.Option(help="Write the run to this folder; the model lands in OUT/model.")],
    vae: Annotated[Path, typer.Option(help="Load this trained autoencoder to learn from.")],
    steps: Annotated[int, typer.Option(min=1, help="Train for this many steps.")] = 4000,
    batch_size: Annotated[int, typer.Option(min=2, help="Take this many images for a step.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Train at this learning rate.")] = 2e-3,
    seed: Annotated[int, typer.Option(help="Draw everything from this seed.")] = 0,
) -> None:
    """Train the preview decoder."""
    torch.manual_seed(seed)
    teacher = AutoencoderKL.from_pretrained(vae).requires_grad_(False)
    tiny = make_tiny()
    scale = teacher.config.scaling_factor

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        pixels = scenes_at(seed, step, batch_size)
        latents = teacher.encode(pixels).latent_dist.mean * scale
        encoding = F.l1_loss(tiny.encode(pixels).latents, latents)
        share = torch.rand(batch_size, 1, 1, 1) * (torch.rand(batch_size, 1, 1, 1) < 0.7)
        latents = torch.lerp(latents, latents.flip(0), share)
        latents = latents + 0.3 * torch.rand(batch_size, 1, 1, 1).square() * torch.randn_like(latents)
        target = teacher.decode(latents / scale).sample.clamp(-1, 1)
        decoding = F.l1_loss(tiny.decode(latents).sample, target)
        return decoding + 0.1 * encoding, {"decoding": decoding.item(), "encoding": encoding.item()}

    train(
        tiny,
        loss_at,
        steps=steps,
        learning_rate=learning_rate,
        out=out,
        weight_decay=0.0,
        ema=0.998,
        warmup=min(100, steps // 10),
        seed=seed,
    )
    tiny.save_pretrained(out / "model")


if __name__ == "__main__":
    typer.run(main)

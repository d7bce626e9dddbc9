"""Train the world's autoencoder.

    python -m fk_steer.shapes.train_vae --out runs/vae

Loss: absolute and squared error, both heavier on objects than on background, the same on differences of neighbouring
pixels, and a light KL term.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from .captions import sample_pair
from .models import make_vae
from .train_clip import pixels_of
from .training import train
from .world import render


KL_WEIGHT = 1e-5


def scenes_at(seed: int, step: int, size: int) -> Tensor:
    """Images (size, 3, 64, 64) in [-1, 1] of a training step."""
    rng = np.random.default_rng([seed, step])
    return 2 * pixels_of([render(sample_pair(rng)[0]) for _ in range(size)]) - 1


def reconstruction_loss(reconstruction: Tensor, pixels: Tensor) -> Tensor:
    """Weighted L1 + L2 + L1 of gradients; images (B, 3, H, W) in [-1, 1]."""
    background = pixels.flatten(2).median(2).values[:, :, None, None]
    weight = 1 + 4 * ((pixels - background).abs().amax(1, keepdim=True) > 0.15).float()
    error = reconstruction - pixels
    loss = (weight * (error.abs() + error.square())).mean()
    for dim in (2, 3):
        loss = loss + error.diff(dim=dim).abs().mean()
    return loss


def main(
    out: Annotated[Path, typer.Option(help="Write the run to this folder; the model lands in OUT/model.")],
    steps: Annotated[int, typer.Option(min=1, help="Train for this many steps.")] = 12_000,
    batch_size: Annotated[int, typer.Option(min=1, help="Take this many images for a step.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Train at this learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Draw everything from this seed.")] = 0,
) -> None:
    """Train the autoencoder and set its scaling factor to one over the spread of its latents."""
    torch.manual_seed(seed)
    vae = make_vae()

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        pixels = scenes_at(seed, step, batch_size)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            reconstruction = vae.decode(posterior.sample()).sample
        loss = reconstruction_loss(reconstruction.float(), pixels)
        kl = posterior.kl().float().mean()
        return loss + KL_WEIGHT * kl, {"reconstruction": loss.item(), "kl": kl.item()}

    train(
        vae,
        loss_at,
        steps=steps,
        learning_rate=learning_rate,
        out=out,
        weight_decay=0.0,
        ema=0.999,
        warmup=min(100, steps // 10),
        seed=seed,
    )
    with torch.no_grad():
        latents = torch.cat([vae.encode(scenes_at(seed, steps + i, 64)).latent_dist.mean for i in range(8)])
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    vae.save_pretrained(out / "model")


if __name__ == "__main__":
    typer.run(main)

"""How good the parts of the world are, on scenes that no training saw.

python -m fk_steer.shapes.evaluate
python -m fk_steer.shapes.evaluate --clip runs/clip/model --vae runs/vae/model
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL

from ..console import console
from ..loading import quiet_libraries
from ..rewards.clip_score import CLIPScore
from ..rewards.images import to_uint8
from . import WEIGHTS
from .captions import TASKS, detections_of, is_true, parse, sample_pair
from .detector import detect
from .train_clip import edit, pixels_of
from .world import render


Objects = Counter[tuple[str, str | None]]


def main(
    clip: Annotated[Path, typer.Option(help="Test this CLIP.")] = WEIGHTS / "guide",
    vae: Annotated[Path, typer.Option(help="Test this autoencoder.")] = WEIGHTS / "sd" / "vae",
    scenes: Annotated[int, typer.Option(min=1, help="Draw this many scenes to test on.")] = 2000,
    seed: Annotated[int, typer.Option(help="Draw everything from this seed.")] = 20_000_000,
) -> None:
    """Print the detector's accuracy, how many scenes survive the autoencoder, and how CLIP tells captions apart."""
    quiet_libraries()
    rng = np.random.default_rng(seed)
    pairs = [sample_pair(rng) for _ in range(scenes)]
    pixels = pixels_of([render(scene) for scene, _ in pairs])
    truth: list[Objects] = [Counter((item.name, item.colour) for item in scene.objects) for scene, _ in pairs]

    found = [_objects(image) for image in to_uint8(pixels, "cpu")]
    right, objects = sum((a & b).total() for a, b in zip(truth, found)), sum(a.total() for a in truth)
    console.print(f"detector: {right} of {objects} objects right ({100 * right / objects:.2f}%)", highlight=False)

    autoencoder = AutoencoderKL.from_pretrained(vae)
    with torch.no_grad():
        latents = [autoencoder.encode(2 * part - 1).latent_dist.mean for part in pixels.split(100)]
        images = torch.cat([autoencoder.decode(part).sample / 2 + 0.5 for part in latents]).clamp(0, 1)
    exact = sum(_objects(image) == objects for image, objects in zip(to_uint8(images, "cpu"), truth))
    psnr = -10 * (images - pixels).square().mean().log10().item()
    console.print(f"autoencoder: {100 * exact / scenes:.1f}% of scenes exact after it, {psnr:.1f} dB", highlight=False)

    reward = CLIPScore(path=str(clip))
    told_apart: dict[str, list[bool]] = {task: [] for task in TASKS}
    for (scene, text), image in zip(pairs, pixels):
        line = parse(text)
        edited = edit(line, rng)
        if not is_true(edited, detections_of(scene)):
            own, other = reward(image[None].repeat(2, 1, 1, 1), [text, edited["prompt"]]).tolist()
            told_apart[line["tag"]].append(own > other)
    console.print("CLIP prefers the true caption to an edited one:", highlight=False)
    for task, results in told_apart.items():
        console.print(f"    {task}: {100 * np.mean(results):.1f}% of {len(results)}", highlight=False)


def _objects(pixels: torch.Tensor) -> Objects:
    """Shape and colour of what the detector finds in an image (3, H, W) uint8."""
    detections = detect(pixels.permute(1, 2, 0).numpy())
    return Counter((name, detection.colour) for name, some in detections.items() for detection in some)


if __name__ == "__main__":
    typer.run(main)

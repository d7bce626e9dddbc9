"""Train the world's CLIP: contrastive, with edited captions as hard negatives.

    python -m fk_steer.shapes.train_clip --out runs/clip

Every image meets the batch's captions and edited versions of its own (a colour, shape or count changed, colours
swapped, a relation turned round); captions that happen to be true of it are not counted against it. Images are blurred
and noised at random, so that x0 predictions can be judged too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from PIL import Image
from torch import Tensor

from ..rewards.images import CLIP_MEAN, CLIP_STD
from .captions import (
    CONVERSE,
    NUMBERS,
    RELATIONS,
    Mention,
    detections_of,
    is_held_out,
    is_true,
    metadata,
    parse,
    sample_pair,
)
from .models import SECOND_WIDTH, make_clip
from .tokenizer import MAX_LENGTH, make_tokenizer
from .training import train
from .world import COLOURS, SHAPES, Scene, render


EDITS = 2


def edit(line: dict[str, Any], rng: np.random.Generator, everything: bool = False) -> dict[str, Any]:
    """A caption's metadata with one thing changed. It may happen to be true as well; callers check.

    Unless `everything` is drawn, it is never a held-out caption: no training image is one, so a model would learn that
    they are always wrong.
    """
    while is_held_out(edited := _edit(line, rng)) and not everything:
        pass
    return edited


def _edit(line: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    mentions = [Mention(entry["class"], entry.get("color"), entry["count"]) for entry in line["include"]]
    relation = next((entry["position"][0] for entry in line["include"] if "position" in entry), None)
    if relation is not None:
        mentions.reverse()  # the reference object comes first in the metadata, last in the caption
    first, second = mentions[0], mentions[1] if len(mentions) > 1 else None

    def other(options: Any, present: Any) -> Any:
        options = [option for option in options if option != present]
        return options[rng.integers(len(options))]

    edits = ["shape"]
    if first.colour is not None:
        edits += ["colour"] * 2
    if first.count > 1:
        edits += ["count"] * 3
    if relation is not None:
        edits += ["turn"] * 2 + ["relation"]
    if second is not None and None not in (first.colour, second.colour) and first.colour != second.colour:
        edits += ["swap"] * 4
    kind = edits[rng.integers(len(edits))]
    if kind == "count":
        first = Mention(first.shape, first.colour, other(NUMBERS, first.count))
    elif kind == "turn":
        relation = CONVERSE[str(relation)]
    elif kind == "relation":
        relation = other(RELATIONS, relation)
    elif kind == "swap":
        assert second is not None
        first, second = Mention(first.shape, second.colour), Mention(second.shape, first.colour)
    elif second is not None and rng.random() < 0.5:
        second = _changed(second, kind, other)
    else:
        first = _changed(first, kind, other)
    return metadata(line["tag"], first, second, relation)


def _changed(mention: Mention, kind: str, other: Any) -> Mention:
    if kind == "colour":
        return Mention(mention.shape, other(COLOURS, mention.colour), mention.count)
    return Mention(other(SHAPES, mention.shape), mention.colour, mention.count)


def pixels_of(images: list[Image.Image]) -> Tensor:
    """RGB images of one size as (B, 3, H, W) float32 in [0, 1]."""
    array = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255


def augment(pixels: Tensor) -> Tensor:
    """Blur half of the images, by up to 2.5 pixels, and add noise to half, by up to 0.08."""
    sigma = torch.rand(len(pixels)) * 2.5
    offsets = torch.arange(-6, 7)
    kernel = torch.exp(-offsets.square() / (2 * sigma.clamp(min=0.1)[:, None] ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)[:, None]
    flat = F.pad(pixels.flatten(0, 1)[None], (6, 6, 6, 6), mode="reflect")
    groups = flat.shape[1]
    blurred = F.conv2d(F.conv2d(flat, kernel[:, :, None], groups=groups), kernel[..., None], groups=groups)
    blurred = blurred[0].unflatten(0, (-1, 3))
    pixels = torch.where((torch.rand(len(pixels)) < 0.5)[:, None, None, None], blurred, pixels)
    strength = 0.08 * torch.rand(len(pixels)) * (torch.rand(len(pixels)) < 0.5)
    return (pixels + strength[:, None, None, None] * torch.randn_like(pixels)).clamp(0, 1)


def batch(
    rng: np.random.Generator, size: int, everything: bool = False
) -> tuple[list[Scene], list[dict[str, Any]], Tensor]:
    """Scenes, captions (their own, then `EDITS` edited ones for each), and (scenes, captions) which are true."""
    pairs = [sample_pair(rng, everything) for _ in range(size)]
    own = [parse(text) for _, text in pairs]
    lines = own + [edit(line, rng, everything) for _ in range(EDITS) for line in own]
    found = [detections_of(scene) for scene, _ in pairs]
    true = torch.tensor([[is_true(line, detections) for line in lines] for detections in found])
    return [scene for scene, _ in pairs], lines, true


def main(
    out: Annotated[Path, typer.Option(help="Write the run to this folder; the model lands in OUT/model.")],
    steps: Annotated[int, typer.Option(min=1, help="Train for this many steps.")] = 5000,
    batch_size: Annotated[int, typer.Option(min=2, help="Take this many images for a step.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="Train at this learning rate.")] = 1e-3,
    second: Annotated[bool, typer.Option(help="Train the narrower second CLIP instead.")] = False,
    everything: Annotated[
        bool, typer.Option(help="Show held-out combinations too: for a CLIP that judges, not for a text encoder.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Draw everything from this seed.")] = 0,
) -> None:
    """Train a CLIP on the world."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    model = make_clip(tokenizer, SECOND_WIDTH, 3, 3) if second else make_clip(tokenizer)
    mean, std = (torch.tensor(value)[:, None, None] for value in (CLIP_MEAN, CLIP_STD))

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        scenes, lines, true = batch(np.random.default_rng([seed, step]), batch_size, everything)
        texts = [line["prompt"] for line in lines]
        tokens = tokenizer(texts, padding="max_length", max_length=MAX_LENGTH, return_tensors="pt")
        pixels = (augment(pixels_of([render(scene) for scene in scenes])) - mean) / std
        images = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=1)
        captions = F.normalize(model.get_text_features(**tokens).pooler_output, dim=1)
        logits = model.logit_scale.exp().clamp(max=100) * images @ captions.T
        own = torch.arange(batch_size)
        others_true = true.clone()
        others_true[own, own] = False
        masked = logits.masked_fill(others_true, -torch.inf)
        by_image = F.cross_entropy(masked, own)
        by_caption = F.cross_entropy(masked[:, :batch_size].T, own)
        edited = torch.stack([logits[own, own + (k + 1) * batch_size] for k in range(EDITS)], dim=1)
        wrong = ~torch.stack([true[own, own + (k + 1) * batch_size] for k in range(EDITS)], dim=1)
        right = (logits[own, own][:, None] > edited)[wrong].float().mean()
        return (by_image + by_caption) / 2, {"edits told apart": right.item()}

    train(
        model,
        loss_at,
        steps=steps,
        learning_rate=learning_rate,
        out=out,
        weight_decay=0.05,
        warmup=min(200, steps // 10),
        seed=seed,
    )
    model.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")


if __name__ == "__main__":
    typer.run(main)

"""Pretrain the world's multimodal LLM: which captions are true of an image.

    torchrun --nproc-per-node 2 -m fk_steer.shapes.train_llava --preferences runs/preferences --out runs/llava

Half of the images are renders, the others samples and x0 predictions of the tiny pipeline, those of the training split
of `preferences`; the truth about these is what the exact detector finds. Every image meets `CAPTIONS` captions: true
ones of everything in it, and edited ones as hard negatives. They share one pass over the visual tokens, as each attends
to the image and to itself alone. The vision tower learns besides which shape and colour lies under each of its patches,
and the text model to say the true captions word by word. Renders are blurred and noised at random; held-out
combinations are among them (see `captions`).

What comes out is the backbone alone. The linear readout it is trained through is left behind: rewards bring their own
(`llava_reward_guide`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from PIL import Image, ImageDraw
from torch import Tensor, nn
from transformers import CLIPModel

from llava_reward_guide.backbones.phi3v import Phi3V
from llava_reward_guide.untrained import save_backbone

from ..evaluation.geneval.rules import Detection, evaluate
from ..rewards.images import normalize
from . import WEIGHTS
from .captions import RELATIONS, Mention, detections_of, metadata, parse, sample_pair
from .detector import by_shape, components
from .llava import make_backbone
from .train_clip import augment, edit, pixels_of
from .training import join_processes, train
from .world import COLOURS, SHAPES, SIZE, Scene, corners_of, render, sample_scene


CAPTIONS = 8
PARTIAL = 0.5
"""Label of a caption all of whose conditions are nearly met; one that is met in no part has 0, a true one 1."""

PATCH = 8


def label(line: dict[str, Any], detections: dict[str, list[Detection]]) -> float:
    """How true a caption is of what a detector found: 1 if it is, else `PARTIAL` of the mean degree of its
    conditions."""
    verdict = evaluate(line, detections)
    degrees = [condition.degree for condition in verdict.conditions]
    return 1.0 if verdict.correct else PARTIAL * sum(degrees) / len(degrees)


def sample_any(rng: np.random.Generator) -> Scene:
    """What no caption asked for: up to four objects, of few kinds, so that some are alike."""
    kinds = [(str(rng.choice(SHAPES)), str(rng.choice(list(COLOURS)))) for _ in range(rng.integers(1, 4))]
    if rng.random() < 0.5:
        kinds += [(kinds[0][0], str(rng.choice(list(COLOURS))))]
    return sample_scene(rng, [kinds[rng.integers(len(kinds))] for _ in range(rng.integers(1, 5))])


def describe(rng: np.random.Generator, detections: dict[str, list[Detection]]) -> dict[str, Any]:
    """A caption made of detected objects, which need not be true: relations and numbers are drawn."""
    objects = [(shape, found.colour) for shape, several in detections.items() for found in several]
    shape, colour = objects[rng.integers(len(objects))]
    others = [kind for kind in objects if kind[0] != shape]
    kind = rng.random()
    if others and kind < 0.7:
        other, other_colour = others[rng.integers(len(others))]
        if kind < 0.2:
            return metadata("two_object", Mention(shape), Mention(other))
        if kind < 0.45:
            return metadata("color_attr", Mention(shape, colour), Mention(other, other_colour))
        return metadata("position", Mention(shape), Mention(other), str(rng.choice(list(RELATIONS))))
    if kind < 0.85:
        number = len(detections[shape]) if rng.random() < 0.6 else int(rng.integers(2, 5))
        return metadata("counting", Mention(shape, count=min(max(number, 2), 4)))
    if kind < 0.92:
        return metadata("single_object", Mention(shape))
    return metadata("colors", Mention(shape, colour))


def captions_of(
    rng: np.random.Generator, detections: dict[str, list[Detection]], own: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """`CAPTIONS` captions to judge an image by: its own, if any, descriptions of what it shows, and edits of both."""
    lines = [] if own is None else [own]
    while len(lines) < CAPTIONS // 2:
        lines.append(describe(rng, detections) if detections else own or parse(f"a photo of a {rng.choice(SHAPES)}"))
    return lines + [edit(line, rng, everything=True) for line in lines]


def patch_labels(canvas: np.ndarray, kinds: Sequence[tuple[str | None, str]]) -> np.ndarray:
    """(patches, 2) long: shape and colour that cover each patch most, counted from 1; 0 where less than a quarter is
    covered, and for the shape of what is none.

    Args:
        canvas: (H, W), number of the object at each pixel, counted from 1; 0 is the background.
        kinds: shape (None if it cannot be told) and colour of the objects.
    """
    side = SIZE // PATCH
    cells = canvas.reshape(side, PATCH, side, PATCH).swapaxes(1, 2).reshape(side * side, -1)
    cover = np.stack([(cells == index).mean(1) for index in range(len(kinds) + 1)], axis=1)
    cover[:, 0] = 0.25
    numbers = [(SHAPES.index(s) + 1 if s else 0, list(COLOURS).index(c) + 1) for s, c in kinds]
    return np.array([(0, 0), *numbers])[cover.argmax(1)]


def patches_of(scene: Scene) -> np.ndarray:
    """`patch_labels` of a render."""
    canvas = Image.new("L", (SIZE, SIZE))
    draw = ImageDraw.Draw(canvas)
    for index, item in enumerate(scene.objects, start=1):
        draw.polygon([(float(x), float(y)) for x, y in corners_of(item)], fill=index)
    return patch_labels(np.asarray(canvas), [(item.name, item.colour) for item in scene.objects])


class Pictures:
    """Samples and x0 predictions of the training split of `preferences`, and what the detector says of them.

    Args:
        folder: made by `preferences`.
        part: of all pictures, such as `slice(1, None, 2)`.
    """

    def __init__(self, folder: Path, part: slice) -> None:
        records = sorted((folder / "records" / "train").glob("*.json"))
        pictures = [picture for record in records for group in json.loads(record.read_text()) for picture in group]
        pictures = [picture for picture in pictures if picture["kind"] != "artefact"][part]
        self.prompts = [picture["prompt"] for picture in pictures]
        self.images = [Image.open(folder / picture["path"]).convert("RGB") for picture in pictures]
        self.detections, self.patches = zip(*map(self._see, self.images))

    @staticmethod
    def _see(image: Image.Image) -> tuple[dict[str, list[Detection]], np.ndarray]:
        found = components(np.asarray(image))
        canvas = np.zeros((SIZE, SIZE), int)
        for index, item in enumerate(found, start=1):
            canvas[item.mask] = index
        kinds = [(item.shape if item.score >= 0.5 else None, item.colour) for item in found]
        return by_shape(found), patch_labels(canvas, kinds)


class Examples:
    """Batches of this process's share: half renders, half pictures of the training split of `preferences`.

    Args:
        preferences: folder of the preferences.
        seed: what a batch holds follows from it, the step and the process.
    """

    def __init__(self, preferences: Path, seed: int) -> None:
        self.seed = seed
        self.process, self.processes = join_processes()
        self.pictures = Pictures(preferences, slice(self.process, None, self.processes))

    def __call__(self, step: int, size: int) -> tuple[Tensor, list[list[dict[str, Any]]], Tensor, Tensor]:
        """Images (B, 3, H, W) in [0, 1], renders first; metadata of `CAPTIONS` captions of each; their labels (B, C);
        labels of their patches (B, patches, 2). `size` is that of all processes together."""
        rng = np.random.default_rng([self.seed, step, self.process])
        own = size // self.processes
        pairs = [sample_pair(rng, everything=True) for _ in range(own // 2)]
        # Half of the renders are not of their caption's making.
        scenes = [sample_any(rng) if rng.random() < 0.5 else scene for scene, _ in pairs]
        pictures = self.pictures
        chosen = rng.integers(len(pictures.images), size=own - len(scenes))
        found = [detections_of(scene) for scene in scenes] + [pictures.detections[index] for index in chosen]
        texts = [text for _, text in pairs] + [pictures.prompts[index] for index in chosen]
        lines = [captions_of(rng, some, parse(text)) for some, text in zip(found, texts)]
        labels = torch.tensor([[label(line, some) for line in several] for some, several in zip(found, lines)])
        kinds = np.stack([patches_of(scene) for scene in scenes] + [pictures.patches[index] for index in chosen])
        images = [pictures.images[index] for index in chosen]
        drawn = augment(pixels_of([render(scene) for scene in scenes]))
        return torch.cat([drawn, pixels_of(images)]), lines, labels, torch.from_numpy(kinds)


def told_right(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Share of captions (B, C) told true or not, of renders and of samples."""
    right = ((logits > 0) == (labels == 1)).float()
    renders = len(right) // 2
    return {"told right": right[:renders].mean().item(), "told right on samples": right[renders:].mean().item()}


class Reader(nn.Module):
    """The backbone with what it is pretrained through: a readout at the end of a caption, and one at each patch."""

    def __init__(self, backbone: Phi3V) -> None:
        super().__init__()
        self.model = backbone.model
        self.readout = nn.Linear(backbone.hidden_size, 1)
        width = self.model.config.vision_config.hidden_size
        self.patches = nn.Linear(width, len(SHAPES) + 1 + len(COLOURS) + 1)
        bos, tokenizer = self.model.config.bos_token_id, backbone.tokenizer
        self.before = [bos, *tokenizer.encode("<|user|>\n")]
        self.encode = lambda prompt: [bos, *tokenizer.encode(f"\n{prompt}<|endoftext|>")]
        self.pad = backbone.pad_token_id

    def forward(self, pixels: Tensor, prompts: list[list[str]]) -> tuple[Tensor, Tensor, Tensor]:
        """Of images (B, 3, H, W), normalised, with C captions each: logits (B, C) of these being true; losses (B, C) of
        their words; logits (B, patches, kinds) of the patches."""
        embedding = self.model.vision_embed_tokens
        features = embedding.features(pixels)
        visual = embedding.img_projection(torch.stack([embedding.merge(image[None], (1, 1)) for image in features]))
        ids = [[self.encode(prompt) for prompt in several] for several in prompts]
        number, length = len(ids[0]), max(len(caption) for several in ids for caption in several)
        padded = torch.tensor([[row + [self.pad] * (length - len(row)) for row in several] for several in ids])
        ends = torch.tensor([[len(row) - 1 for row in several] for several in ids])
        before = torch.tensor(self.before).expand(len(pixels), -1)
        embed = self.model.embed_tokens
        states = torch.cat([embed(before), visual, embed(padded.flatten(1))], dim=1)
        prefix = before.shape[1] + visual.shape[1]
        positions = torch.cat([torch.arange(prefix), prefix + torch.arange(length).repeat(number)])
        # Which caption a token is in; the prefix is in all of them.
        caption = torch.cat([torch.full((prefix,), -1), torch.arange(number).repeat_interleave(length)])
        order = torch.arange(len(positions))
        mask = (order[None] <= order[:, None]) & ((caption[None] == caption[:, None]) | (caption[None] == -1))
        hidden = self.model(
            inputs_embeds=states,
            attention_mask=mask.expand(len(pixels), 1, -1, -1),
            position_ids=positions.expand(len(pixels), -1),
            use_cache=False,
        ).last_hidden_state
        at_end = prefix + length * torch.arange(number) + ends
        read = hidden.gather(1, at_end[..., None].expand(-1, -1, hidden.shape[-1]))
        captions = hidden[:, prefix:].unflatten(1, (number, length))
        words = F.cross_entropy(
            (captions[:, :, :-1] @ embed.weight.T).flatten(0, 2), padded[:, :, 1:].flatten(), reduction="none"
        ).view(len(pixels), number, length - 1)
        said = torch.arange(length - 1) < ends[..., None]
        words = (words * said).sum(-1) / ends
        # Back from 2 x 2 blocks to rows of patches.
        side = features.shape[1]
        patches = features.view(-1, side, side, 2, 2, features.shape[-1] // 4).transpose(2, 3)
        return self.readout(read).squeeze(-1), words, self.patches(patches.flatten(1, 4))


def main(
    preferences: Annotated[
        Path, typer.Option(help="Read preferences from this folder, which fk_steer.shapes.preferences has made.")
    ],
    out: Annotated[Path, typer.Option(help="Write the run to this folder; the backbone lands in OUT/backbone.")],
    steps: Annotated[int, typer.Option(min=1, help="Train for this many steps.")] = 6000,
    batch_size: Annotated[int, typer.Option(min=2, help="Take this many images for a step, over all processes.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Train at this learning rate.")] = 1e-3,
    bf16: Annotated[bool, typer.Option(help="Compute matrix products in bfloat16.")] = False,
    clip: Annotated[Path, typer.Option(help="Start from the tower of this CLIP.")] = WEIGHTS / "guide",
    weights: Annotated[
        Path | None,
        typer.Option(help="Start from the weights of the finished run in this folder.", show_default="new ones"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Draw everything from this seed.")] = 0,
) -> None:
    """Train the multimodal LLM of the world, before it learns a reward."""
    process, processes = join_processes()
    torch.manual_seed(seed)
    backbone = make_backbone(CLIPModel.from_pretrained(clip))
    reader = Reader(backbone)
    if weights is not None:
        reader.load_state_dict(torch.load(weights / "checkpoint.pt", weights_only=True)["module"])
    examples = Examples(preferences, seed)

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        pixels, lines, wanted, kinds = examples(step, batch_size)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = reader(normalize(pixels), [[line["prompt"] for line in several] for several in lines])
        logits, words, patches = (part.float() for part in output)
        say = words[wanted == 1].mean()
        match = F.binary_cross_entropy_with_logits(logits, wanted)
        shapes, colours = patches.split([len(SHAPES) + 1, len(COLOURS) + 1], dim=-1)
        dense = F.cross_entropy(shapes.flatten(0, 1), kinds[..., 0].flatten())
        dense = dense + F.cross_entropy(colours.flatten(0, 1), kinds[..., 1].flatten())
        shown = {"match": match.item(), "words": say.item(), "patches": dense.item(), **told_right(logits, wanted)}
        return match + 0.5 * say + 0.25 * dense, shown

    train(
        reader,
        loss_at,
        steps=steps,
        learning_rate=learning_rate,
        out=out,
        weight_decay=0.05,
        warmup=min(200, steps // 10),
        seed=seed,
    )
    if process == 0:
        save_backbone(backbone, out / "backbone")


if __name__ == "__main__":
    typer.run(main)

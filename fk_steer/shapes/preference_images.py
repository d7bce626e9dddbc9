"""The images that preferences are about: samples, x0 predictions and artefacts, graded by the exact detector.

A *group* is a prompt with four samples from noises of their own, the x0 predictions of every second group at some
moment of the loop, and a picture with artefacts of two strengths. What a group holds follows from the seed, the split
and its number, so a folder can be continued and extended.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..diffusion.decode import LatentDecoder
from ..diffusion.interception import intercept_step
from ..diffusion.schedulers import predict_x0
from ..evaluation.geneval.rules import evaluate
from ..files import png, write_atomically, write_json
from . import GUIDANCE_SCALE
from .artefacts import ON_PIXELS, STRENGTHS, merge, spoil
from .captions import CONVERSE, NUMBERS, RELATIONS, TASKS, Mention, evaluation_prompts, metadata, parse
from .detector import detect
from .world import COLOURS, SHAPES, Scene, render, sample_scene


SPLITS = ("train", "held-out")
PER_GROUP = 4
BATCH = 8
"""Groups per call of the pipeline."""

TASK_WEIGHTS = dict(zip(TASKS, (0.04, 0.20, 0.20, 0.08, 0.22, 0.26)))
"""Shares of the groups; the tasks that the pipeline finds hard have most of them."""

PROGRESS = (0.4, 0.9)
"""Share of the loop after which x0 predictions are taken."""


@dataclass(frozen=True)
class Picture:
    """An image and what there is to say of it.

    Attributes:
        path: relative to the folder of the data.
        group: number in its split.
        prompt, tag: the caption and its task.
        kind: 'sample', 'x0', or 'artefact' for the members of a series (strength 0 included).
        alignment: mean degree in [0, 1] to which GenEval's conditions are met. An artefact keeps that of its original.
        fidelity: mean confidence in [0, 1] of all that is detected, sure or not; times 1 - strength for an artefact.
        progress: share of the loop done, 1 for finished images.
        artefact: its kind; '' for none.
        strength: of the artefact, in [0, 1].
        rendered: drawn by the renderer and not by the pipeline.
    """

    path: str
    group: int
    prompt: str
    tag: str
    kind: str
    alignment: float
    fidelity: float
    progress: float = 1.0
    artefact: str = ""
    strength: float = 0.0
    rendered: bool = False


def meaning(line: dict[str, Any]) -> tuple[Any, ...]:
    """The same for captions that say the same, such as 'a star left of a moon' and 'a moon right of a star'."""
    parts = [(entry["class"], entry.get("color") or "", entry["count"]) for entry in line["include"]]
    if line["tag"] != "position":
        return (line["tag"], *sorted(parts))
    reference, placed = parts
    relation = line["include"][1]["position"][0]
    if reference < placed:
        return (line["tag"], reference, relation, placed)
    return (line["tag"], placed, CONVERSE[relation], reference)


@cache
def prompts(split: str) -> dict[str, list[dict[str, Any]]]:
    """Task -> metadata of all its captions in a split: one meaning in four is 'held-out'.

    Captions that say the same as one of the evaluation's are in neither. All eight single objects are there, so these
    are asked for in other words: 'a star' for 'a photo of a star'.
    """
    evaluated = {meaning(line) for line in evaluation_prompts()}
    found: dict[str, list[dict[str, Any]]] = {task: [] for task in TASKS}
    for line in _captions():
        if line["tag"] == "single_object":
            found["single_object"].append({**line, "prompt": line["prompt"].removeprefix("a photo of ")})
        elif meaning(line) not in evaluated:
            found[line["tag"]].append(line)
    chosen = {}
    for task, lines in found.items():
        meanings = sorted({meaning(line) for line in lines})
        order = np.random.default_rng(0).permutation(len(meanings))
        held_out = {meanings[index] for index in order[: len(meanings) // 4]}
        chosen[task] = [line for line in lines if (meaning(line) in held_out) == (split == "held-out")]
    return chosen


def _captions() -> list[dict[str, Any]]:
    lines = [metadata("single_object", Mention(shape)) for shape in SHAPES]
    lines += [metadata("counting", Mention(shape, count=count)) for shape in SHAPES for count in NUMBERS]
    lines += [metadata("colors", Mention(shape, colour)) for shape in SHAPES for colour in COLOURS]
    for a, b in itertools.permutations(SHAPES, 2):
        lines.append(metadata("two_object", Mention(a), Mention(b)))
        lines += [metadata("position", Mention(a), Mention(b), relation) for relation in RELATIONS]
        lines += [
            metadata("color_attr", Mention(a, one), Mention(b, other))
            for one, other in itertools.permutations(COLOURS, 2)
        ]
    return lines


def prompt_of(seed: int, split: str, group: int) -> dict[str, Any]:
    """Metadata of a group's prompt. Tasks with few prompts have them several times, with other noise."""
    rng = np.random.default_rng([seed, SPLITS.index(split), group])
    task = rng.choice(TASKS, p=list(TASK_WEIGHTS.values()))
    lines = prompts(split)[task]
    return lines[rng.integers(len(lines))]


def scene_of(line: dict[str, Any], rng: np.random.Generator) -> Scene:
    """A scene of which a caption is true; what it leaves open is drawn at random."""
    kinds = [
        (entry["class"], entry.get("color") or str(rng.choice(list(COLOURS))))
        for entry in line["include"]
        for _ in range(entry["count"])
    ]
    if line["tag"] != "position":
        return sample_scene(rng, kinds)
    # The reference object comes first in either.
    return sample_scene(rng, kinds, RELATIONS[line["include"][1]["position"][0]] + rng.uniform(-20, 20))


def grade(image: Image.Image, prompt: str) -> dict[str, float]:
    """`alignment` and `fidelity` of an image without artefacts, see `Picture`."""
    everything = detect(image, threshold=0.0)
    sure = {name: [item for item in found if item.score >= 0.5] for name, found in everything.items()}
    verdict = evaluate(parse(prompt), {name: found for name, found in sure.items() if found})
    degrees = [condition.degree for condition in verdict.conditions]
    scores = [item.score for found in everything.values() for item in found]
    return {"alignment": sum(degrees) / len(degrees), "fidelity": sum(scores) / len(scores) if scores else 0.0}


def make_images(
    out: Path, split: str, groups: int, seed: int, steps: int, pipe: Any, progress: Callable[[int], None]
) -> list[list[Picture]]:
    """The pictures of the first `groups` groups of a split; those that a folder has are read.

    Args:
        out: folder of the data.
        steps: of the denoising loop.
        pipe: the world's Stable Diffusion.
        progress: called with the number of groups done since the last call.
    """
    pictures: list[list[Picture]] = []
    # Always whole batches, so that extending a folder changes nothing that is there.
    for start in range(0, groups, BATCH):
        record = out / "records" / split / f"{start:05d}.json"
        if record.exists():
            batch = [[Picture(**picture) for picture in group] for group in json.loads(record.read_text())]
        else:
            batch = [[] for _ in range(BATCH)]
            for picture, image in _batch(split, start, seed, steps, pipe):
                write_atomically(out / picture.path, png(image))
                batch[picture.group - start].append(picture)
            write_json(record, [[asdict(picture) for picture in group] for group in batch])
        pictures += batch
        progress(min(BATCH, groups - start))
    return pictures[:groups]


def _batch(split: str, start: int, seed: int, steps: int, pipe: Any) -> list[tuple[Picture, Image.Image]]:
    rng = np.random.default_rng([seed, SPLITS.index(split), start, 1])
    numbers = range(start, start + BATCH)
    lines = [prompt_of(seed, split, number) for number in numbers]
    # The number of the step whose x0 predictions are kept.
    first, last = (round(share * steps) - 1 for share in PROGRESS)
    kept = int(rng.integers(first, last + 1))
    samples, predictions = _sample(pipe, lines, steps, float(start // BATCH % 2), kept, int(rng.integers(2**62)))

    made: list[tuple[Picture, Image.Image]] = []
    for place, (number, line) in enumerate(zip(numbers, lines)):
        own = slice(PER_GROUP * place, PER_GROUP * (place + 1))
        found: list[tuple[str, Image.Image, dict[str, Any]]] = []
        found += [(f"{index}", image, {"kind": "sample"}) for index, image in enumerate(samples[own])]
        if number % 2 == 0:
            facts = {"kind": "x0", "progress": (kept + 1) / steps}
            found += [(f"{index}-x0", image, facts) for index, image in enumerate(predictions[own])]
        found += _series(line, samples[own.start], rng)
        for name, image, facts in found:
            path = f"images/{split}/{number:05d}-{name}.png"
            graded: dict[str, Any] = facts if "alignment" in facts else {**grade(image, line["prompt"]), **facts}
            made.append((Picture(path, number, line["prompt"], line["tag"], **graded), image))
    return made


@torch.no_grad()
def _sample(
    pipe: Any, lines: list[dict[str, Any]], steps: int, eta: float, kept: int, seed: int
) -> tuple[list[Image.Image], list[Image.Image]]:
    """Images and x0 predictions after step number `kept`, `PER_GROUP` of each for every prompt."""
    decoder = LatentDecoder(pipe)
    predictions = []

    def step(
        inner: Any, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        if int(timestep) == int(pipe.scheduler.timesteps[kept]):
            predictions.append(decoder(predict_x0(pipe.scheduler, model_output, timestep, sample)))
        return inner(model_output, timestep, sample, *args, **kwargs)

    seeds = np.random.SeedSequence(seed).generate_state(len(lines) * PER_GROUP, np.uint64)
    with intercept_step(pipe.scheduler, step):
        images = pipe(
            [line["prompt"] for line in lines],
            num_inference_steps=steps,
            guidance_scale=GUIDANCE_SCALE,
            num_images_per_prompt=PER_GROUP,
            eta=eta,
            generator=[torch.Generator().manual_seed(int(number >> 1)) for number in seeds],
        ).images
    return images, pipe.image_processor.numpy_to_pil(predictions[0].permute(0, 2, 3, 1).numpy())


def _series(
    line: dict[str, Any], sample: Image.Image, rng: np.random.Generator
) -> list[tuple[str, Image.Image, dict[str, Any]]]:
    """A render or the sample, and it with an artefact at two strengths."""
    rendered = bool(rng.random() < 0.5)
    scene = scene_of(line, rng)
    kinds = [*ON_PIXELS, "merge"] if rendered and len(scene.objects) > 1 else list(ON_PIXELS)
    artefact = str(rng.choice(kinds))
    strengths = sorted(float(strength) for strength in rng.choice(STRENGTHS, 2, replace=False))
    seed = int(rng.integers(2**62))
    original = render(scene) if rendered else sample
    grades = grade(original, line["prompt"])
    series = []
    for index, strength in enumerate([0.0, *strengths]):
        if strength == 0:
            image = original
        elif artefact == "merge":
            image = render(merge(scene, strength))
        else:
            image = spoil(original, artefact, strength, seed)
        facts = {"kind": "artefact", "artefact": artefact, "strength": strength, "rendered": rendered}
        series.append(
            (f"{artefact}{index}", image, {**grades, **facts, "fidelity": grades["fidelity"] * (1 - strength)})
        )
    return series

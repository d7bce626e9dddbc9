"""The images that preferences are between: for each of many training prompts several of the bundled model's, with what
rewards say of them. A file per batch of prompts, so that a run that was stopped goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from fk_steer.bundled import bundled_options
from fk_steer.console import progress_bar
from fk_steer.diffusion import steer
from fk_steer.evaluation.half import in_half
from fk_steer.files import check_settings, record_settings, write_atomically
from fk_steer.loading import load_guide, load_pipeline, set_scheduler
from fk_steer.rewards.base import RewardFunction
from fk_steer.rewards.images import to_uint8
from fk_steer.search import preset
from fk_steer.shapes import GUIDANCE_SCALE
from fk_steer.shapes.captions import training_prompts
from fk_steer.shapes.oracle import judge, score
from fk_steer.shapes.preference_images import TASK_WEIGHTS


MODEL = "shapes"
GUIDE = "clip-score"
REWARDS: Mapping[str, Mapping[str, Any]] = {
    GUIDE: {},
    "image-reward": {},
    "llava-reward": {"perspective": "alignment", "batch_size": 64},
}
"""Those that may decide, with their options."""

SCHEDULER = "DPMSolverMultistepScheduler"
BATCH = 8
"""Prompts per call."""

NOISE = 50_000_000
"""Seeds of the noise begin here, far from those of evaluations."""


def make_candidates(out: Path, prompts: int, each: int, steps: int, lora: str | None = None) -> None:
    """Write what is missing.

    Args:
        prompts: how many.
        each: images of each.
        steps: of DPM-Solver++.
        lora: of the model that draws; None for none.
    """
    setup: dict[str, Any] = {"each": each, "steps": steps, "batch": BATCH, "rewards": list(REWARDS)}
    if lora is not None:
        setup["lora"] = lora
    check_settings(out, setup)
    record_settings(out, setup)
    lines = training_prompts(prompts, TASK_WEIGHTS)
    batches = [start for start in range(0, prompts, BATCH) if not _path(out, start).exists()]
    if not batches:
        return
    pipe = in_half(load_pipeline(MODEL, lora=lora))
    pipe.set_progress_bar_config(disable=True)
    rewards = {
        name: load_guide(name, "cpu", **bundled_options(MODEL, name), **options) for name, options in REWARDS.items()
    }
    steering = preset("best-of-n", num_particles=each)
    set_scheduler(pipe, SCHEDULER, steering)
    with progress_bar() as bar:
        task = bar.add_task("prompts", total=len(batches) * BATCH)
        for start in batches:
            texts = [line["prompt"] for line in lines[start : start + BATCH]]
            images = steer(pipe, rewards[GUIDE], steering)(
                texts,
                generator=[torch.Generator().manual_seed(NOISE + start + index) for index in range(len(texts))],
                num_inference_steps=steps,
                guidance_scale=GUIDANCE_SCALE,
                output_type="pt",
            ).particles
            write_atomically(_path(out, start), save(measured(images, texts, rewards)))
            bar.advance(task, BATCH)


@torch.no_grad()
def measured(images: Tensor, texts: Sequence[str], rewards: Mapping[str, RewardFunction]) -> dict[str, Tensor]:
    """Images (P, N, 3, H, W) as uint8, and (P, N) of each reward, of 'correct' and of 'oracle', the exact detector's
    score, which decides nothing."""
    P, N = images.shape[:2]
    flat, prompts = images.flatten(0, 1), [text for text in texts for _ in range(N)]
    found = {name: torch.as_tensor(reward(flat, prompts)).double() for name, reward in rewards.items()}
    pixels = to_uint8(flat, "cpu")
    assert isinstance(pixels, Tensor)
    found["correct"] = torch.tensor([float(judge(one, text).correct) for one, text in zip(pixels, prompts)])
    found["oracle"] = torch.tensor([score(one, text) for one, text in zip(pixels, prompts)])
    return {"images": pixels.unflatten(0, (P, N)), **{name: some.view(P, N) for name, some in found.items()}}


def read_candidates(out: Path, prompts: int) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Metadata of the prompts, and what `measured` gives of all of them.

    Raises:
        ValueError: if some are missing.
    """
    paths = [_path(out, start) for start in range(0, prompts, BATCH)]
    if missing := [path for path in paths if not path.exists()]:
        raise ValueError(f"{len(missing)} of {len(paths)} files are missing in '{out}'. Run `candidates` again.")
    parts = [load_file(path) for path in paths]
    lines = training_prompts(prompts, TASK_WEIGHTS)
    return lines, {name: torch.cat([part[name] for part in parts])[: len(lines)] for name in parts[0]}


def _path(out: Path, start: int) -> Path:
    return out / "batches" / f"{start:05d}.safetensors"

"""Train the world's LLaVA-Reward on preferences: an adapter for one perspective, by `llava_reward_guide.train`.

    python -m fk_steer.shapes.train_llava_reward --preferences runs/preferences --backbone runs/llava/backbone \
        --out runs/llava-reward/alignment

`--objective general-preference` trains an embedding in place of a number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llava_reward_guide.data import read_items
from llava_reward_guide.training import TrainingConfig, train

from ..console import console
from ..files import write_json


def recipe(
    preferences: Path, backbone: Path, out: Path, perspective: str, negatives: bool = True, **changes: Any
) -> TrainingConfig:
    """Settings of a run, whose data are collected in OUT/pairs.json.

    Args:
        preferences: folder made by `fk_steer.shapes.preferences`.
        backbone: folder of the multimodal LLM.
        negatives: add the hard negatives, which are for alignment alone.
        **changes: of the settings.
    """
    files = [preferences / f"{perspective}.json"]
    if negatives and perspective == "alignment":
        files.append(preferences / "alignment-negatives.json")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "pairs.json", [dict(item) for file in files for item in read_items(file)])
    settings: dict[str, Any] = {
        "train_data": str(out / "pairs.json"),
        # Labels as noisy as those trained on, of other prompts.
        "validation_data": str(preferences / f"{perspective}-validation.json"),
        "image_folder": str(preferences),
        "output": str(out),
        "backbone": str(backbone),
        "perspective": perspective,
        "lora_rank": 8,
        "lora_alpha": 16,
        "batch_size": 32,
        "micro_batch_size": 32,
        "max_steps": 400,
        "learning_rate": 3e-4,
        "weight_decay": 0.01,
        "ema_decay": 0.98,
        "seed": 0,
        # Small and on a CPU.
        "mixed_precision": "bf16",
        "dtype": "float32",
        "gradient_checkpointing": False,
        "num_workers": 0,
        "cache_images": True,
        "check_images": False,
        "validate_every": 10_000,
        **changes,
    }
    if settings.get("objective") == "general-preference":
        settings.setdefault("value_head_dim", 2)
    return TrainingConfig(**settings)


def main(
    preferences: Annotated[
        Path, typer.Option(help="Read preferences from this folder, which fk_steer.shapes.preferences has made.")
    ],
    backbone: Annotated[
        Path, typer.Option(help="Train on the multimodal LLM in this folder, see fk_steer.shapes.train_llava.")
    ],
    out: Annotated[Path, typer.Option(help="Write the run to this folder; the checkpoint lands in OUT/final.")],
    perspective: Annotated[
        str, typer.Option(help="Train this perspective: alignment, fidelity or overall.")
    ] = "alignment",
    objective: Annotated[
        str, typer.Option(help="Train by this loss: bradley-terry or general-preference.")
    ] = "bradley-terry",
    num_crops: Annotated[
        int | None,
        typer.Option(help="Cut an image into at most this many crops.", show_default="the backbone's, 1"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Draw everything from this seed.")] = 0,
) -> None:
    """Train an adapter on the world's preferences."""
    settings = recipe(preferences, backbone, out, perspective, objective=objective, num_crops=num_crops, seed=seed)
    result = train(settings)
    console.print_json(data=result.validation)


if __name__ == "__main__":
    typer.run(main)

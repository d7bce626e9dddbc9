"""LLaVA-Reward on the bundled world: what its parts bring, on held-out preferences without label noise.

Every variant is trained on the same backbone, for as many steps and from several seeds, by the recipe of the shipped
weights; the world's CLIPs judge the same pairs. A run's folder holds `result.json` when it is done; running again does
what is missing.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from fk_steer.cli.options import one_line_errors
from fk_steer.evaluation.statistics import clustered_mean
from fk_steer.evaluation.world import Row, write_table
from fk_steer.files import write_json
from fk_steer.rewards import load_reward
from fk_steer.rewards.base import RewardFunction
from fk_steer.shapes import BUNDLED_LLAVA_REWARD
from fk_steer.shapes.captions import TASKS
from fk_steer.shapes.train_llava_reward import recipe
from llava_reward_guide import LlavaReward
from llava_reward_guide.data import Items, read_items
from llava_reward_guide.preference import preference_score
from llava_reward_guide.training import train


VARIANTS: dict[str, dict[str, Any]] = {
    "SkipCA, end of text, Bradley-Terry, hard negatives": {},
    "without SkipCA": {"add_cross_attention": False},
    "general preference": {"objective": "general-preference"},
    "without hard negatives": {"negatives": False},
    "mean pooling": {"mean_pooling": True},
}
CLIPS = {"guide CLIP": "shapes", "judge CLIP": "shapes-held-out"}
CHUNK = 64


def run(preferences: Path, backbone: Path, out: Path, seed: int, changes: Mapping[str, Any]) -> dict[str, float]:
    """Train one variant from one seed, if that is not done yet; its accuracies (see `accuracies`)."""
    path = out / "result.json"
    if not path.exists():
        config = recipe(preferences, backbone, out, "alignment", seed=seed, **changes)
        checkpoint = train(config).checkpoint
        reward = LlavaReward.from_pretrained(checkpoint, backbone=str(backbone), batch_size=CHUNK, device="cpu")
        items = held_out(preferences)
        write_json(path, accuracies(items, differences(items, lambda images, prompts: reward.embed(images, prompts))))
    return json.loads(path.read_text())


def held_out(preferences: Path) -> Items:
    """Pairs of other prompts, labelled without noise."""
    return read_items(preferences / "alignment-heldout-clean.json")


def differences(items: Items, embed: RewardFunction) -> list[float]:
    """How far the chosen image of each pair is preferred to the rejected one, by numbers or embeddings (B, dim)."""
    found = []
    for start in range(0, len(items), CHUNK):
        chunk = range(start, min(start + CHUNK, len(items)))
        pairs = [items.images(index) for index in chunk]
        prompts = [items.prompts(index) for index in chunk]
        sides = [
            torch.as_tensor(embed([images[side] for images in pairs], [texts[side] for texts in prompts]))
            for side in (0, 1)
        ]
        first, second = (values.float().view(len(pairs), -1) for values in sides)
        found += preference_score(first, second).tolist()
    return found


def accuracies(items: Items, differences: Sequence[float]) -> dict[str, float]:
    """Share of pairs told right in %, ties half: 'overall', of 'samples' and 'x0 predictions', and by task."""
    groups: dict[str, list[float]] = {name: [] for name in ("overall", "samples", "x0 predictions", *TASKS)}
    for item, difference in zip(items, differences):
        right = 50.0 + 50.0 * np.sign(difference)
        for name in ("overall", "samples" if item["progress"] == 1 else "x0 predictions", item["tag"]):
            groups[name].append(right)
    return {name: float(np.mean(values)) for name, values in groups.items() if values}


def judged_by_clip(preferences: Path, name: str) -> dict[str, float]:
    """Accuracies of a bundled CLIP."""
    items = held_out(preferences)
    return accuracies(items, differences(items, load_reward("clip-score", path=name, device="cpu")))


def over_seeds(results: Sequence[Mapping[str, float]], against: Sequence[Mapping[str, float]] | None = None) -> Row:
    """Column -> mean and standard error over seeds; with `against`, also 'gain': the paired difference in 'overall'."""
    row = {name: clustered_mean([[result[name]] for result in results]) for name in results[0]}
    if against is not None:
        row["gain"] = clustered_mean([[a["overall"] - b["overall"]] for a, b in zip(results, against)])
    return row


app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)


@app.command()
def main(
    preferences: Annotated[
        Path, typer.Option(help="Read pairs from this folder, which fk_steer.shapes.preferences has made.")
    ],
    out: Annotated[Path, typer.Option(help="Write runs and tables to this folder.")],
    backbone: Annotated[
        Path | None, typer.Option(help="Train on this multimodal LLM.", show_default="the bundled one")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Train each variant this often, from other seeds.")] = 3,
    processes: Annotated[int, typer.Option(min=1, help="Train this many at a time, on one thread each.")] = 1,
) -> None:
    """Train LLaVA-Reward without its parts, one at a time, on the bundled world's preferences."""
    with one_line_errors():
        backbone = backbone or BUNDLED_LLAVA_REWARD / "backbone"
        jobs = [
            (preferences, backbone, out / f"{name.replace(',', '').replace(' ', '-')}-{seed}", seed, changes)
            for name, changes in VARIANTS.items()
            for seed in range(seeds)
        ]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            results = list(pool.map(run, *zip(*jobs)))
        rows = {
            name: over_seeds(results[first : first + seeds], results[:seeds] if first else None)
            for name, first in zip(VARIANTS, range(0, len(results), seeds))
        }
        for name, clip in CLIPS.items():
            rows[name] = over_seeds([judged_by_clip(preferences, clip)])
        write_table(out / "llava-reward", rows)


if __name__ == "__main__":
    app()

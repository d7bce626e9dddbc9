"""How often rewards agree with the clean labels of held-out preferences, by task.

python benchmarks/llava_reward/preferences.py runs/preferences --out results.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from rich.table import Table

from fk_steer.console import console
from fk_steer.evaluation.statistics import Estimate, mean_by, plus_minus
from fk_steer.files import write_json
from fk_steer.loading import quiet_libraries
from fk_steer.rewards import load_reward
from fk_steer.rewards.base import RewardFunction
from fk_steer.shapes.captions import TASKS
from fk_steer.shapes.preferences import PERSPECTIVES
from fk_steer.shapes.train_clip import pixels_of


REWARDS: dict[str, tuple[str, dict[str, str]]] = {
    "guide": ("clip-score", {"path": "shapes"}),
    "judge": ("clip-score", {"path": "shapes-held-out"}),
    "image-reward": ("image-reward", {"path": "shapes"}),
    **{
        f"llava-reward, {perspective}": ("llava-reward", {"path": "shapes", "perspective": perspective})
        for perspective in PERSPECTIVES
    },
}
"""Name in the table -> reward and its options."""


def accuracies(reward: RewardFunction, file: Path) -> dict[str, Estimate]:
    """Share of pairs, in per cent, whose preferred image has the higher reward, with standard errors clustered by
    prompt: 'all', each task, 'finished' images and 'x0' predictions, and pairs with an 'artefact'.

    Args:
        file: a JSON file of `preferences`.
    """
    items = json.loads(file.read_text())
    wanted = sorted({(item[side], item["prompt"]) for item in items for side in ("chosen_path", "reject_path")})
    scores: dict[tuple[str, str], float] = {}
    for start in range(0, len(wanted), 64):
        chunk = wanted[start : start + 64]
        pixels = pixels_of([Image.open(file.parent / path).convert("RGB") for path, _ in chunk])
        with torch.no_grad():
            values = torch.as_tensor(reward(pixels, [prompt for _, prompt in chunk]))
        scores.update(zip(chunk, values.tolist()))

    def margin(item: dict[str, Any]) -> float:
        return scores[item["chosen_path"], item["prompt"]] - scores[item["reject_path"], item["prompt"]]

    members: dict[str, list[dict[str, Any]]] = {"all": items}
    members |= {task: [item for item in items if item["tag"] == task] for task in TASKS}
    members["finished"] = [item for item in items if item["progress"] == 1]
    members["x0"] = [item for item in items if item["progress"] < 1]
    members["artefact"] = [item for item in items if item["artefact"]]
    columns: dict[str, Estimate] = {}
    for name, some in members.items():
        if some:
            # A tie is half right.
            columns[name] = mean_by((item["prompt"], 50.0 * (np.sign(margin(item)) + 1)) for item in some)
    return columns


def main(
    folder: Annotated[Path, typer.Argument(help="Folder made by `fk_steer.shapes.preferences`.")],
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
) -> None:
    """Print accuracies on held-out pairs with clean labels."""
    quiet_libraries()
    results: dict[str, dict[str, dict[str, Estimate]]] = {}
    for label, (name, options) in REWARDS.items():
        reward = load_reward(name, **options)
        for perspective in PERSPECTIVES:
            found = accuracies(reward, folder / f"{perspective}-heldout-clean.json")
            results.setdefault(perspective, {})[label] = found
    for perspective, rows in results.items():
        table = Table("pairs", *rows, title=perspective)
        for column in next(iter(rows.values())):
            table.add_row(column, *(plus_minus(found[column], ".1f") for found in rows.values()))
        console.print(table)
    if out is not None:
        write_json(out, results)


if __name__ == "__main__":
    typer.run(main)

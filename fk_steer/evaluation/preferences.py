"""How often rewards agree with preferences about images of the bundled world, see `fk_steer.shapes.preferences`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from llava_reward_guide.images import load_image
from llava_reward_guide.texts import read_json

from ..rewards.base import RewardFunction
from ..shapes.captions import TASKS
from ..shapes.train_clip import pixels_of
from .statistics import Estimate, mean_by


def accuracies(reward: RewardFunction, file: Path) -> dict[str, Estimate]:
    """Share of pairs, in per cent, whose preferred image has the higher reward, with standard errors clustered by
    prompt: 'all', each task, 'finished' images and 'x0' predictions, and pairs with an 'artefact'.

    Args:
        file: a JSON file of `fk_steer.shapes.preferences`.
    """
    items = read_json(file)
    wanted = sorted({(item[side], item["prompt"]) for item in items for side in ("chosen_path", "reject_path")})
    scores: dict[tuple[str, str], float] = {}
    for start in range(0, len(wanted), 64):
        chunk = wanted[start : start + 64]
        pixels = pixels_of([load_image(file.parent / path) for path, _ in chunk])
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

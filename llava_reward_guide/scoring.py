"""Scoring files: lists of images, and the evaluation JSON of the published code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from .data import Items
from .images import ImageError, load_image
from .model import LlavaReward
from .preference import preference_probability
from .report import pair_reliability, reliability, reward_distribution, write_report


CHUNK = 64
"""Images in memory at a time."""


@dataclass(frozen=True)
class ScoredFile:
    """One image file.

    Attributes:
        path, prompt: as given.
        reward: value_head_dim numbers; None if the image could not be scored.
        error: why not.
    """

    path: str
    prompt: str
    reward: list[float] | None
    error: str | None = None


def score_files(
    reward: LlavaReward,
    files: Sequence[tuple[Any, str]],
    num_crops: int | None = None,
    progress: Callable[[int], None] = lambda count: None,
    read: Callable[[Any], Image] = load_image,
) -> list[ScoredFile]:
    """Score (path, prompt) pairs. Images that cannot be scored are reported in the result, and the others scored.

    Args:
        read: makes an image of what stands for its path.
        progress: called with the number of files done since the last call.
    """
    results = []
    for start in range(0, len(files), CHUNK):
        chunk = files[start : start + CHUNK]
        images: list[Image] = []
        errors: list[str | None] = []
        for path, _ in chunk:
            try:
                image = read(path)
                reward.backbone.check_size(image, _name(path), num_crops)
                images.append(image)
                errors.append(None)
            except ImageError as error:
                errors.append(str(error))
        readable = [prompt for (_, prompt), error in zip(chunk, errors) if error is None]
        rewards = iter(reward.embed(images, readable, num_crops).tolist() if images else [])
        results += [
            ScoredFile(_name(path), prompt, None if error else next(rewards), error)
            for (path, prompt), error in zip(chunk, errors)
        ]
        progress(len(chunk))
    return results


@dataclass(frozen=True)
class Evaluation:
    """Scores of an evaluation file.

    Attributes:
        items: those of the file, each with what was found; an item with 'error' does not enter the summary.
        summary: metric -> value.
    """

    items: list[dict[str, Any]]
    summary: dict[str, float | int | str]


def evaluate(
    reward: LlavaReward,
    items: Items,
    num_crops: int | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> Evaluation:
    """Score pairs or labelled images, as `llava_reward_guide.data.read_items` gives them.

    Raises:
        ValueError: for labelled items and a general preference model, which compares images and gives none a number.
    """
    labelled = items.labelled
    if labelled and reward.config.objective == "general-preference":
        raise ValueError("Expected pairs for a general preference model, but got labelled images.")
    sides = items.sides
    files = [
        (items[index][side], prompt) for index in range(len(items)) for side, prompt in zip(sides, items.prompts(index))
    ]
    scored = score_files(reward, files, num_crops, progress, items.open)
    results, valid = [], []
    for index in range(len(items)):
        item = items.describe(index)
        group = scored[index * len(sides) : (index + 1) * len(sides)]
        if errors := [one.error for one in group if one.error]:
            results.append({**item, "error": " ".join(errors)})
            continue
        names = ["reward"] if labelled else ["chosen_reward", "reject_reward"]
        values = [one.reward if len(one.reward or []) > 1 else (one.reward or [0.0])[0] for one in group]
        results.append({**item, **dict(zip(names, values))})
        valid.append((results[-1], [one.reward for one in group]))
    summary: dict[str, float | int | str] = {"items": len(items), "errors": len(items) - len(valid)}
    if valid:
        rewards = torch.tensor([group for _, group in valid])
        if labelled:
            for (item, _), value in zip(valid, rewards[:, 0, 0].sigmoid().tolist()):
                item["probability"] = value
            summary |= labelled_metrics(rewards[:, 0, 0], torch.tensor([int(item["label"]) for item, _ in valid]))
        else:
            tau = reward.config.tau
            probabilities = preference_probability(rewards[:, 0], rewards[:, 1], tau)
            for (item, _), value in zip(valid, probabilities.tolist()):
                item["probability"] = value
            summary |= pairwise_metrics(rewards[:, 0], rewards[:, 1], tau)
    return Evaluation(results, summary)


def report_evaluation(folder: str | Path, result: Evaluation) -> None:
    """Write what `llava_reward_guide.report` has to say of an evaluation; nothing if no item could be scored."""
    items = [item for item in result.items if "error" not in item]
    if not items:
        return
    probability = torch.tensor([item["probability"] for item in items])
    if _labelled(items[0]):
        calibration = reliability(probability, torch.tensor([float(item["label"]) for item in items]))
        sides = [("path", "reward", 0)]
    else:
        calibration = pair_reliability(probability)
        sides = [("chosen_path", "chosen_reward", 0), ("reject_path", "reject_reward", 1)]
    distribution = None
    if not isinstance(items[0][sides[0][1]], list):
        distribution = reward_distribution(
            [
                (item["prompt"][index] if isinstance(item["prompt"], list) else item["prompt"], item[path], item[value])
                for item in items
                for path, value, index in sides
            ]
        )
    write_report(folder, {**result.summary, "ece": calibration.ece}, calibration, distribution)


def pairwise_metrics(chosen: Tensor, rejected: Tensor, tau: float) -> dict[str, float]:
    """Accuracy of preferring the chosen (N, dim), ties counted as wrong, or left out ('without ties').

    In float32, and in bfloat16 as the published evaluation has it, where small differences round to ties. For one
    number also as hard labels (the sign of the reward), which is how a classifier would be compared.
    """
    conventions = {
        "": preference_probability(chosen, rejected, tau),
        "_bf16": preference_probability(chosen, rejected, tau, torch.bfloat16).float(),
    }
    if chosen.shape[-1] == 1:
        hard = (chosen[:, 0] >= 0).float() - (rejected[:, 0] >= 0).float()
        conventions["_hard_labels"] = 0.5 + 0.5 * hard
    metrics = {}
    for name, probability in conventions.items():
        correct, ties = int((probability > 0.5).sum()), int((probability == 0.5).sum())
        metrics[f"accuracy{name}"] = correct / len(probability)
        metrics[f"accuracy_without_ties{name}"] = correct / max(len(probability) - ties, 1)
    return metrics


def labelled_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Metrics of logits (N,) for labels (N,) in {0, 1}; 1 is safe and the positive class of the published F1.

    `f1_unsafe` takes the other class as positive, which a constant 'safe' cannot score on. `auc` is NaN without both.
    """
    predicted, actual = logits >= 0, labels == 1
    metrics = {"accuracy": float((predicted == actual).float().mean())}
    for name, yes, true in (("", predicted, actual), ("_unsafe", ~predicted, ~actual)):
        hits = int((yes & true).sum())
        metrics[f"f1{name}"] = 2 * hits / max(int(yes.sum() + true.sum()), 1)
        metrics[f"recall{name}"] = hits / max(int(true.sum()), 1)
    positive, negative = logits[actual, None].double(), logits[None, ~actual].double()
    metrics["auc"] = float(((positive > negative).double() + 0.5 * (positive == negative).double()).mean())
    return metrics


def pair_files(paths: Sequence[Path], prompts: Sequence[str]) -> list[tuple[Path, str]]:
    """Images with their prompts; a single prompt is for all images.

    Raises:
        ValueError: if the numbers do not fit.
    """
    if len(prompts) not in (1, len(paths)):
        raise ValueError(f"Expected one prompt, or one for each of {len(paths)} images, but got {len(prompts)}.")
    return list(zip(paths, prompts if len(prompts) > 1 else list(prompts) * len(paths)))


def _name(path: Any) -> str:
    return str(path) if isinstance(path, (str, Path)) else "an image of the data set"


def _labelled(item: Any) -> bool:
    return isinstance(item, dict) and "label" in item and "path" in item


def failed(results: Iterable[ScoredFile]) -> list[str]:
    """Messages of the files that could not be scored."""
    return [result.error for result in results if result.error]

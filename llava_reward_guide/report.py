"""How far a reward can be believed: calibration of its probabilities, distribution of its values."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .packages import require


@dataclass(frozen=True)
class Reliability:
    """Predicted probabilities against observed frequencies, in bins of equal width over [0, 1].

    Attributes:
        confidence: mean predicted probability of each bin; NaN in an empty one.
        frequency: share of positive outcomes; NaN in an empty one.
        count: predictions in each bin.
        ece: expected calibration error, the mean of |frequency - confidence| over predictions (Guo et al., arXiv
            1706.04599, eq. 3).
    """

    confidence: list[float]
    frequency: list[float]
    count: list[int]
    ece: float


def reliability(probability: Tensor, outcome: Tensor, bins: int = 10) -> Reliability:
    """Of predictions (N,) in [0, 1] with outcomes (N,) in {0, 1}."""
    probability, outcome = probability.double().cpu(), outcome.double().cpu()
    index = (probability * bins).long().clamp(max=bins - 1)
    count = torch.bincount(index, minlength=bins)
    confidence = torch.bincount(index, probability, bins) / count
    frequency = torch.bincount(index, outcome, bins) / count
    gap = ((frequency - confidence).abs() * count).nan_to_num()
    return Reliability(confidence.tolist(), frequency.tolist(), count.tolist(), float(gap.sum() / count.sum()))


def pair_reliability(probability: Tensor, bins: int = 10) -> Reliability:
    """Of the probabilities (N,) that the chosen is preferred.

    Which one is named first is arbitrary, so each pair counts both ways and the diagram is symmetric.
    """
    both = torch.cat([probability, 1 - probability])
    return reliability(both, torch.arange(len(both)) < len(probability), bins)


def reward_distribution(rewards: Sequence[tuple[str, Any, float]]) -> dict[str, Any]:
    """Of (prompt, image, reward), an image that occurs in several pairs counted once.

    Returns:
        'mean' and 'std' over all; 'std_within_prompts' (of images around their prompt's mean) and 'std_between_prompts'
        (of those means); 'prompts': prompt -> {n, mean, std, min, max}. Standard deviations are of the population.
    """
    groups: dict[str, dict[str, float]] = defaultdict(dict)
    for prompt, image, value in rewards:
        groups[prompt][str(image)] = value
    per_prompt, residuals, everything = {}, [], []
    for prompt, values in groups.items():
        tensor = torch.tensor(list(values.values()), dtype=torch.float64)
        mean = tensor.mean()
        residuals.append(tensor - mean)
        everything.append(tensor)
        per_prompt[prompt] = {
            "n": len(tensor),
            "mean": float(mean),
            "std": float(tensor.std(correction=0)),
            "min": float(tensor.min()),
            "max": float(tensor.max()),
        }
    means = torch.tensor([entry["mean"] for entry in per_prompt.values()], dtype=torch.float64)
    every = torch.cat(everything)
    return {
        "mean": float(every.mean()),
        "std": float(every.std(correction=0)),
        "std_within_prompts": float(torch.cat(residuals).square().mean().sqrt()),
        "std_between_prompts": float(means.std(correction=0)),
        "prompts": per_prompt,
    }


def finite(content: Any) -> Any:
    """The same with None, JSON's null, for numbers that are not finite, which JSON has none of."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def plot_reliability(result: Reliability, path: str | Path) -> None:
    """Reliability diagram with the number of predictions below it."""
    require("matplotlib")
    from matplotlib.figure import Figure

    bins = len(result.count)
    centres = [(index + 0.5) / bins for index in range(bins)]
    figure = Figure(figsize=(4, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    above.plot(result.confidence, result.frequency, marker="o", markersize=4)
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="observed frequency", title=f"ECE {result.ece:.3f}")
    below.bar(centres, result.count, width=0.9 / bins)
    below.set(xlabel="predicted probability", ylabel="count")
    figure.savefig(path, dpi=150)


def write_report(
    folder: str | Path, summary: dict[str, Any], calibration: Reliability, distribution: dict[str, Any] | None
) -> None:
    """evaluation.json and reliability.png.

    Args:
        distribution: of rewards; None for embeddings, which are compared and not ordered.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = {"summary": summary, "reliability": asdict(calibration), "rewards": distribution}
    text = json.dumps(finite(content), indent=2, ensure_ascii=False)
    (folder / "evaluation.json").write_text(text + "\n", encoding="utf-8")
    plot_reliability(calibration, folder / "reliability.png")

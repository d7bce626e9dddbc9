"""Preferences from candidates: of each prompt the best against the worst by a judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fk_steer.files import png


JUDGES: Mapping[str, Sequence[str]] = {
    "clip": ("clip-score",),
    "llava": ("llava-reward",),
    "ensemble": ("clip-score", "image-reward", "llava-reward"),
    "oracle": ("oracle",),
}
"""Name -> the scores whose mean z-score among the images of a prompt decides. The oracle, the exact detector, is the
ceiling, and no reward that one could have."""


def judged(stored: Mapping[str, Tensor], judge: str) -> Tensor:
    """(P, N): the mean z-score of each image among those of its prompt."""
    parts = []
    for name in JUDGES[judge]:
        values = stored[name]
        spread = values.std(1, keepdim=True)
        parts.append((values - values.mean(1, keepdim=True)) / spread.clamp(min=1e-6))
    return torch.stack(parts).mean(0)


def choose(scores: Tensor, pairs: int, margin: float) -> list[tuple[int, int, int]]:
    """(prompt, chosen, rejected): the best against the worst, the second best against the second worst and so on.

    Args:
        scores: (P, N).
        pairs: at most so many of each prompt.
        margin: pairs whose scores differ by less are left out.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    found = []
    for prompt, row in enumerate(order.tolist()):
        for place in range(min(pairs, len(row) // 2)):
            chosen, rejected = row[place], row[-1 - place]
            if scores[prompt, chosen] - scores[prompt, rejected] > margin:
                found.append((prompt, chosen, rejected))
    return found


def write_pairs(
    folder: Path,
    lines: Sequence[Mapping[str, Any]],
    stored: Mapping[str, Tensor],
    judge: str,
    pairs: int,
    margin: float,
) -> dict[str, float]:
    """Write FOLDER/train.parquet in Diffusion-DPO's columns.

    Returns:
        How many pairs there are, and how good by the exact detector: share of chosen and of rejected images that are
        correct, and of pairs of which one is that are the right way round.
    """
    from datasets import Dataset

    scores = judged(stored, judge)
    chosen = choose(scores, pairs, margin)

    def image(prompt: int, place: int) -> bytes:
        return png(Image.fromarray(stored["images"][prompt, place].permute(1, 2, 0).numpy()))

    rows = {
        "caption": [lines[prompt]["prompt"] for prompt, _, _ in chosen],
        "jpg_0": [image(prompt, best) for prompt, best, _ in chosen],
        "jpg_1": [image(prompt, worst) for prompt, _, worst in chosen],
        "label_0": [1.0] * len(chosen),
        "score_0": [float(scores[prompt, best]) for prompt, best, _ in chosen],
        "score_1": [float(scores[prompt, worst]) for prompt, _, worst in chosen],
        "prompt_id": [prompt for prompt, _, _ in chosen],
    }
    folder.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(rows).to_parquet(str(folder / "train.parquet"))
    correct = stored["correct"]
    verdicts = torch.tensor([[correct[prompt, best], correct[prompt, worst]] for prompt, best, worst in chosen])
    decided = verdicts[verdicts[:, 0] != verdicts[:, 1]]
    return {
        "pairs": len(chosen),
        "chosen_correct": float(verdicts[:, 0].mean()),
        "rejected_correct": float(verdicts[:, 1].mean()),
        "right_way_round": float(decided[:, 0].mean()),
    }

"""Keeping prompts of an evaluation out of the training data, by edit distance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..packages import require


DISTANCES = ("max", "yujian-bo")

CHUNK = 256
"""Prompts compared with all evaluation prompts at a time."""


def similarity(distance: np.ndarray, first: np.ndarray, second: np.ndarray, definition: str = "max") -> np.ndarray:
    """1 - normalised edit distance, in [0, 1]; 1 for two empty texts.

    Args:
        distance: Levenshtein distance d, unit costs.
        first, second: lengths of the texts, broadcast against `distance`.
        definition: 'max': d / max length. 'yujian-bo': 2 d / (sum of lengths + d), which is a metric (Yujian and Bo,
            A Normalized Levenshtein Distance Metric, 2007).

    Raises:
        ValueError: for another definition.
    """
    if definition == "max":
        return 1 - distance / np.maximum(np.maximum(first, second), 1)
    if definition == "yujian-bo":
        return 1 - 2 * distance / np.maximum(first + second + distance, 1)
    raise ValueError(f"Unknown distance {definition!r}. Known: {', '.join(DISTANCES)}.")


def most_similar(prompts: Sequence[str], others: Sequence[str], definition: str = "max") -> np.ndarray:
    """Similarity in [0, 1] of each prompt to the closest of the others, in lower case and without outer blanks.

    Returns:
        (len(prompts),) float64.

    Raises:
        ImportError: without rapidfuzz.
    """
    require("rapidfuzz")
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cdist

    ours, theirs = ([text.strip().lower() for text in texts] for texts in (prompts, others))
    lengths = np.array([len(text) for text in theirs])
    best = np.zeros(len(ours))
    for start in range(0, len(ours), CHUNK):
        chunk = ours[start : start + CHUNK]
        distance = cdist(chunk, theirs, scorer=Levenshtein.distance, dtype=np.int32, workers=-1)
        own = np.array([len(text) for text in chunk])[:, None]
        best[start : start + CHUNK] = similarity(distance, own, lengths, definition).max(1)
    return best


def remove_overlap(
    items: Sequence[Mapping[str, Any]], evaluation: Iterable[str], threshold: float = 0.85, definition: str = "max"
) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Drop items that have a prompt at least this similar to one of the evaluation. Empty ones are similar to none.

    Args:
        items: pairs or labelled images.
        evaluation: its prompts.
        threshold: in [0, 1].

    Returns:
        The items that stay; the prompts that were dropped.
    """
    texts = list(dict.fromkeys(text for item in items for text in _prompts(item)))
    others = [text for text in dict.fromkeys(evaluation) if text.strip()]
    if not texts or not others:
        return list(items), []
    near = most_similar(texts, others, definition) >= threshold
    dropped = {text for text, flag in zip(texts, near) if flag}
    return [item for item in items if not dropped.intersection(_prompts(item))], sorted(dropped)


def _prompts(item: Mapping[str, Any]) -> list[str]:
    return [item["prompt"]] if isinstance(item["prompt"], str) else list(item["prompt"])

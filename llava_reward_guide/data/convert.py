"""Ratings and rankings into pairs, annotations into labels."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .items import standard


PERSPECTIVES = {
    "alignment": "image_text_alignment_rating",
    "fidelity": "fidelity_rating",
    "overall": "rank",
}
"""What ImageRewardDB (Xu et al., arXiv 2304.05977) rates each perspective by. A rank is better the lower it is."""


@dataclass(frozen=True)
class Statistics:
    """What became of the data, to be printed.

    Attributes:
        prompts: groups of images that were compared.
        images: with a rating.
        pairs: made.
        ties: pairs of images that are rated alike, or by less than the gap, and so dropped.
        unrated: images without a rating, left out.
    """

    prompts: int
    images: int
    pairs: int
    ties: int
    unrated: int

    def __str__(self) -> str:
        return (
            f"{self.pairs} pairs of {self.images} images for {self.prompts} prompts; {self.ties} ties dropped, "
            f"{self.unrated} images without a rating left out"
        )


def pairs_from_ratings(
    rows: Iterable[Mapping[str, Any]], rating: str = "rating", min_gap: float = 0.0, lower_is_better: bool | None = None
) -> tuple[list[dict[str, Any]], Statistics]:
    """All pairs of images of one prompt that are not rated alike.

    Args:
        rows: {prompt, path (or image_path), a rating, ...}, one per image; or ImageReward's {prompt, generations,
            ranking}, one per prompt. Images are of one prompt if they have the same prompt_id, else the same text.
        rating: the field to compare by; a perspective of ImageReward, or a name in the rows.
        min_gap: pairs whose ratings differ by no more than this are ties.
        lower_is_better: None if the field is a rank.

    Returns:
        Pairs {prompt_id, prompt, chosen_path, c_rate, reject_path, r_rate} in the published format, the rates being
        the values that were compared; what became of the data.

    Raises:
        ValueError: for a row without prompt or image, or if none has the rating.
    """
    field = PERSPECTIVES.get(rating, rating)
    if lower_is_better is None:
        lower_is_better = field in ("rank", "ranking")
    groups: dict[tuple[str, str], list[tuple[str, float]]] = defaultdict(list)
    unrated = 0
    for row in itertools.chain.from_iterable(map(_images_of, rows)):
        if row.get(field) in (None, ""):
            unrated += 1
            continue
        groups[str(row.get("prompt_id") or row["prompt"]), row["prompt"]].append((str(row["path"]), float(row[field])))
    if not groups:
        raise ValueError(f"Expected images rated by {field!r}, but none has such a field.")
    pairs, ties = [], 0
    for (prompt_id, prompt), images in groups.items():
        for first, second in itertools.combinations(images, 2):
            if abs(first[1] - second[1]) <= min_gap:
                ties += 1
                continue
            better, worse = sorted((first, second), key=lambda image: image[1], reverse=not lower_is_better)
            pairs.append(
                {
                    "prompt_id": prompt_id,
                    "prompt": prompt,
                    "chosen_path": better[0],
                    "c_rate": _number(better[1]),
                    "reject_path": worse[0],
                    "r_rate": _number(worse[1]),
                }
            )
    images_rated = sum(map(len, groups.values()))
    return pairs, Statistics(len(groups), images_rated, len(pairs), ties, unrated)


def labels_from_annotations(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Labelled images {path, label, prompt}, 1 being safe or good, from annotations as in UnsafeBench (Qu et al.,
    arXiv 2405.03486): {image or path, safety_label: 'Safe' or 'Unsafe', text}. Images without a caption have an empty
    prompt.

    Raises:
        ValueError: for a label that is neither.
    """
    items = []
    for row in map(standard, rows):
        if row.get("label") not in (0, 1) or "path" not in row:
            raise ValueError(f"Expected an image with a label (Safe, Unsafe, 1 or 0), but got {dict(row)}.")
        items.append({"path": str(row["path"]), "label": int(row["label"]), "prompt": row["prompt"]})
    return items


def best_images(pairs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Prompt -> its images that are chosen in some pair and rejected in none."""
    chosen: dict[str, dict[str, None]] = defaultdict(dict)
    rejected: dict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        if isinstance(pair["prompt"], str):
            chosen[pair["prompt"]][pair["chosen_path"]] = None
            rejected[pair["prompt"]].add(pair["reject_path"])
    return {prompt: [path for path in paths if path not in rejected[prompt]] for prompt, paths in chosen.items()}


def _images_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    row = standard(row)
    wanted = ("prompt", "ranking") if "generations" in row else ("prompt", "path")
    if missing := [name for name in wanted if row.get(name) is None]:
        raise ValueError(f"Expected {', '.join(missing)} in every row, but got {dict(row)}.")
    if "generations" not in row:
        return [dict(row)]
    return [
        {"prompt_id": row.get("id"), "prompt": row["prompt"], "path": path, "rank": rank}
        for path, rank in zip(row["generations"], row["ranking"])
    ]


def _number(value: float) -> int | float:
    return int(value) if value.is_integer() else value

"""Ratings and rankings into pairs, annotations into labels."""

from __future__ import annotations

import ast
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .items import standard


PERSPECTIVES = {
    "alignment": "image_text_alignment_rating",
    "fidelity": "fidelity_rating",
    "overall": "rank",
}
"""What ImageRewardDB (Xu et al., arXiv 2304.05977) rates each perspective by. A rank is better the lower it is."""

_VOTE = "vote"

RANKS = ("rank", "ranking", "ranks")
"""Fields in which lower is better."""

# One thing under several names: HPDv2 marks the image that was preferred with a 1 in `human_preference`.
_PREFERENCES = (*RANKS, "human_preference")
_NAMES = dict.fromkeys(_PREFERENCES, _PREFERENCES)

# Where a row lists the images of its prompt.
_IMAGE_LISTS = (
    "generations", "images", "image_paths", "file_paths", "paths", "file_path", "image_path", "image", "path",
)  # fmt: skip


@dataclass(frozen=True)
class _Comparison:
    """How a row with two images names them, and what was preferred.

    Attributes:
        first, second: fields of the images, the best one first.
        votes: of a row, numbers for its two images of which the higher is better; None if nobody said.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    votes: Callable[[Mapping[str, Any], str], tuple[Any, Any] | None]


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
    rows: Iterable[Mapping[str, Any]],
    rating: str | None = None,
    min_gap: float = 0.0,
    lower_is_better: bool | None = None,
    where: Callable[[int], str] = "row {}".format,
) -> tuple[list[dict[str, Any]], Statistics]:
    """All pairs of images of one prompt that are not rated alike.

    Args:
        rows: one per image, {prompt, path (or image_path), a rating, ...}: images are of one prompt if they have the
            same prompt_id, else the same text. Or one per prompt, with lists of images and of their ratings: those of
            ImageReward {prompt, generations, ranking}, HPDv2 {prompt, image_path, rank or human_preference} and the
            like, where the number at an index is of the image at that index, compared within the row. Or one per
            comparison of two images: Pick-a-Pic {caption, image_0_uid, image_1_uid, label_0, label_1}, HPDv3 {prompt,
            path1, path2}, of which the first is the better, GenAI-Bench {prompt, left_image, right_image, vote_type},
            and pairs as they are written here. Numbers may be text, and lists the text of a list, as in CSV.
        rating: the field to compare by; a perspective of ImageReward, or a name in the rows. None for `rating`, and
            where there is none a rank or preference.
        min_gap: pairs whose ratings differ by no more than this are ties.
        lower_is_better: None if the field is a rank.
        where: names the row of an index in messages.

    Returns:
        Pairs {prompt_id, prompt, chosen_path, c_rate, reject_path, r_rate} in the published format, the rates being
        the values that were compared; what became of the data.

    Raises:
        ValueError: naming row and field, for a row without prompt or image, a rating that is no number, or lists that
            do not fit; or if no image has the rating.
    """
    field = None if rating is None else PERSPECTIVES.get(rating, rating)
    fields = ("rating", *_PREFERENCES) if field is None else _NAMES.get(field, (field,))
    # By prompt and field, or alone: ranks of different rows say nothing about one another.
    groups: dict[tuple[Any, ...], list[tuple[str, float]]] = defaultdict(list)
    names: dict[tuple[Any, ...], tuple[Any, str, bool]] = {}
    unrated, seen = 0, set()
    for index, row in enumerate(rows):
        place = where(index)
        seen |= {str(name) for name in row}
        for key, prompt_id, prompt, path, name, value in _rated(row, fields, field is None, index, place):
            number = _rate(value, name, place)
            if number is None:
                unrated += 1
                continue
            lower = name in RANKS if lower_is_better is None or name == _VOTE else lower_is_better
            names[key] = (prompt_id, prompt, lower)
            groups[key].append((path, number))
    if not groups:
        wanted = f"{field!r}" if field else "a rating, a rank or a preference"
        known = ", ".join(sorted(seen)) or "none"
        raise ValueError(f"Expected images rated by {wanted}, but none has such a field. Fields: {known}.")
    pairs, ties = [], 0
    for key, images in groups.items():
        prompt_id, prompt, lower = names[key]
        for first, second in itertools.combinations(images, 2):
            if abs(first[1] - second[1]) <= min_gap or first[0] == second[0]:
                ties += 1
                continue
            better, worse = sorted((first, second), key=lambda image: image[1], reverse=not lower)
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
    prompts = len({(str(prompt_id), str(prompt)) for prompt_id, prompt, _ in names.values()})
    return pairs, Statistics(prompts, images_rated, len(pairs), ties, unrated)


def labels_from_annotations(
    rows: Iterable[Mapping[str, Any]], where: Callable[[int], str] = "row {}".format
) -> list[dict[str, Any]]:
    """Labelled images {path, label, prompt}, 1 being safe or good, from annotations as in UnsafeBench (Qu et al.,
    arXiv 2405.03486): {image or path, safety_label: 'Safe' or 'Unsafe', text}, or lists of images and labels. Images
    without a caption have an empty prompt.

    Args:
        where: names the row of an index in messages.

    Raises:
        ValueError: naming row and field, for a label that is neither, or an image that is no path.
    """
    items = []
    for index, row in enumerate(rows):
        place = where(index)
        field, images = _images(row)
        name = next((name for name in ("label", "safety_label") if name in row), "label")
        labels = _listed(row.get(name))
        if not isinstance(images, list) and not isinstance(labels, list):
            images, labels = [images], [labels]
        _same_length(field, images, name, labels, place)
        row = standard(row)
        prompt = row.get("prompt") or ""
        if not isinstance(prompt, str):
            raise ValueError(f"Expected a text for `prompt` in {place}, but got {_short(prompt)}.")
        for image, label in zip(images, labels):
            value = standard({"label": label})["label"]
            if isinstance(value, (list, dict)) or value not in (0, 1) or image is None:
                raise ValueError(
                    f"Expected an image with a label (Safe, Unsafe, 1 or 0), but {place} has {_short(label)} for "
                    f"`{name}` of {_short(image)}."
                )
            items.append({"path": _path(image, field, place), "label": int(value), "prompt": prompt})
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


def _rated(
    row: Mapping[str, Any], fields: Sequence[str], open_to_any: bool, index: int, place: str
) -> Iterator[tuple[tuple[Any, ...], Any, str, str, str, Any]]:
    """Of each image of a row: key of its group, id of the prompt, prompt, path, name of the rating, its value."""
    given, row = row, standard(row)
    prompt = row.get("prompt")
    if prompt is None:
        raise ValueError(f"Expected prompt in every row, but {place} has none: {_short(dict(row))}.")
    if comparison := next((one for one in _COMPARISONS if _has(row, one.first) and _has(row, one.second)), None):
        two = isinstance(prompt, list) and len(prompt) == 2 and all(isinstance(text, str) for text in prompt)
        if not isinstance(prompt, str) and not (two and comparison.votes is _paired):
            raise ValueError(f"Expected a text for `prompt` in {place}, but got {_short(prompt)}.")
        images = [(name, row[name]) for side in (comparison.first, comparison.second) if (name := _has(row, side))]
        votes = comparison.votes(row, place) or (None, None)
        for (name, image), vote in zip(images, votes):
            path = _path(image, name, place)
            yield (index,), row.get("prompt_id", row.get("ranking_id", index)), prompt, path, _VOTE, vote
        return
    if not isinstance(prompt, str):
        raise ValueError(f"Expected a text for `prompt` in {place}, but got {_short(prompt)}.")
    listing, images = _images(given)
    if images in (None, ""):
        raise ValueError(f"Expected path in every row, but {place} has none: {_short(dict(row))}.")
    prompt_id = row.get("prompt_id")
    name = next((name for name in fields if row.get(name) not in (None, "")), None)
    if not isinstance(images, list):
        value = None if name is None else row[name]
        if isinstance(_listed(value), list):
            raise ValueError(
                f"Expected one number for `{name}` in {place}, which has one image, but got {_short(value)}. Give "
                f"their mean, or as many images."
            )
        known = str(prompt_id or prompt)
        yield (known, prompt, name), known, prompt, _path(images, listing, place), name or fields[0], value
        return
    if name is None:
        if open_to_any:
            raise ValueError(
                f"Expected ranking in every row with a list of images, but {place} has: {_short(dict(row))}."
            )
        values: Any = [None] * len(images)
    else:
        values = _listed(row[name])
    _same_length(listing, images, name or fields[0], values, place)
    known = prompt_id or row.get("id") or prompt
    for image, value in zip(images, values):
        if image is None and value is None:
            continue
        yield (index,), str(known), prompt, _path(image, listing, place), name or fields[0], value


def _has(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if row.get(name) not in (None, "")), None)


def _images(row: Mapping[str, Any]) -> tuple[str, Any]:
    """Name of the field with the images of a row, and its value; a list if it is one, or the text of one."""
    name = _has(row, _IMAGE_LISTS) or "path"
    return name, _listed(row.get(name))


def _listed(value: Any) -> Any:
    """A list for a list, a tuple, or the text of one as in a cell of CSV; anything else as it is."""
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, str) and value.strip().startswith("[") and value.strip().endswith("]"):
        for parse in (json.loads, ast.literal_eval):
            try:
                found = parse(value.strip())
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if isinstance(found, list):
                return found
    return value


def _same_length(first: str, images: Any, second: str, values: Any, place: str) -> None:
    for name, value in ((first, images), (second, values)):
        if not isinstance(value, list):
            raise ValueError(
                f"Expected lists of one length for `{first}` and `{second}` in {place}, but `{name}` is "
                f"{_short(value)}."
            )
    if len(images) != len(values):
        raise ValueError(
            f"Expected lists of one length for `{first}` and `{second}` in {place}, but got {len(images)} and "
            f"{len(values)}."
        )


def _path(value: Any, name: str, place: str) -> str:
    if isinstance(value, Mapping) and isinstance(value.get("path"), str) and value.get("bytes") is None:
        value = value["path"]
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise ValueError(
            f"Expected the path of an image for `{name}` in {place}, but got {_short(value)}. Images themselves have "
            f"to be written to files first."
        )
    return str(value)


def _rate(value: Any, name: str, place: str) -> float | None:
    """A rating as a number; None where there is none."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.inf
    if math.isinf(number):
        raise ValueError(f"Expected a number for `{name}` in {place}, but got {_short(value)}.")
    return None if math.isnan(number) else number


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _pick_a_pic(row: Mapping[str, Any], place: str) -> tuple[Any, Any] | None:
    if row.get("has_label") in (False, "False", "false"):
        return None
    if row.get("label_0") not in (None, "") and row.get("label_1") not in (None, ""):
        return row["label_0"], row["label_1"]
    best = row.get("best_image_uid")
    if best in (None, ""):
        return None
    if best == "tie":
        return 0.5, 0.5
    found = tuple(float(best == row.get(name)) for name in ("image_0_uid", "image_1_uid"))
    if sum(found) != 1:
        raise ValueError(
            f"Expected the uid of one of the images for `best_image_uid` in {place}, but got {_short(best)}."
        )
    return found[0], found[1]


def _hpdv3(row: Mapping[str, Any], place: str) -> tuple[Any, Any] | None:
    """The first is the better; how many said so is in `choice_dist`, where it is given."""
    votes = _listed(row.get("choice_dist"))
    if votes in (None, "", []):
        return 1, 0
    counts = [_rate(vote, "choice_dist", place) for vote in votes] if isinstance(votes, list) else []
    if len(counts) != 2 or None in counts:
        raise ValueError(f"Expected two numbers for `choice_dist` in {place}, but got {_short(votes)}.")
    most, fewest = sorted(counts, reverse=True)  # type: ignore[type-var]
    return most, fewest


def _genai_bench(row: Mapping[str, Any], place: str) -> tuple[Any, Any] | None:
    votes = {"leftvote": (1, 0), "rightvote": (0, 1), "tievote": (1, 1), "bothbad_vote": (0, 0)}
    vote = row.get("vote_type")
    if vote in (None, ""):
        return None
    if not isinstance(vote, str) or vote not in votes:
        raise ValueError(f"Expected {', '.join(votes)} for `vote_type` in {place}, but got {_short(vote)}.")
    return votes[vote]


def _paired(row: Mapping[str, Any], place: str) -> tuple[Any, Any] | None:
    """Chosen and rejected already; their rates if the chosen has the higher."""
    rates = [_rate(row.get(name), name, place) for name in ("c_rate", "r_rate")]
    if rates[0] is not None and rates[1] is not None and rates[0] > rates[1]:
        return rates[0], rates[1]
    return 1, 0


def _numbered(index: int) -> tuple[str, ...]:
    return (f"image_{index}_path", f"image_{index}", f"jpg_{index}", f"image_{index}_url", f"image_{index}_uid")


_COMPARISONS = (
    _Comparison(_numbered(0), _numbered(1), _pick_a_pic),
    _Comparison(("path1",), ("path2",), _hpdv3),
    _Comparison(("left_image", "left_image_path"), ("right_image", "right_image_path"), _genai_bench),
    _Comparison(("chosen_path",), ("reject_path",), _paired),
)


def _number(value: float) -> int | float:
    return int(value) if value.is_integer() else value

"""What the replies of UnifiedReward's families say, beyond what `verdicts` reads. Every function returns None for a
reply that does not say it, never a worst score."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from ..verdicts import answered, better_image, json_objects, spoken


_NUMBER = r"[-+−]?\d+(?:[.,]\d+)?(?:[eE][-+]?\d+)?"
_SUM_TOLERANCE = 0.05
"""Scores of a pair that sum to 1 are written as decimals of floats, and sometimes rounded."""


def pair_shares(reply: str, axes: Sequence[str], what: str) -> dict[str, float | None]:
    """The shares of a pair on each axis: for 'Alignment Score:' with the lines 'Image 1: x' and 'Image 2: y' it is
    x / (x + y), in [0, 1].

    Scores outside [0, 1], or a pair whose sum is not 1 to within 0.05, are not read. The last block of an axis counts.

    Args:
        what: 'Image' or 'Video'.
    """
    text = spoken(reply)
    shares: dict[str, float | None] = {}
    for axis in axes:
        lines = rf"{what}\s*1\s*:\s*({_NUMBER})\s*[,;]?\s*{what}\s*2\s*:\s*({_NUMBER})(?![\d.,]*\d)"
        block = rf"{axis}\s+Score[^\n:]*:\s*{lines}"
        found = list(re.finditer(block, text, re.I))
        first, second = (_number(group) for group in found[-1].groups()) if found else (math.nan, math.nan)
        fits = min(first, second) >= 0.0 and max(first, second) <= 1.0 and abs(first + second - 1.0) <= _SUM_TOLERANCE
        shares[axis] = first / (first + second) if fits else None
    return shares


def two_scores(reply: str, highest: float = 25.0) -> tuple[float, float] | None:
    """The two scores of the last 'score: [a, b]', each in [0, highest]; the JSON around it may be malformed."""
    found = re.findall(r"\"?\bscores?\"?\s*[:=]\s*\[([^\[\]]*)\]", spoken(reply), re.I)
    parts = [part.strip() for part in found[-1].split(",")] if found else []
    if len(parts) != 2 or not all(re.fullmatch(_NUMBER, part) for part in parts):
        return None
    first, second = map(_number, parts)
    return (first, second) if min(first, second) >= 0.0 and max(first, second) <= highest else None


def signed_scores(reply: str) -> tuple[float, float] | None:
    """The scores of two edited images, of either sign: what stands after 'Image 1' and 'Image 2', or the only two
    decimals of the reply in their order."""
    text = spoken(reply)
    labelled = [
        re.findall(rf"image\s*{place}(?!\d)[^\n\d:=]{{0,40}}[:=]\s*({_NUMBER})(?!\s*/|[\d.,]*\d)", text, re.I)
        for place in (1, 2)
    ]
    if all(labelled):
        return _number(labelled[0][-1]), _number(labelled[1][-1])
    # Numbers of the pictures have no point.
    decimals = re.findall(r"(?<![\w.])[-+−]?\d+\.\d+(?![\w.]*\d)", text)
    return (_number(decimals[0]), _number(decimals[1])) if len(decimals) == 2 else None


def preference(scores: tuple[float, float] | None) -> float | None:
    """How probable it is that the first is better, sigmoid of the difference; the scale is the scores' own."""
    if scores is None:
        return None
    return 1.0 / (1.0 + math.exp(-max(min(scores[0] - scores[1], 500.0), -500.0)))


def flex_winner(reply: str, what: str) -> float | None:
    """1.0 if the `winner` of Flex's JSON is 'Image 1', 0.0 if it is 'Image 2'.

    Args:
        what: 'Image' or 'Video'.
    """
    for found in reversed(json_objects(reply)):
        winner = re.fullmatch(rf"\W*{what}\s*([12])\W*", str(found.get("winner", "")), re.I)
        if winner:
            return 1.0 if winner[1] == "1" else 0.0
    return None


def flex_points(reply: str) -> float | None:
    """The share of the points of Flex's JSON that the first of a pair gets, in [0, 1], over all of its sub-dimensions;
    None if one of them has no two scores in [0, 10] that sum to 10."""
    for found in reversed(json_objects(reply)):
        categories = found.get("categories")
        if not isinstance(categories, list):
            continue
        points = [_points(dim) for one in categories if isinstance(one, dict) for dim in one.get("dims") or [None]]
        known = [share for share in points if share is not None]
        return sum(known) / len(known) if known and len(known) == len(points) else None
    return None


def better_answer(reply: str) -> float | None:
    """The last verdict on two answers, or responses, as `better_image` reads those on images."""
    text = re.sub(r"\b(?:answer|response)\s*([12])\b", r"image \1", reply, flags=re.I)
    return better_image(re.sub(r"\b(first|second)\s+(?:answer|response)\b", r"\1 image", text, flags=re.I))


def in_answer_tag(reply: str) -> str:
    """What is inside the last <answer></answer>; '' without one, as in a reply that was cut."""
    return answered(reply) or ""


def _points(dim: Any) -> float | None:
    if not isinstance(dim, dict):
        return None
    scores = [dim.get("score_1"), dim.get("score_2")]
    if any(isinstance(score, bool) or not isinstance(score, int | float) for score in scores):
        return None
    first, second = (float(score) for score in scores)  # type: ignore[arg-type]
    return first / 10.0 if min(first, second) >= 0.0 and abs(first + second - 10.0) < 1e-6 else None


def _number(text: str) -> float:
    return float(text.replace(",", ".").replace("−", "-"))

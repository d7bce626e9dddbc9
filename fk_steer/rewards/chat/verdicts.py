"""What a judge's reply says. Every function returns None for a reply that does not say it, never a worst score."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any


GRADER_AXES = (
    "accuracy_to_prompt",
    "creativity_and_originality",
    "visual_quality_and_realism",
    "consistency_and_cohesion",
    "emotional_or_thematic_resonance",
)
OVERALL = "overall_score"
AXES = ("alignment", "coherence", "style")

_NUMBER = r"[\[(]?\s*(-?\d+(?:\.\d+)?)(?:\s*/\s*(\d+))?"


def final_score(reply: str) -> float | None:
    """UnifiedReward's point score, in [1, 5]: the last 'Final Score: s'."""
    return _labelled(reply, r"Final\s+Score")


def axis_scores(reply: str) -> dict[str, float | None]:
    """UnifiedReward's scores of alignment, coherence and style, each in [1, 5]."""
    return {axis: _labelled(reply, rf"{axis}\s+Score(?:\s*\(1\s*-\s*5\))?") for axis in AXES}


def better_image(reply: str) -> float | None:
    """The last verdict on a pair: 1.0 if image 1 is better, 0.0 if image 2 is, 0.5 for a tie."""
    verdicts = re.findall(
        r"Image\s*([12])\s+is\s+(?:(?!(?:not?|never)\b)\w+\s+){0,2}better\b|(?<!\bnot\s)(?<!n['’]t\s)(equally\s+good)",
        _plain(reply),
        re.IGNORECASE,
    )
    if not verdicts:
        return None
    number, _ = verdicts[-1]
    return {"1": 1.0, "2": 0.0, "": 0.5}[number]


def better_image_in_answer(reply: str) -> float | None:
    """The verdict inside the last <answer></answer>; the reasoning before it may say anything."""
    answers = re.findall(r"<answer>((?:(?!<answer>).)*?)</answer>", reply, re.DOTALL | re.IGNORECASE)
    return better_image(answers[-1]) if answers else None


def percentage(reply: str) -> float | None:
    """A probability in [0, 1] from the last 'Probability: p' in per cent."""
    value = _labelled(reply, "Probability", lowest=0.0, highest=100.0)
    return None if value is None else value / 100.0


def grades(reply: str) -> dict[str, float] | None:
    """The grader's scores by axis, clamped to [0, 10], from the first JSON object that holds any.

    A score may be a number, a text that begins with one, or an object with the key 'score'. Axes without one are left
    out; a missing overall score is the mean of the five axes if those are complete.
    """
    for found in _json_values(reply):
        entries = {re.sub(r"\W+", "_", str(key).strip().lower()): value for key, value in found.items()}
        scores = {axis: _grade(entries.get(axis)) for axis in (*GRADER_AXES, OVERALL)}
        known = {axis: score for axis, score in scores.items() if score is not None}
        if known:
            if OVERALL not in known and len(known) == len(GRADER_AXES):
                known[OVERALL] = sum(known.values()) / len(known)
            return known
    return None


def probability_of_yes(first_token: Mapping[str, float]) -> float | None:
    """P(the first token is 'Yes', in any case and with or without a space), in [0, 1].

    0 if only a form of 'No' is among the listed tokens, None if neither is: the reply was no yes or no.
    """
    by_word: dict[str, float] = {}
    for token, logprob in first_token.items():
        word = token.strip().strip("▁Ġ").lower()
        by_word[word] = by_word.get(word, 0.0) + math.exp(logprob)
    if "yes" not in by_word and "no" not in by_word:
        return None
    return min(by_word.get("yes", 0.0), 1.0)


def _labelled(reply: str, label: str, lowest: float = 1.0, highest: float = 5.0) -> float | None:
    found = re.findall(rf"{label}\s*:\s*{_NUMBER}", _plain(reply), re.IGNORECASE)
    if not found:
        return None
    score, scale = found[-1]
    fits = lowest <= float(score) <= highest and (not scale or float(scale) == highest)
    return float(score) if fits else None


def _plain(reply: str) -> str:
    """Without the asterisks of bold type."""
    return reply.replace("*", "")


def _json_values(reply: str) -> list[dict[str, Any]]:
    """The JSON objects in a text, the outermost of each, with what stands around them (code fences, lists) ignored."""
    decoder, values, start = json.JSONDecoder(), [], reply.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(reply, start)
            values.append(value)
        except (ValueError, RecursionError):
            end = start + 1
        start = reply.find("{", end)
    return values


def _grade(entry: Any) -> float | None:
    if isinstance(entry, Mapping):
        entry = entry.get("score")
    if isinstance(entry, str) and (number := re.match(r"\s*-?\d+(?:\.\d+)?", entry)):
        entry = float(number[0])
    if isinstance(entry, bool) or not isinstance(entry, int | float) or not math.isfinite(entry):
        return None
    return min(max(float(entry), 0.0), 10.0)

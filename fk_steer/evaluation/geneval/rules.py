"""GenEval's rules: from detections and prompt metadata to a verdict.

Reimplements the rules of the GenEval evaluator (Ghosh et al., arXiv 2310.11513; djghosh13/geneval,
evaluation/evaluate_images.py) apart from any detector, so that they serve photographs and the bundled world alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """One detected object.

    Attributes:
        box: (left, top, right, bottom) in pixels.
        score: confidence in [0, 1].
        colour: its colour, if the detector says; otherwise `evaluate` asks.
    """

    box: Box
    score: float = 1.0
    colour: str | None = None


@dataclass(frozen=True)
class Condition:
    """One requirement of a prompt: what it says, and the degree in [0, 1] to which it is met; 1 is met."""

    text: str
    degree: float

    @property
    def met(self) -> bool:
        return self.degree == 1.0


@dataclass(frozen=True)
class Verdict:
    """Whether an image shows what its prompt says, requirement by requirement."""

    conditions: tuple[Condition, ...]

    @property
    def correct(self) -> bool:
        return all(condition.met for condition in self.conditions)

    @property
    def reason(self) -> str:
        """The requirements that are not met, separated by '; '."""
        return "; ".join(condition.text for condition in self.conditions if not condition.met)


def relations(box: Box, target: Box, overlap: float = 0.1) -> set[str]:
    """In which relations `box` stands to `target`: any of 'left of', 'right of', 'above', 'below'.

    The offset between the centres, shortened by `overlap` times the sum of the boxes' sizes along each axis, must be
    more than half of the full distance along that axis.
    """
    (ax, ay), (bx, by) = (((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in (box, target))
    offset = np.array([ax - bx, ay - by])
    sizes = np.array([box[2] - box[0] + target[2] - target[0], box[3] - box[1] + target[3] - target[1]])
    revised = np.maximum(np.abs(offset) - overlap * sizes, 0) * np.sign(offset)
    if (np.abs(revised) < 1e-3).all():
        return set()
    dx, dy = revised / np.linalg.norm(offset)
    named = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, holds in named.items() if holds}


def evaluate(
    metadata: Mapping[str, Any],
    detections: Mapping[str, Sequence[Detection]],
    colour_of: Callable[[str, Detection], str] | None = None,
) -> Verdict:
    """Judge an image by GenEval's rules.

    Args:
        metadata: a line of GenEval's metadata: `include` requires at least `count` objects of a `class`, all of them of
            `color` and in `position` to every object of an earlier entry; `exclude` forbids `count` or more.
        detections: class -> its detections, already cut at the detector's threshold; more confident ones count first.
        colour_of: (class, detection) -> colour, for detections that do not carry theirs.
    """
    conditions: list[Condition] = []
    matched: list[Sequence[Detection] | None] = []
    for entry in metadata.get("include", []):
        name, count = entry["class"], entry["count"]
        found = sorted(detections.get(name, ()), key=lambda detection: -detection.score)[:count]
        own = [Condition(f"expected {count} {name}, found {len(found)}", len(found) / count)]
        if "color" in entry:
            colours = [_colour(name, detection, colour_of) for detection in found]
            wrong = ", ".join(colour for colour in colours if colour != entry["color"]) or "none"
            own.append(
                Condition(f"expected {entry['color']} {name}, found {wrong}", colours.count(entry["color"]) / count)
            )
        if "position" in entry:
            relation, index = entry["position"]
            target = matched[index]
            pairs = [(a, b) for a in found for b in target] if target is not None and own[0].met else []
            holding = sum(relation in relations(a.box, b.box) for a, b in pairs)
            own.append(Condition(f"expected {name} {relation} target", holding / len(pairs) if pairs else 0.0))
        conditions += own
        matched.append(found if all(condition.met for condition in own) else None)
    for entry in metadata.get("exclude", []):
        name, count = entry["class"], entry["count"]
        found_number = len(detections.get(name, ()))
        conditions.append(
            Condition(
                f"expected fewer than {count} {name}, found {found_number}",
                1.0 if found_number < count else (count - 1) / found_number,
            )
        )
    return Verdict(tuple(conditions))


def _colour(name: str, detection: Detection, colour_of: Callable[[str, Detection], str] | None) -> str:
    if detection.colour is not None:
        return detection.colour
    if colour_of is None:
        raise ValueError(f"A detected {name} has no colour and there is no `colour_of` to ask.")
    return colour_of(name, detection)

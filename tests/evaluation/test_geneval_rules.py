"""GenEval's rules on synthetic detections, task by task, and its official metadata."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from fk_steer.evaluation.geneval.rules import Detection, evaluate, relations


def box(x: float, y: float, size: float = 10.0) -> tuple[float, float, float, float]:
    return (x - size / 2, y - size / 2, x + size / 2, y + size / 2)


def at(x: float, y: float, colour: str | None = None, score: float = 1.0) -> Detection:
    return Detection(box(x, y), score, colour)


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        ((-30, 0), {"left of"}),
        ((30, 0), {"right of"}),
        ((0, -30), {"above"}),
        ((0, 30), {"below"}),
        ((30, -30), {"right of", "above"}),
        ((-30, 10), {"left of"}),
        ((0, 0), set()),
        # Offsets within a tenth of the summed sizes do not count, and shorten those beyond.
        ((2, 1), set()),
        ((3.9, 0), set()),
        ((4.1, 0), {"right of"}),
    ],
)
def test_relations(offset, expected):
    assert relations(box(50 + offset[0], 50 + offset[1]), box(50, 50)) == expected


def test_relation_uses_the_unrevised_distance():
    """(10, 12) is revised to (8, 10); divided by the full distance 15.6 the horizontal part is 0.51."""
    assert relations(box(60, 62), box(50, 50)) == {"right of", "below"}
    assert relations(box(59, 62), box(50, 50)) == {"below"}


SINGLE = {"tag": "single_object", "include": [{"class": "bench", "count": 1}]}
TWO = {"tag": "two_object", "include": [{"class": "bench", "count": 1}, {"class": "cow", "count": 1}]}
COUNTING = {"tag": "counting", "include": [{"class": "cow", "count": 3}], "exclude": [{"class": "cow", "count": 4}]}
COLOURS = {"tag": "colors", "include": [{"class": "cow", "count": 1, "color": "blue"}]}
BINDING = {
    "tag": "color_attr",
    "include": [{"class": "cow", "count": 1, "color": "blue"}, {"class": "bench", "count": 1, "color": "red"}],
}
POSITION = {
    "tag": "position",
    "include": [{"class": "bench", "count": 1}, {"class": "cow", "count": 1, "position": ["left of", 0]}],
}


@pytest.mark.parametrize(
    ("metadata", "detections", "correct"),
    [
        (SINGLE, {"bench": [at(0, 0)]}, True),
        (SINGLE, {"bench": [at(0, 0), at(9, 9)], "cow": [at(3, 3)]}, True),
        (SINGLE, {"cow": [at(0, 0)]}, False),
        (TWO, {"bench": [at(0, 0)], "cow": [at(30, 0)]}, True),
        (TWO, {"bench": [at(0, 0)]}, False),
        (COUNTING, {"cow": [at(0, 0), at(30, 0), at(60, 0)]}, True),
        (COUNTING, {"cow": [at(0, 0), at(30, 0)]}, False),
        (COUNTING, {"cow": [at(0, 0), at(30, 0), at(60, 0), at(90, 0)]}, False),
        (COLOURS, {"cow": [at(0, 0, "blue")]}, True),
        (COLOURS, {"cow": [at(0, 0, "red")]}, False),
        # Only as many detections as are asked for are looked at, the most confident first.
        (COLOURS, {"cow": [at(0, 0, "red", 0.5), at(30, 0, "blue", 0.9)]}, True),
        (COLOURS, {"cow": [at(0, 0, "red", 0.9), at(30, 0, "blue", 0.5)]}, False),
        (BINDING, {"cow": [at(0, 0, "blue")], "bench": [at(30, 0, "red")]}, True),
        (BINDING, {"cow": [at(0, 0, "red")], "bench": [at(30, 0, "blue")]}, False),
        (POSITION, {"bench": [at(50, 50)], "cow": [at(10, 50)]}, True),
        (POSITION, {"bench": [at(50, 50)], "cow": [at(90, 50)]}, False),
        (POSITION, {"cow": [at(10, 50)]}, False),
        (POSITION, {"bench": [at(50, 50)]}, False),
    ],
)
def test_tasks(metadata, detections, correct):
    verdict = evaluate(metadata, detections)
    assert verdict.correct is correct
    assert bool(verdict.reason) is not correct


def test_every_pair_must_stand_in_the_relation():
    metadata = {"include": [{"class": "bench", "count": 2}, {"class": "cow", "count": 1, "position": ["left of", 0]}]}
    assert evaluate(metadata, {"bench": [at(50, 50), at(90, 50)], "cow": [at(10, 50)]}).correct
    verdict = evaluate(metadata, {"bench": [at(50, 50), at(90, 50)], "cow": [at(70, 50)]})
    assert not verdict.correct
    assert verdict.conditions[-1].degree == 0.5


def test_a_target_of_the_wrong_colour_is_no_target():
    metadata = {
        "include": [
            {"class": "bench", "count": 1, "color": "red"},
            {"class": "cow", "count": 1, "position": ["above", 0]},
        ]
    }
    placed = {"cow": [at(50, 10)]}
    assert evaluate(metadata, {**placed, "bench": [at(50, 50, "red")]}).correct
    assert evaluate(metadata, {**placed, "bench": [at(50, 50, "blue")]}).conditions[-1].degree == 0.0


def test_too_few_targets_are_no_target():
    metadata = {"include": [{"class": "bench", "count": 2}, {"class": "cow", "count": 1, "position": ["left of", 0]}]}
    verdict = evaluate(metadata, {"bench": [at(50, 50)], "cow": [at(10, 50)]})
    assert [condition.met for condition in verdict.conditions] == [False, True, False]


def test_what_is_excluded_needs_no_inclusion():
    metadata = {"exclude": [{"class": "cow", "count": 2}]}
    assert evaluate(metadata, {"cow": [at(0, 0)]}).correct
    assert evaluate(metadata, {}).correct
    assert evaluate(metadata, {"cow": [at(0, 0), at(30, 0)]}).reason == "expected fewer than 2 cow, found 2"
    none_at_all = {"exclude": [{"class": "cow", "count": 1}]}
    assert evaluate(none_at_all, {}).correct
    assert evaluate(none_at_all, {"cow": [at(0, 0)]}).conditions[0].degree == 0.0


def test_degrees():
    assert evaluate(COUNTING, {"cow": [at(0, 0), at(30, 0)]}).conditions[0].degree == pytest.approx(2 / 3)
    assert evaluate(COUNTING, {"cow": [at(x, 0) for x in range(6)]}).conditions[1].degree == 0.5


def test_colours_are_asked_for_only_where_needed():
    asked = []

    def colour_of(name, detection):
        asked.append(name)
        return "blue"

    assert evaluate(COLOURS, {"cow": [at(0, 0)], "bench": [at(5, 5)]}, colour_of).correct
    assert asked == ["cow"]
    with pytest.raises(ValueError, match="no colour"):
        evaluate(COLOURS, {"cow": [at(0, 0)]})


OFFICIAL = Path(os.environ.get("FK_STEER_DATA", Path(__file__).parents[3] / "shared" / "data")) / (
    "geneval_evaluation_metadata.jsonl"
)


@pytest.mark.skipif(not OFFICIAL.exists(), reason=f"{OFFICIAL} is not there")
def test_official_metadata():
    lines = [json.loads(line) for line in OFFICIAL.read_text().splitlines()]
    assert Counter(line["tag"] for line in lines) == {
        "single_object": 80,
        "two_object": 99,
        "counting": 80,
        "colors": 94,
        "position": 100,
        "color_attr": 100,
    }
    for line in lines:
        places = {"left of": (-40, 0), "right of": (40, 0), "above": (0, -40), "below": (0, 40)}
        detections: dict[str, list[Detection]] = {}
        for entry in line["include"]:
            relation = entry.get("position", [None])[0]
            for number in range(entry["count"]):
                x, y = places.get(relation, (90 * len(detections), 0))
                detections.setdefault(entry["class"], []).append(at(x + 20 * number, y, entry.get("color")))
        assert evaluate(line, detections).correct
        assert not evaluate(line, {}).correct

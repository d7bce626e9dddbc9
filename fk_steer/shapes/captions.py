"""Captions in GenEval's six tasks and wording, their metadata, and the split between training and evaluation.

Prompt metadata follows GenEval's `evaluation_metadata.jsonl` (Ghosh et al., arXiv 2310.11513), so that one runner and
one rule engine serve both. Held out from training, and all that evaluation uses (single objects apart, of which there
are only eight):

| task | held out |
|---|---|
| colors, color_attr | two colours of every shape (16 of 64 pairs): no training scene shows them |
| two_object | 8 of the 28 pairs of different shapes: no training scene shows both |
| counting | one of the counts 2, 3, 4 of every shape (8 of 24): no training scene shows it |
| position | for every other pair of shapes one relation and its converse: no training caption says it |
| color_attr | 15% of the remaining combinations: no training caption says them |
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..evaluation.geneval.rules import Detection, evaluate
from .world import COLOURS, SHAPES, Scene, bounding_box, sample_scene


TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = {"right of": 0.0, "above": 90.0, "left of": 180.0, "below": 270.0}
CONVERSE = {"right of": "left of", "left of": "right of", "above": "below", "below": "above"}
NUMBERS = {2: "two", 3: "three", 4: "four"}
PLURALS = {name: f"{name}es" if name == "cross" else f"{name}s" for name in SHAPES}


@dataclass(frozen=True)
class Mention:
    """What a caption says of an object; None for what it leaves open."""

    shape: str
    colour: str | None = None
    count: int = 1


def caption(first: Mention, second: Mention | None = None, relation: str | None = None) -> str:
    """GenEval's wording. With a relation the first object stands in it to the second."""
    if second is None:
        if first.count > 1:
            return f"a photo of {NUMBERS[first.count]} {PLURALS[first.shape]}"
        return f"a photo of {_noun(first)}"
    return f"a photo of {_noun(first)} {relation or 'and'} {_noun(second)}"


def metadata(tag: str, first: Mention, second: Mention | None = None, relation: str | None = None) -> dict[str, Any]:
    """One line of GenEval's metadata for the caption of the same arguments."""
    # GenEval lists the reference object of a relation first.
    mentions = [first] if second is None else [second, first] if relation else [first, second]
    include = []
    for mention in mentions:
        entry: dict[str, Any] = {"class": mention.shape, "count": mention.count}
        if mention.colour is not None:
            entry["color"] = mention.colour
        include.append(entry)
    if relation is not None:
        include[1]["position"] = [relation, 0]
    line: dict[str, Any] = {"tag": tag, "include": include}
    if tag == "counting":
        line["exclude"] = [{"class": first.shape, "count": first.count + 1}]
    return {**line, "prompt": caption(first, second, relation)}


def parse(text: str) -> dict[str, Any]:
    """The metadata of a caption, the inverse of `caption`.

    Raises:
        ValueError: for a text that is not a caption of this world.
    """
    match = _GRAMMAR.fullmatch(" ".join(text.lower().split()))
    if match is None:
        raise ValueError(f"{text!r} is not a caption of the bundled world, such as 'a photo of a red star'.")
    if match["number"]:
        count = next(count for count, word in NUMBERS.items() if word == match["number"])
        shape = next(shape for shape, plural in PLURALS.items() if plural == match["plural"])
        return metadata("counting", Mention(shape, count=count))
    first = Mention(match["shape1"], match["colour1"])
    if match["shape2"] is None:
        return metadata("single_object" if first.colour is None else "colors", first)
    second = Mention(match["shape2"], match["colour2"])
    if match["relation"] != "and":
        return metadata("position", first, second, match["relation"])
    return metadata("two_object" if first.colour is None and second.colour is None else "color_attr", first, second)


def _grammar() -> re.Pattern[str]:
    def one_of(words: Iterable[str]) -> str:
        return "|".join(words)

    def noun(index: int) -> str:
        return f"an? (?:(?P<colour{index}>{one_of(COLOURS)}) )?(?P<shape{index}>{one_of(SHAPES)})"

    many = f"(?P<number>{one_of(NUMBERS.values())}) (?P<plural>{one_of(PLURALS.values())})"
    link = f" (?P<relation>and|{one_of(RELATIONS)}) "
    return re.compile(f"(?:a photo of )?(?:{many}|{noun(1)}(?:{link}{noun(2)})?)")


_GRAMMAR = _grammar()


def detections_of(scene: Scene) -> dict[str, list[Detection]]:
    """What a perfect detector would find."""
    found: dict[str, list[Detection]] = {}
    for item in scene.objects:
        found.setdefault(item.name, []).append(Detection(bounding_box(item), 1.0, item.colour))
    return found


def is_true(line: dict[str, Any], detections: dict[str, list[Detection]]) -> bool:
    """Whether metadata holds of a scene's detections, by GenEval's rules."""
    present = all(entry["class"] in detections for entry in line["include"])
    return present and evaluate(line, detections).correct


# The held-out combinations.

_COLOURS = tuple(COLOURS)
PAIRS = tuple(itertools.combinations(SHAPES, 2))
HELD_OUT_COLOURS = frozenset(
    (shape, _COLOURS[(3 * index + offset) % len(_COLOURS)]) for index, shape in enumerate(SHAPES) for offset in (1, 6)
)
HELD_OUT_PAIRS = frozenset(
    tuple(sorted((SHAPES[i], SHAPES[(i + step) % 8]), key=SHAPES.index)) for i, step in zip(range(8), [3, 1] * 4)
)
HELD_OUT_COUNTS = frozenset((shape, 2 + index % 3) for index, shape in enumerate(SHAPES))


def _choice(*parts: str) -> int:
    """A number that depends on the words alone."""
    return zlib.crc32(" ".join(parts).encode())


def relation_is_held_out(first: str, relation: str, second: str) -> bool:
    a, b = sorted((first, second), key=SHAPES.index)
    if a != first:
        relation = CONVERSE[relation]
    return relation == tuple(RELATIONS)[_choice(a, b) % 4]


def binding_is_held_out(first: Mention, second: Mention) -> bool:
    parts = sorted((first, second), key=lambda mention: SHAPES.index(mention.shape))
    return _choice(*(f"{mention.colour} {mention.shape}" for mention in parts)) % 100 < 15


def is_held_out(line: dict[str, Any]) -> bool:
    """Whether no training caption has this metadata's meaning."""
    entries = line["include"]
    if any((entry["class"], entry.get("color")) in HELD_OUT_COLOURS for entry in entries):
        return True
    if line["tag"] == "counting":
        return (entries[0]["class"], entries[0]["count"]) in HELD_OUT_COUNTS
    if len(entries) < 2:
        return False
    one, other = (Mention(entry["class"], entry.get("color")) for entry in entries)
    if tuple(sorted((one.shape, other.shape), key=SHAPES.index)) in HELD_OUT_PAIRS:
        return True
    if "position" in entries[1]:
        # Metadata names the reference object first: the second one stands in the relation to it.
        return relation_is_held_out(other.shape, entries[1]["position"][0], one.shape)
    return None not in (one.colour, other.colour) and binding_is_held_out(one, other)


def evaluation_prompts(per_task: int = 40) -> list[dict[str, Any]]:
    """Held-out prompts as GenEval metadata, `per_task` for each of the six tasks, in the order of `TASKS`.

    Tasks with fewer distinct prompts repeat them (eight single objects five times, at 40 per task); every entry is
    generated with noise of its own. The list is always the same.
    """
    return _drawn(_candidates(held_out=True), per_task, seed=0)


def tuning_prompts(per_task: int = 40) -> list[dict[str, Any]]:
    """Prompts to choose settings on: like those of `evaluation_prompts`, but of combinations that training sees, so
    that none but the single objects is in both."""
    return _drawn(_candidates(held_out=False), per_task, seed=1)


def training_prompts(count: int, shares: Mapping[str, float], seed: int = 2) -> list[dict[str, Any]]:
    """Prompts to make training data from, of combinations that training sees, as GenEval metadata.

    None is among the first twenty `tuning_prompts` of its task where the task has others: settings are then chosen
    on prompts that are new. Counting and single objects have no others.

    Args:
        count: of prompts, of which many recur in tasks with few.
        shares: of the tasks among them.
    """
    tuning = {line["prompt"] for line in tuning_prompts(20)}
    lines = {}
    for task, some in _candidates(held_out=False).items():
        others = [line for line in some if line["prompt"] not in tuning]
        lines[task] = others if len(others) > len(some) / 3 else some
    rng = np.random.default_rng(seed)
    orders = {task: list(rng.permutation(len(some))) for task, some in lines.items()}
    tasks = rng.choice(list(shares), size=count, p=list(shares.values()))
    taken = dict.fromkeys(lines, 0)
    found = []
    for task in tasks:
        order = orders[task]
        found.append(lines[task][order[taken[task] % len(order)]])
        taken[task] += 1
    return found


def _drawn(candidates: dict[str, list[dict[str, Any]]], per_task: int, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    prompts = []
    for task in TASKS:
        order = rng.permutation(len(candidates[task]))
        prompts += [candidates[task][order[index % len(order)]] for index in range(per_task)]
    return prompts


def _candidates(held_out: bool) -> dict[str, list[dict[str, Any]]]:
    """Task -> metadata of its captions that are held out, or of those that are not."""
    seen_pairs = [pair for pair in PAIRS if pair not in HELD_OUT_PAIRS]
    seen_colours = [(s, c) for s in SHAPES for c in COLOURS if (s, c) not in HELD_OUT_COLOURS]
    seen_counts = [(s, n) for s in SHAPES for n in (2, 3, 4) if (s, n) not in HELD_OUT_COUNTS]
    pairs = sorted(HELD_OUT_PAIRS) if held_out else seen_pairs
    colours = sorted(HELD_OUT_COLOURS) if held_out else seen_colours
    counts = sorted(HELD_OUT_COUNTS) if held_out else seen_counts
    candidates: dict[str, list[dict[str, Any]]] = {task: [] for task in TASKS}
    candidates["single_object"] = [metadata("single_object", Mention(shape)) for shape in SHAPES]
    for a, b in pairs:
        candidates["two_object"] += [
            metadata("two_object", Mention(a), Mention(b)),
            metadata("two_object", Mention(b), Mention(a)),
        ]
    candidates["counting"] = [metadata("counting", Mention(s, count=n)) for s, n in counts]
    candidates["colors"] = [metadata("colors", Mention(s, c)) for s, c in colours]
    for first, second in seen_pairs + [(b, a) for a, b in seen_pairs]:
        candidates["position"] += [
            metadata("position", Mention(first), Mention(second), relation)
            for relation in RELATIONS
            if relation_is_held_out(first, relation, second) == held_out
        ]
    for (s1, c1), (s2, c2) in itertools.permutations(seen_colours, 2):
        one, other = Mention(s1, c1), Mention(s2, c2)
        pair = tuple(sorted((s1, s2), key=SHAPES.index))
        if s1 == s2 or c1 == c2 or pair in HELD_OUT_PAIRS:
            continue
        if binding_is_held_out(one, other) == held_out:
            candidates["color_attr"].append(metadata("color_attr", one, other))
    return candidates


def sample_pair(rng: np.random.Generator, everything: bool = False) -> tuple[Scene, str]:
    """A training scene and one of the captions that are true of it: 30% one object, 40% two, 30% two to four equal.

    Args:
        everything: held-out combinations too, for training what judges images and not what draws them.
    """
    kind = rng.random()
    if kind < 0.3:
        shape, colour = _kind(rng, everything)
        mention = Mention(shape, colour if rng.random() < 0.6 else None)
        return sample_scene(rng, [(shape, colour)]), caption(mention)
    if kind < 0.6:
        while True:
            shape, count = SHAPES[rng.integers(8)], int(rng.integers(2, 5))
            if everything or (shape, count) not in HELD_OUT_COUNTS:
                break
        colours = [_kind(rng, everything, shape)[1] for _ in range(count)]
        if rng.random() < 0.5:
            colours = colours[:1] * count
        return sample_scene(rng, [(shape, colour) for colour in colours]), caption(Mention(shape, count=count))
    return _sample_two(rng, everything)


def _sample_two(rng: np.random.Generator, everything: bool) -> tuple[Scene, str]:
    while True:
        (s1, c1), (s2, c2) = _kind(rng, everything), _kind(rng, everything)
        if s1 != s2 and (everything or tuple(sorted((s1, s2), key=SHAPES.index)) not in HELD_OUT_PAIRS):
            break
    how = rng.random()
    if how < 0.35:
        scene = sample_scene(rng, [(s1, c1), (s2, c2)])
        return scene, caption(Mention(s1), Mention(s2))
    if how < 0.6:
        relation = str(rng.choice([r for r in RELATIONS if everything or not relation_is_held_out(s1, r, s2)]))
        # The reference object is placed first.
        scene = sample_scene(rng, [(s2, c2), (s1, c1)], RELATIONS[relation] + rng.uniform(-35, 35))
        return scene, caption(Mention(s1), Mention(s2), relation)
    scene = sample_scene(rng, [(s1, c1), (s2, c2)])
    first, second = Mention(s1, c1), Mention(s2, c2)
    if not everything and binding_is_held_out(first, second):
        return scene, caption(Mention(s1), Mention(s2))
    return scene, caption(first, second)


def _kind(rng: np.random.Generator, everything: bool, shape: str | None = None) -> tuple[str, str]:
    while True:
        kind = (shape or SHAPES[rng.integers(8)], _COLOURS[rng.integers(8)])
        if everything or kind not in HELD_OUT_COLOURS:
            return kind


def _noun(mention: Mention) -> str:
    words = mention.shape if mention.colour is None else f"{mention.colour} {mention.shape}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"

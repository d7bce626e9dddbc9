"""The record of a prompt: all that was said of its candidates, and the pairs that are kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from llava_reward_guide.images import ImageError

from .candidates import Candidate
from .dataset import Row, Side
from .judging import OfPrompt, Recorded
from .rules import OUTCOMES, Judge, Sifted


def decided(
    group: Sequence[Candidate],
    see: Callable[[Candidate], Any],
    judge_of: Callable[[Sequence[Candidate], Sequence[Any]], OfPrompt | Recorded],
    sift: Callable[[int, Judge], Sifted],
) -> dict[str, Any]:
    """The record of a prompt, made.

    Args:
        group: its candidates.
        see: what opens one, see `opened`.
        judge_of: what decides about candidates, given them and what is seen of each.
        sift: the pairs of so many candidates that are kept, by what the judge says.

    Raises:
        RewardError: see `OfPrompt.scores`.
    """
    hashes = [hashlib.sha256(one.path.read_bytes()).hexdigest() for one in group]
    known: set[tuple[str, str | None]] = set()
    places: list[int] = []
    items: list[Any] = []
    copies = unreadable = 0
    for place, (one, sha256) in enumerate(zip(group, hashes)):
        if (sha256, one.answer) in known:
            # Of resampled particles some are the same image to the last bit.
            copies += 1
            continue
        known.add((sha256, one.answer))
        try:
            items.append(see(one))
        except ImageError:
            unreadable += 1
            continue
        places.append(place)
    judge = judge_of([group[place] for place in places], items)
    sifted = sift(len(places), judge) if len(places) > 1 else Sifted((), {})
    said = judge.verdicts
    numbers = {place: number for number, place in enumerate(places)}
    return {
        "prompt": group[0].prompt,
        "candidates": [
            {
                "name": one.name,
                "sha256": sha256,
                "seed": one.seed,
                "model": one.model,
                "score": said.scores.get(numbers.get(place, -1)),
                "reply": said.replies.get(numbers.get(place, -1)),
            }
            for place, (one, sha256) in enumerate(zip(group, hashes))
        ],
        "comparisons": [
            {
                "first": places[first],
                "second": places[second],
                "forward": verdict.forward,
                "backward": verdict.backward,
                "replies": list(said.spoken.get((first, second), (None, None))),
            }
            for (first, second), verdict in said.comparisons.items()
        ],
        "pairs": [
            {**asdict(pair), "chosen": places[pair.chosen], "rejected": places[pair.rejected]} for pair in sifted.pairs
        ],
        "outcomes": {outcome: sifted.outcomes.get(outcome, 0) for outcome in OUTCOMES},
        "copies": copies,
        "unreadable images": unreadable,
        "failed requests": said.failed,
        "template": said.template,
    }


def rows_of(
    number: int, group: Sequence[Candidate], record: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[Row]:
    """The rows of the dataset for the pairs of a prompt that are kept.

    Args:
        number: of the prompt.
        group: its candidates.
        record: of the prompt.
        settings: of the run.
    """
    rows = []
    for rank, pair in enumerate(record["pairs"]):
        sides = [
            Side(
                group[place].path,
                record["candidates"][place]["sha256"],
                group[place].name,
                group[place].seed,
                group[place].model,
                score,
                record["candidates"][place]["reply"],
                group[place].answer,
            )
            for place, score in (
                (pair["chosen"], pair["chosen_score"]),
                (pair["rejected"], pair["rejected_score"]),
            )
        ]
        rows.append(
            Row(
                f"{number:05d}-{rank:03d}",
                record["prompt"],
                sides[0],
                sides[1],
                pair["margin"],
                pair["probability"],
                settings["rule"],
                settings["recorded"] or settings["judge"],
                json.dumps(settings["judge_options"], sort_keys=True),
                record["template"],
                tuple(_replies(record["comparisons"], pair["chosen"], pair["rejected"])),
            )
        )
    return rows


def _replies(comparisons: Sequence[Mapping[str, Any]], chosen: int, rejected: int) -> list[str]:
    """What was said of the two; where they were not compared, of either and its own opponent."""
    sides = [{one["first"], one["second"]} for one in comparisons]
    both = [one for one, players in zip(comparisons, sides) if players == {chosen, rejected}]
    either = [one for one, players in zip(comparisons, sides) if players & {chosen, rejected}]
    return [reply for one in both or either for reply in one["replies"] if reply is not None]


def checked(values: dict[str, Any], group: Sequence[Candidate]) -> dict[str, Any]:
    """A record that was read, if it is one of a prompt with these candidates.

    Raises:
        ValueError: if it is another's.
        KeyError: if something is missing in it.
    """
    names = [one["name"] for one in values["candidates"]]
    if values["prompt"] != group[0].prompt or names != [one.name for one in group]:
        raise ValueError("of another prompt")
    for name in ("pairs", "outcomes", "copies", "unreadable images", "failed requests", "comparisons"):
        values[name]
    return values

"""Benchmarks of judges beside those in `data`: VL-RewardBench, GenAI-Bench's videos, VideoGen-RewardBench and MMRB2."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .judgements import JudgeData, Judgement, Kind, Subject


@dataclass(frozen=True)
class Left:
    """An entry that no judge of ours can be shown, and why."""

    reason: str


@dataclass(frozen=True)
class Benchmark:
    """A format.

    Attributes:
        kind: what was asked.
        fields: that tell the format.
        convert: entry -> subject and judgement, or why it is left out.
        groupings: see `JudgeData`.
    """

    kind: Kind
    fields: frozenset[str]
    convert: Callable[[dict[str, Any]], tuple[Subject, Judgement] | Left]
    groupings: tuple[str, ...] = ()

    def collected(self, name: str, entries: Sequence[tuple[Subject, Judgement] | Left]) -> JudgeData:
        """The data of converted entries. Where they are of several subjects, those of the most frequent one are kept.

        Raises:
            ValueError: if none is left.
        """
        left = Counter(entry.reason for entry in entries if isinstance(entry, Left))
        kept = [entry for entry in entries if not isinstance(entry, Left)]
        if not kept:
            reasons = "; ".join(f"{number} {reason}" for reason, number in left.items())
            raise ValueError(f"There is nothing in it that a reward can judge: {reasons}.")
        ((subject, _),) = Counter(of for of, _ in kept).most_common(1)
        left.update(f"are {of.value}, not {subject.value}" for of, _ in kept if of is not subject)
        judgements = [judgement for of, judgement in kept if of is subject]
        return JudgeData(name, self.kind, judgements, subject, self.groupings, dict(left))


def vote_of(vote_type: str) -> tuple[float, float]:
    """GenAI-Bench's vote on what is left and right.

    Raises:
        ValueError: for an unknown one.
    """
    answers = {"left": (1.0, 0.0), "right": (0.0, 1.0), "tie": (0.0, 0.0), "both": (0.0, 0.0)}
    found = [human for word, human in answers.items() if word in vote_type.lower()]
    if not found:
        raise ValueError(f"Unknown vote {vote_type!r}. Known: votes with {', '.join(answers)} in their name.")
    return found[0]


def _genai_bench_video(entry: dict[str, Any]) -> tuple[Subject, Judgement]:
    """UnifiedReward's list of it names the sides the other way round than the data set on the hub."""
    videos = tuple(entry.get(f"{side}_video") or entry[f"video_{side}"] for side in ("left", "right"))
    human = vote_of(entry["vote_type"])
    return Subject.videos, Judgement(videos, (entry["prompt"],) * 2, human, entry["prompt"])


def _videogen_reward_bench(entry: dict[str, Any]) -> tuple[Subject, Judgement]:
    answers = {"A": (1.0, 0.0), "B": (0.0, 1.0), "same": (0.0, 0.0)}
    overall = str(entry["Overall"]).strip()
    if overall not in answers:
        raise ValueError(f"Expected `Overall` to be A, B or same, but got {entry['Overall']!r}.")
    videos = (entry["path_A"], entry["path_B"])
    return Subject.videos, Judgement(videos, (entry["prompt"],) * 2, answers[overall], entry["prompt"])


GENERAL, HALLUCINATION, REASONING = "general", "hallucination", "reasoning"
_GROUPS = {"RLAIF": HALLUCINATION, "RLHF": HALLUCINATION, "mathverse": REASONING, "mmmu": REASONING}
"""What the id begins with, up to the first '_' or '-' -> group; anything else is general."""


def _vl_reward_bench(entry: dict[str, Any]) -> tuple[Subject, Judgement]:
    answers, ranking = tuple(entry["response"]), list(entry["human_ranking"])
    if len(answers) != 2 or sorted(ranking) != [0, 1]:
        raise ValueError(f"Expected two responses and a ranking of 0 and 1, but got {len(answers)} and {ranking}.")
    prefix = re.split("[_-]", entry["id"])[0]
    published = _GROUPS.get(prefix, GENERAL)
    # POVID's `hallucination_pair-...` are hallucinations by the publication, and general by its script.
    corrected = HALLUCINATION if prefix == "hallucination" else published
    # Rank 0 is the better one.
    human = (1.0 - ranking[0], 1.0 - ranking[1])
    return Subject.answers, Judgement(
        (entry["image"],), (entry["query"],) * 2, human, entry["id"], answers, groups=(published, corrected)
    )


def _mmrb2(entry: dict[str, Any]) -> tuple[Subject, Judgement] | Left:
    return _mmrb2_pair(
        entry["prompt_content"],
        [entry[f"response_{side}"]["response_content"] for side in ("a", "b")],
        entry["chosen"],
    )


def _mmrb2_row(entry: dict[str, Any]) -> tuple[Subject, Judgement] | Left:
    """A row of the data set on the hub: texts with marks `<image_0>`, and the images."""

    def content(part: str) -> list[tuple[str, str]]:
        text = re.sub(r"<image_\d+>", " ", entry[f"{part}_text"] or "").strip()
        images = [("image", path) for path in entry[f"{part}_images"] or []]
        return [("text", text), *images] if text else images

    return _mmrb2_pair(content("prompt"), [content("response_a"), content("response_b")], entry["chosen"])


def _mmrb2_pair(
    prompt: Sequence[Sequence[str]], responses: Sequence[Sequence[Sequence[str]]], chosen: str
) -> tuple[Subject, Judgement] | Left:
    if chosen.upper() not in ("A", "B"):
        raise ValueError(f"Expected `chosen` to be A or B, but got {chosen!r}.")
    human = (1.0, 0.0) if chosen.upper() == "A" else (0.0, 1.0)
    question, shown = _texts(prompt), _images(prompt)
    if len(shown) > 1:
        return Left("have several images in the prompt")
    made = [_images(response) for response in responses]
    if all(len(images) == 1 for images in made):
        images = (made[0][0], made[1][0])
        # An answer in words beside the image is not what is judged here.
        if shown:
            return Subject.edits, Judgement(images, (question,) * 2, human, question, before=shown[0])
        return Subject.images, Judgement(images, (question,) * 2, human, question)
    if any(made):
        return Left("have several images in an answer, or in one of the two")
    if not shown:
        return Left("have no images")
    answers = tuple(_texts(response) for response in responses)
    return Subject.answers, Judgement((shown[0],), (question,) * 2, human, question, answers)


def _texts(content: Sequence[Sequence[str]]) -> str:
    return "\n".join(part.strip() for kind, part in content if kind == "text").strip()


def _images(content: Sequence[Sequence[str]]) -> list[str]:
    return [part for kind, part in content if kind == "image"]


BENCHMARKS = {
    "genai-bench-video": Benchmark(
        Kind.votes, frozenset({"prompt", "left_video", "right_video", "vote_type"}), _genai_bench_video
    ),
    "genai-bench-video-list": Benchmark(
        Kind.votes, frozenset({"prompt", "video_left", "video_right", "vote_type"}), _genai_bench_video
    ),
    "videogen-rewardbench": Benchmark(
        Kind.votes, frozenset({"prompt", "path_A", "path_B", "Overall"}), _videogen_reward_bench
    ),
    "vl-rewardbench": Benchmark(
        Kind.preferences,
        frozenset({"id", "query", "response", "image", "human_ranking"}),
        _vl_reward_bench,
        ("", "corrected "),
    ),
    "mmrb2": Benchmark(Kind.preferences, frozenset({"prompt_content", "response_a", "response_b", "chosen"}), _mmrb2),
    "mmrb2-rows": Benchmark(
        Kind.preferences,
        frozenset({"pair_id", "prompt_text", "prompt_images", "response_a_images", "response_b_images", "chosen"}),
        _mmrb2_row,
    ),
}
"""Name -> format."""

"""What each benchmark asks about the images of a prompt, and how it sums up the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_reward_guide.texts import read_table

from ...published import Source, fetch
from ...rewards.checks import Check, Checklist, checklist_of, whole
from ..prompt_lists.readers import with_parents
from ..prompt_lists.registry import ELLA
from ..prompts import prompt_list
from . import summaries
from .summaries import PHRASE, WHOLE, Summary


Entry = dict[str, Any]

DPG_QUESTIONS = Source(
    "DPG-Bench's questions",
    f"https://raw.githubusercontent.com/TencentQQGYLab/ELLA/{ELLA}/dpg_bench/dpg_bench.csv",
    blob="98457fc9901943f51ff9a30367250fc292533bed",
)


@dataclass(frozen=True)
class Benchmark:
    """A list of prompts and its evaluator.

    Attributes:
        title: for tables.
        paper: where it was published.
        needs: fields without which an entry cannot be judged; an image's metadata that lack one are looked up in the
            list by the text of the prompt.
        ask: the checklist of an entry; None for prompts of the list that it does not judge.
        sum_up: answers -> the lines of the table.
        published_judge: whose answers the published numbers are.
    """

    title: str
    paper: str
    needs: frozenset[str]
    ask: Callable[[Entry], Checklist | None]
    sum_up: Summary
    published_judge: str


def _listed(entry: Entry) -> Checklist | None:
    return checklist_of(entry) if entry.get("checks") or entry.get("vqa_list") else None


def _unigenbench(entry: Entry) -> Checklist:
    return tuple(
        Check(
            f'The prompt of this image was: "{entry["prompt"]}" Does the image meet its requirement "{description}" '
            f"({point})?",
            kind=point,
        )
        for point, description in zip(entry["testpoints"], entry["descriptions"], strict=True)
    )


def _t2i_compbench(entry: Entry) -> Checklist:
    phrases = entry.get("phrases") or []
    # The published question, to a BLIP that answers questions, is the phrase with a question mark.
    asked = [Check(f"Does this image show {phrase[:1].lower()}{phrase[1:]}?", kind=PHRASE) for phrase in phrases]
    return (Check(whole(entry["prompt"])[0].question, kind=WHOLE), *asked)


def _wise(entry: Entry) -> Checklist:
    return (
        Check(
            f'The prompt of this image was: "{entry["prompt"]}" What it means: "{entry["explanation"]}" Does the image '
            "show that correctly and so that it can be recognised?"
        ),
    )


BENCHMARKS: dict[str, Benchmark] = {
    "geneval2": Benchmark(
        "GenEval 2",
        "arXiv 2512.16853",
        frozenset({"vqa_list", "skills", "atom_count"}),
        _listed,
        summaries.geneval2,
        "Qwen3-VL-8B-Instruct, probabilities of the first token",
    ),
    "t2i-compbench": Benchmark(
        "T2I-CompBench++",
        "arXiv 2307.06350",
        frozenset({"category"}),
        _t2i_compbench,
        summaries.t2i_compbench,
        "BLIP-VQA for colour, shape and texture; UniDet, CLIP and a depth estimator for the rest",
    ),
    "unigenbench": Benchmark(
        "UniGenBench++",
        "arXiv 2510.18701",
        frozenset({"testpoints", "descriptions"}),
        _unigenbench,
        summaries.unigenbench,
        "Gemini 2.5 Pro or UniGenBench-EvalModel, all test points of an image in one reply with reasons",
    ),
    "oneig": Benchmark(
        "OneIG-Bench, alignment",
        "arXiv 2506.07977",
        frozenset({"item_id", "category"}),
        _listed,
        summaries.oneig,
        "Qwen2.5-VL-7B-Instruct, its replies",
    ),
    "tiif": Benchmark(
        "TIIF-Bench",
        "arXiv 2506.02161",
        frozenset({"checks", "category"}),
        _listed,
        summaries.tiif,
        "GPT-4o or Qwen2.5-VL-72B, all questions on an image in one reply with reasons",
    ),
    "wise": Benchmark(
        "WISE Verified",
        "arXiv 2503.07265",
        frozenset({"explanation", "category"}),
        _wise,
        summaries.wise,
        "Qwen3.5-35B-A3B, one verdict with reasons",
    ),
    "dpg": Benchmark(
        "DPG-Bench",
        "arXiv 2403.05135",
        frozenset({"item_id"}),
        _listed,
        summaries.dpg,
        "mPLUG-large, its replies",
    ),
}
"""Name, as of the command and of the list of prompts -> benchmark."""


def dpg_checklists(path: Path | None) -> dict[str, Checklist]:
    """Item -> its questions, from DPG-Bench's table of one question a row; parents are the rows that `dependency`
    names, and the kind is what stands before the bracket in `tuple`.

    Args:
        path: of `dpg_bench.csv`; None to fetch it once, at the commit that the prompts are from.

    Raises:
        OSError: if it cannot be had.
        ValueError: for another table.
    """
    file = fetch(DPG_QUESTIONS, by="--questions") if path is None else path
    rows = read_table(file)
    columns = {"item_id", "proposition_id", "dependency", "tuple", "question_natural_language"}
    if not rows or not columns <= rows[0].keys():
        raise ValueError(f"Expected DPG-Bench's questions in {file}, a table with the columns {', '.join(columns)}.")
    by_item: dict[str, list[tuple[int, list[int], Check]]] = {}
    for number, row in enumerate(rows, 1):
        try:
            own = int(row["proposition_id"])
            parents = [int(part) for part in row["dependency"].split(",") if part.strip()]
            check = Check(row["question_natural_language"].strip(), kind=row["tuple"].split("(")[0].strip())
        except (ValueError, AttributeError) as error:
            if number == 1:
                # The published script leaves it out, whatever it is.
                continue
            raise ValueError(f"Row {number} of {file} is none of DPG-Bench's questions: {error!r}") from error
        by_item.setdefault(row["item_id"], []).append((own, parents, check))
    return {
        item: with_parents([check for *_, check in asked], {own: parents for own, parents, _ in asked})
        for item, asked in by_item.items()
    }


class Asked:
    """The questions of the images of a benchmark.

    Args:
        name: one of `BENCHMARKS`.
        prompts_file: a copy of the list, for images whose metadata say too little; None for the one that ships, or is
            fetched, where the metadata need it.
        questions: of DPG-Bench, see `dpg_checklists`; None to fetch them.
    """

    def __init__(self, name: str, prompts_file: Path | None = None, questions: Path | None = None) -> None:
        self.name, self.benchmark, self._prompts_file = name, BENCHMARKS[name], prompts_file
        self._by_item = dpg_checklists(questions) if name == "dpg" else {}
        self._listed: dict[str, Entry] | None = None

    def __call__(self, metadata: Mapping[str, Any]) -> tuple[Entry, Checklist | None]:
        """The entry of a prompt and its questions; None for one that the benchmark does not judge.

        Raises:
            ValueError: for a prompt that is not in the list.
        """
        entry = dict(metadata)
        if not self.benchmark.needs <= entry.keys():
            entry = self._look_up(str(metadata["prompt"]))
        if self.name == "dpg":
            if entry["item_id"] not in self._by_item:
                raise ValueError(f"DPG-Bench's table has no questions on the item {entry['item_id']!r}.")
            return entry, self._by_item[entry["item_id"]]
        return entry, self.benchmark.ask(entry)

    def _look_up(self, prompt: str) -> Entry:
        if self._listed is None:
            self._listed = _by_text(prompt_list(self.name, self._prompts_file))
        if prompt.strip() not in self._listed:
            raise ValueError(
                f"The prompt {prompt!r} is not in the list '{self.name}', and its metadata lack "
                f"{', '.join(sorted(self.benchmark.needs))}."
            )
        return self._listed[prompt.strip()]


def _by_text(entries: Iterable[Entry]) -> dict[str, Entry]:
    return {entry["prompt"].strip(): entry for entry in entries}

"""Readers of published lists of prompts. An entry has the text as `prompt`, a `category` by which `evenly` spreads a
limit, and what the list's evaluator needs."""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from llava_reward_guide.texts import TABLES, read_json, read_json_lines, read_table

from ...rewards.checks import Check, Checklist, check_parents, checklist_of
from ...smc import brief


Entry = dict[str, Any]

ONEIG_FILES = ("OneIG-Bench.csv", "scripts/alignment/Q_D")
WISE_WEIGHTS = {"Culture": 0.4, "Time": 0.12, "Space": 0.12, "Biology": 0.12, "Physics": 0.12, "Chemistry": 0.12}
"""Category -> its share in WISE's overall score, of PKU-YuanGroup/WISE's calculate_verified.py."""
_WISE_ENDS = dict(zip(WISE_WEIGHTS, (400, 520, 640, 760, 880, 1000)))
"""Category -> the last of its prompts by `prompt_id`, from 1."""


def shipped(name: str) -> list[Entry]:
    """The entries of a list that ships with the package."""
    content = (files(__package__) / "data" / f"{name}.jsonl.xz").read_bytes()
    return [json.loads(line) for line in lzma.decompress(content).decode().split("\n") if line]


def read_dpg(path: Path) -> list[Entry]:
    """DPG-Bench's prompts (Hu et al., arXiv 2403.05135) from its folder of texts, `dpg_bench/prompts`, or its
    table, `dpg_bench.csv`."""
    if path.is_dir():
        entries = [
            {"prompt": text.read_text(encoding="utf-8").strip(), "item_id": text.stem}
            for text in sorted(path.glob("*.txt"))
        ]
        if not entries:
            raise ValueError(f"Expected texts such as 0.txt in {path}, but there are none.")
        return entries
    rows = {str(row.get("item_id")): row for row in _table(path, {"item_id", "text"})}
    return [{"prompt": str(row["text"]).strip(), "item_id": item} for item, row in rows.items()]


def read_geneval2(path: Path) -> list[Entry]:
    """GenEval 2's prompts (Kamath et al., arXiv 2512.16853), `geneval2_data.jsonl`: 800 with their questions."""
    entries = []
    for number, entry in read_json_lines(path):
        try:
            if not isinstance(entry, dict) or not {"prompt", "atom_count", "vqa_list", "skills"} <= entry.keys():
                raise ValueError(f"expected `prompt`, `atom_count`, `vqa_list` and `skills`, but got {brief(entry)}.")
            checklist_of(entry)
        except ValueError as error:
            raise ValueError(f"Line {number} of {path} is not GenEval 2's: {error}") from error
        entries.append({**entry, "category": str(entry["atom_count"])})
    return entries


def read_t2i_compbench(path: Path) -> list[Entry]:
    """T2I-CompBench's prompts from files of your own, a text file of a category or a folder of them, `color_val.txt`.
    Noun phrases to ask about are only known of the list that ships."""
    texts = sorted(path.glob("*_val.txt")) if path.is_dir() else [path]
    if not texts:
        raise ValueError(f"Expected texts such as color_val.txt in {path}, but there are none.")
    return [
        {"prompt": line.strip(), "category": text.stem.removesuffix("_val")}
        for text in texts
        for line in text.read_text(encoding="utf-8").splitlines()
        if line.strip()
    ]


def read_unigenbench(path: Path) -> list[Entry]:
    """UniGenBench++'s prompts (Wang et al., arXiv 2510.18701), one of its four tables `test_prompts_*.csv`."""
    entries = []
    for number, row in enumerate(_table(path, {"index"}), 1):
        try:
            entries.append(unigenbench_entry(row))
        except (ValueError, KeyError, StopIteration) as error:
            raise ValueError(f"Row {number} of {path} is not UniGenBench's: {error!r}") from error
    return entries


def unigenbench_entry(row: Mapping[str, Any]) -> Entry:
    """A row of UniGenBench's tables, English or Chinese."""
    language = next(name.removeprefix("prompt_") for name in row if name.startswith("prompt_"))
    values = _mended(row[f"sub_dims_{language}"])
    theme, points, descriptions = (
        ("Primary Categories", "Testpoints", "Testpoint Description")
        if language == "en"
        else ("一级垂类", "考点", "考点对应描述")
    )
    if len(values[points]) != len(values[descriptions]) or not values[points]:
        raise ValueError(f"expected a description of each test point, but got {brief(values)}")
    return {
        "prompt": row[f"prompt_{language}"],
        "index": int(row["index"]),
        "category": values.get(theme, ""),
        "testpoints": values[points],
        "descriptions": values[descriptions],
    }


def _mended(text: str) -> Any:
    """A JSON text, of which one in the published table of long English prompts lacks a comma between two texts."""
    try:
        return json.loads(text)
    except ValueError:
        return json.loads(re.sub(r'("(?:[^"\\\\]|\\\\.)*")\s+(?=")', r"\1, ", text))


def read_oneig(path: Path) -> list[Entry]:
    """OneIG-Bench's English prompts (Chang et al., arXiv 2506.07977) from a checkout of its repository, those of the
    classes with questions on alignment with these."""
    table, questions = (path / name for name in ONEIG_FILES)
    if not table.is_file() or not questions.is_dir():
        raise FileNotFoundError(f"Expected a checkout of OneIG-Benchmark at {path}, with {' and '.join(ONEIG_FILES)}.")
    asked = {name: read_json(questions / f"{name}.json") for name in ("anime", "human", "object")}
    classes = {"Anime_Stylization": "anime", "Portrait": "human", "General_Object": "object"}
    entries = []
    for row in _table(table, {"category", "id", "prompt_en"}):
        entry: Entry = {"prompt": row["prompt_en"], "category": row["category"], "item_id": row["id"]}
        found = asked.get(classes.get(row["category"], ""), {}).get(row["id"])
        if found is not None:
            parents = json.loads(found["dependency"])
            own = {int(number): Check(text) for number, text in json.loads(found["question"]).items()}
            listed = with_parents(list(own.values()), {number: parents.get(str(number), []) for number in own})
            entry["checks"] = [{**check.to_dict(), "parents": list(check.parents)} for check in listed]
        entries.append(entry)
    return entries


def with_parents(checks: Sequence[Check], parents: Mapping[int, Sequence[int]]) -> Checklist:
    """Checks with the parents that a published list gives by numbers of its own.

    People and models wrote these lists: a number that is none of the list's, 0 among them, is no parent, nor is a
    question its own; where parents go in a circle those that come later are left out.

    Args:
        parents: number of each check, in their order -> numbers of its parents.
    """
    places = {number: place for place, number in enumerate(parents)}
    found = [
        tuple(dict.fromkeys(places[one] for one in own if one in places and places[one] != place))
        for place, own in enumerate(parents.values())
    ]
    listed = [replace(check, parents=own) for check, own in zip(checks, found, strict=True)]
    try:
        return check_parents(listed)
    except ValueError:
        return tuple(
            replace(check, parents=tuple(parent for parent in check.parents if parent < place))
            for place, check in enumerate(listed)
        )


def read_tiif(path: Path, length: str = "short") -> list[Entry]:
    """TIIF-Bench's prompts (Wei et al., arXiv 2506.02161) with their questions, from its folder `data/test_prompts` or
    `data/testmini_prompts`, beside which there is that of the questions.

    Args:
        length: 'short' or 'long' descriptions.
    """
    questions = path.with_name(f"{path.name.removesuffix('_prompts')}_eval_prompts")
    if not path.is_dir() or not questions.is_dir():
        raise FileNotFoundError(
            f"Expected TIIF-Bench's prompts in the folder {path}, such as data/testmini_prompts, and its questions in "
            f"{questions}."
        )
    entries = []
    for file in sorted(path.glob("*_prompts.jsonl")):
        kind = file.name.removesuffix("_prompts.jsonl")
        asked = questions / f"{kind}_eval_prompts.jsonl"
        prompts, lines = ([entry for _, entry in read_json_lines(one)] for one in (file, asked))
        if len(prompts) != len(lines):
            raise ValueError(
                f"Expected as many lines in {file} as in {asked}, but got {len(prompts)} and {len(lines)}."
            )
        for number, (prompt, line) in enumerate(zip(prompts, lines)):
            pairs = zip(line["yn_question_list"], line["yn_answer_list"], strict=True)
            entries.append(
                {
                    "prompt": prompt[f"{length}_description"],
                    "category": kind,
                    "item_id": f"{kind}/{number}",
                    "length": length,
                    "checks": [{"question": one.strip(), "answer": answer.strip().lower()} for one, answer in pairs],
                }
            )
    return entries


def read_wise(path: Path) -> list[Entry]:
    """WISE Verified's prompts (Niu et al., arXiv 2503.07265), `data_verified/merge.json`: 1,000 with what they mean."""
    listed = read_json(path)
    if not isinstance(listed, list):
        raise ValueError(f"Expected a list of prompts in {path}, but got {brief(listed)}.")
    entries = []
    for number, one in enumerate(listed, 1):
        if not isinstance(one, dict) or not {"Prompt", "Explanation", "prompt_id"} <= one.keys():
            raise ValueError(f"Entry {number} of {path} is not WISE's: {brief(one)}.")
        category = next((name for name, last in _WISE_ENDS.items() if one["prompt_id"] <= last), "")
        entries.append(
            {
                "prompt": one["Prompt"],
                "category": category,
                "item_id": str(one["prompt_id"]),
                "explanation": one["Explanation"],
            }
        )
    return entries


def _table(path: Path, columns: set[str]) -> list[dict[str, Any]]:
    if path.suffix.lower() not in TABLES:
        raise ValueError(f"Expected a table ({' or '.join(TABLES)}), but got {path}.")
    rows = read_table(path)
    if not rows or not columns <= rows[0].keys():
        found = ", ".join(map(str, rows[0])) if rows else "nothing"
        raise ValueError(f"Expected the columns {', '.join(sorted(columns))} in {path}, but got {found}.")
    return rows

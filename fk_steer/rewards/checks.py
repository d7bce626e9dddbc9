"""Checklists: questions about an image with the answers that its prompt asks for, and the score of what was answered.

Soft-TIFA (Kamath et al., arXiv 2512.16853) takes the probability of the expected answer to each question, and the
arithmetic mean of them for atoms or the geometric mean for whole prompts. That a question whose parent is answered
wrong counts as wrong itself is DSG's rule (Cho et al., arXiv 2310.18235), by which DPG-Bench (arXiv 2403.05135) goes
too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from llava_reward_guide.texts import read_json_lines

from ..smc import brief, unknown


YES = "yes"
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
MEANS = ("arithmetic", "geometric")
Mean = Literal["arithmetic", "geometric"]


@dataclass(frozen=True)
class Check:
    """A question about an image.

    Attributes:
        question: its text.
        answer: what an image that shows the prompt is answered with, a word or a number.
        parents: indices, within the checklist, of the checks without which this one makes no sense: if one of them is
            answered wrong, so is this.
        kind: what is asked for, such as 'count' or 'attribute'; empty for nothing in particular.
    """

    question: str
    answer: str = YES
    parents: tuple[int, ...] = ()
    kind: str = ""

    @property
    def spellings(self) -> tuple[str, ...]:
        """How the answer may be spelled: as it stands, in small letters and with a capital, numbers up to ten also as
        words or digits, each with and without a blank before it."""
        small = self.answer.strip().lower()
        words = [small, small.capitalize()]
        if small in NUMBERS:
            words.append(str(NUMBERS.index(small)))
        elif small in map(str, range(len(NUMBERS))):
            words += [NUMBERS[int(small)], NUMBERS[int(small)].capitalize()]
        if self.answer.strip() not in words:
            words.append(self.answer.strip())
        return tuple(blank + word for word in words for blank in ("", " "))

    def to_dict(self) -> dict[str, Any]:
        """The check as `check_of` reads it, without what it leaves at the defaults."""
        found: dict[str, Any] = {"question": self.question, "answer": self.answer}
        if self.parents:
            found["parents"] = list(self.parents)
        if self.kind:
            found["kind"] = self.kind
        return found


Checklist = tuple[Check, ...]


def gated(answers: Tensor, checks: Sequence[Check]) -> Tensor:
    """Answers (..., Q) with 0 in place of those that have a parent below 0.5, whether it was so or became so."""
    found: dict[int, Tensor] = {}

    def of(index: int) -> Tensor:
        if index not in found:
            value = answers[..., index]
            for parent in checks[index].parents:
                value = torch.where(of(parent) < 0.5, torch.zeros_like(value), value)
            found[index] = value
        return found[index]

    if not any(check.parents for check in checks):
        return answers
    return torch.stack([of(index) for index in range(len(checks))], -1)


def mean_of_answers(answers: Tensor, checks: Sequence[Check], mean: Mean = "arithmetic") -> Tensor:
    """The scores (...) of answers (..., Q) in [0, 1] to the Q >= 1 questions of a checklist, those of wrong parents
    counted as 0: their mean, or the root (prod_i a_i)^(1 / Q)."""
    answers = gated(answers, checks)
    if mean == "arithmetic":
        return answers.mean(-1)
    none = (answers <= 0).any(-1)
    # The logarithm of 0 has no gradient.
    return torch.where(none, 0.0, torch.where(none[..., None], 1.0, answers).log().mean(-1).exp())


def check_mean(mean: str) -> Mean:
    """
    Raises:
        ValueError: for another mean than 'arithmetic' and 'geometric'.
    """
    if mean not in MEANS:
        raise unknown("mean", mean, MEANS)
    return mean  # type: ignore[return-value]


def whole(prompt: str) -> Checklist:
    """One question about the whole prompt, VQAScore's (arXiv 2404.01291), for prompts that are not taken apart."""
    return (Check(f'Does this image show "{prompt}"?', kind="prompt"),)


def check_of(values: Any) -> Check:
    """A check from plain values: {'question': ..., 'answer': ..., 'parents': [...], 'kind': ...}, all but the first
    optional, or [question, answer].

    Raises:
        ValueError: for anything else.
    """
    if isinstance(values, list) and len(values) == 2:
        values = dict(zip(("question", "answer"), values))
    if not isinstance(values, Mapping) or not {"question"} <= values.keys() <= {
        "question",
        "answer",
        "parents",
        "kind",
    }:
        raise ValueError(
            f"Expected a check such as {{'question': 'Is there a dog?', 'answer': 'yes'}}, but got {brief(values)}."
        )
    question, answer, kind = (str(values.get(name, "")).strip() for name in ("question", "answer", "kind"))
    parents = values.get("parents", [])
    if not question or not isinstance(parents, list) or any(type(parent) is not int for parent in parents):
        raise ValueError(f"Expected a question, and parents as a list of numbers, but got {brief(values)}.")
    return Check(question, answer or YES, tuple(parents), kind)


def checklist_of(entry: Mapping[str, Any]) -> Checklist:
    """The checklist of an entry of a list of prompts: its `checks`, see `check_of`, or GenEval 2's `vqa_list` with its
    `skills`.

    Raises:
        ValueError: if there are none, or parents that are not other checks of the list, or are their own ancestors.
    """
    if "vqa_list" in entry:
        listed, skills = entry["vqa_list"], entry.get("skills") or [""] * len(entry["vqa_list"])
        if len(skills) != len(listed):
            raise ValueError(f"Expected as many `skills` as there are questions, {len(listed)}, but got {len(skills)}.")
        checks = tuple(
            Check(one.question, one.answer, one.parents, str(kind))
            for one, kind in zip(map(check_of, listed), skills, strict=True)
        )
    else:
        listed = entry.get("checks")
        if not isinstance(listed, list):
            raise ValueError(f"Expected `checks`, a list of questions with answers, but got {brief(listed)}.")
        checks = tuple(map(check_of, listed))
    return check_parents(checks)


def check_parents(checks: Sequence[Check]) -> Checklist:
    """The checks, if there are some and each one's ancestors are others among them.

    Raises:
        ValueError: otherwise.
    """
    if not checks:
        raise ValueError("Expected a checklist of at least one question, but got none.")
    for index, check in enumerate(checks):
        seen, left = set[int](), list(check.parents)
        while left:
            parent = left.pop()
            if parent == index or not 0 <= parent < len(checks):
                raise ValueError(
                    f"Expected the parents of question {index} ({check.question!r}) to be others of the {len(checks)}, "
                    f"counted from 0, and not its own children, but got {list(check.parents)}."
                )
            if parent not in seen:
                seen.add(parent)
                left += checks[parent].parents
    return tuple(checks)


def read_checklists(path: str | Path) -> dict[str, Checklist]:
    """Prompt -> its checklist, from JSON lines with a `prompt` each and its `checks`, or GenEval 2's `vqa_list`.

    Raises:
        OSError: if the file cannot be read.
        ValueError: for a line of another form, with its number.
    """
    found = {}
    for number, entry in read_json_lines(path):
        try:
            if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
                raise ValueError(f"expected an object with a `prompt`, but got {brief(entry)}.")
            found[entry["prompt"]] = checklist_of(entry)
        except ValueError as error:
            raise ValueError(f"Line {number} of {path} is no checklist: {error}") from error
    return found


def checklist_lines(checklists: Mapping[str, Iterable[Check]]) -> str:
    """The inverse of `read_checklists`."""
    return "".join(
        json.dumps({"prompt": prompt, "checks": [check.to_dict() for check in checks]}, ensure_ascii=False) + "\n"
        for prompt, checks in checklists.items()
    )

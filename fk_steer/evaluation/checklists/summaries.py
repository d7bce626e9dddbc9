"""From answers to what benchmarks report, with standard errors clustered by prompt.

Each follows the published script that it names; what it does otherwise is said beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...rewards.checks import Checklist, gated, mean_of_answers
from ..prompt_lists.readers import WISE_WEIGHTS
from ..statistics import Estimate, clustered_mean, mean_by, mean_of_means


@dataclass(frozen=True)
class Answered:
    """An image and what it was answered with.

    Attributes:
        prompt: identifies the prompt: its folder, or the text.
        entry: what is known of the prompt.
        checks: the questions.
        answers: (Q,) the probabilities of the expected answers, in [0, 1].
    """

    prompt: str
    entry: dict[str, Any]
    checks: Checklist
    answers: tuple[float, ...]

    @property
    def right(self) -> tuple[float, ...]:
        """(Q,) 1 where the expected answer has more than half of the probability, else 0."""
        return tuple(float(answer > 0.5) for answer in self.answers)


@dataclass(frozen=True)
class Line:
    """A line of a table.

    Attributes:
        group: what it belongs to.
        name: what is reported.
        estimate: mean and standard error, in per cent.
        prompts: over how many.
        values: numbers that the mean is over: images, or answers.
    """

    group: str
    name: str
    estimate: Estimate
    prompts: int
    values: int


Summary = Callable[[Sequence[Answered]], list[Line]]


def checklist(answered: Sequence[Answered]) -> list[Line]:
    """Soft-TIFA of any checklists: arithmetic and geometric means of images, and the mean answer of each kind of
    question and each category of prompts."""
    lines = _soft_tifa(answered)
    lines += _by_kind("kind of question", answered)
    categories = _groups(answered, lambda one: one.entry.get("tag") or one.entry.get("category"))
    if len(categories) > 1:
        lines += [_per_image("category", name, some, "arithmetic") for name, some in categories.items()]
    return lines


def geneval2(answered: Sequence[Answered]) -> list[Line]:
    """GenEval 2: Soft-TIFA GM and AM, AM of each skill, GM of each atomicity (facebookresearch/GenEval2, evaluation.py
    and soft_tifa_analysis.py)."""
    atoms = _groups(answered, lambda one: str(one.entry["atom_count"]))
    return [
        *_soft_tifa(answered),
        *_by_kind("skill (AM)", answered),
        *(_per_image("atomicity (GM)", name, atoms[name], "geometric") for name in sorted(atoms, key=int)),
    ]


def dpg(answered: Sequence[Answered]) -> list[Line]:
    """DPG-Bench: of each image the share of its questions that are answered right and have no parent that is not, and
    the share of right answers of each category, parents not counted in (TencentQQGYLab/ELLA, compute_dpg_bench.py).

    Categories are counted over all images of a prompt; the published script counts the last of four. It also leaves out
    the first question of the table.
    """
    lines = [_gated_share("score", "DPG-Bench", answered)]
    pairs = [(one, check.kind, value) for one in answered for check, value in zip(one.checks, one.right) if check.kind]
    lines += _pooled("category", ((one, kind.split("-")[0].strip(), value) for one, kind, value in pairs))
    lines += _pooled("subcategory", pairs)
    return lines


def unigenbench(answered: Sequence[Answered]) -> list[Line]:
    """UniGenBench++: the share of test points that are met, of each primary and each sub-dimension
    (CodeGoat24/UniGenBench, eval_common.py), and the unweighted mean of the primary ones."""
    pairs = [(one, check.kind, value) for one in answered for check, value in zip(one.checks, one.right)]
    primary = _pooled("primary dimension", ((one, kind.split("-", 1)[0].strip(), value) for one, kind, value in pairs))
    overall = mean_of_means([line.estimate for line in primary])
    return [
        Line("score", "mean of primary dimensions", overall, _prompts(answered), len(pairs)),
        *primary,
        *_pooled("sub-dimension", (pair for pair in pairs if "-" in pair[1])),
    ]


ATTRIBUTES = ("color", "shape", "texture")
WHOLE = "prompt"
PHRASE = "phrase"


def t2i_compbench(answered: Sequence[Answered]) -> list[Line]:
    """T2I-CompBench++: for prompts about attributes the product of P(yes) over their noun phrases
    (Karine-Huang/T2I-CompBench, BLIP_vqa.py), and for all categories P(yes) to whether the image shows the prompt.

    The published numbers of the other categories need detectors that are not here: UniDet for the spatial ones and
    numeracy, with a depth estimator in three dimensions, and both in 'complex'.
    """
    categories = _groups(answered, lambda one: one.entry["category"])
    lines = []
    for name in ATTRIBUTES:
        products = []
        for one in categories.get(name, []):
            phrases = [value for check, value in zip(one.checks, one.answers) if check.kind == PHRASE]
            if phrases:
                products.append((one, name, float(torch.tensor(phrases, dtype=torch.float64).prod())))
        lines += _pooled("B-VQA (product over noun phrases)", products)
    for name, some in categories.items():
        values = [
            (one, name, value) for one in some for check, value in zip(one.checks, one.answers) if check.kind == WHOLE
        ]
        lines += _pooled("VQAScore (whole prompt)", values)
    return lines


def oneig(answered: Sequence[Answered]) -> list[Line]:
    """OneIG-Bench's alignment: of each image the share of its questions that are answered right, and so are their
    direct parents (OneIG-Bench/OneIG-Benchmark, alignment_score.py). Its other four dimensions need models and
    references that are not here."""
    lines = [_gated_share("score", "alignment", answered, direct=True)]
    for name, some in _groups(answered, lambda one: one.entry["category"]).items():
        lines.append(_gated_share("class", name, some, direct=True))
    return lines


# fmt: off
TIIF_GROUPS = {
    "Basic, attribute": ("shape+color", "color+texture", "texture+color", "shape+texture"),
    "Basic, relation": ("2d_spatial_relation", "3d_spatial_relation", "action+2d", "action+3d"),
    "Basic, reasoning": ("numeracy", "negation", "differentiation", "comparison"),
    "Advanced, attribute and relation": (
        "action+color", "action+texture", "color+2d", "color+3d", "shape+2d", "shape+3d", "texture+2d", "texture+3d",
    ),
    "Advanced, attribute and reasoning": (
        "numeracy+color", "numeracy+texture", "comparison+color", "comparison+texture", "differentiation+color",
        "differentiation+texture", "negation+color", "negation+texture",
    ),
    "Advanced, relation and reasoning": (
        "numeracy+2d", "numeracy+3d", "comparison+2d", "comparison+3d", "differentiation+2d", "differentiation+3d",
        "negation+2d", "negation+3d",
    ),
    "Advanced, text": ("text",),
    "Advanced, style": ("style",),
    "Real world": ("real_world",),
}
# fmt: on
"""Of A113N-W3I/TIIF-Bench, eval/summary_dimension_results.py."""


def tiif(answered: Sequence[Answered]) -> list[Line]:
    """TIIF-Bench: the share of right answers of each attribute, the unweighted mean of these in each of nine groups,
    and the unweighted mean of the groups (A113N-W3I/TIIF-Bench, summary_results.py and summary_dimension_results.py).
    """
    pairs = [(one, one.entry["category"], value) for one in answered for value in one.right]
    attributes = {line.name: line for line in _pooled("attribute", pairs)}
    groups = []
    for name, members in TIIF_GROUPS.items():
        lines = [attributes[member] for member in members if member in attributes]
        if lines:
            estimate = mean_of_means([line.estimate for line in lines])
            groups.append(
                Line("group", name, estimate, sum(line.prompts for line in lines), sum(line.values for line in lines))
            )
    lines = list(attributes.values())
    if groups:
        overall = mean_of_means([line.estimate for line in groups])
        lines = [Line("score", "mean of groups", overall, _prompts(answered), len(pairs)), *groups, *lines]
    return lines


def wise(answered: Sequence[Answered]) -> list[Line]:
    """WISE Verified: the share of images that show what the prompt means, of each category, and their weighted mean
    where all categories are there (PKU-YuanGroup/WISE, calculate_verified.py)."""
    pairs = [(one, one.entry["category"], one.right[0]) for one in answered]
    found = {line.name: line for line in _pooled("category", pairs)}
    lines = [found[name] for name in WISE_WEIGHTS if name in found]
    if len(lines) == len(WISE_WEIGHTS):
        parts = [(WISE_WEIGHTS[line.name], line.estimate) for line in lines]
        mean = sum(weight * estimate[0] for weight, estimate in parts)
        errors = [None if estimate[1] is None else weight * estimate[1] for weight, estimate in parts]
        known = [error for error in errors if error is not None]
        error = sum(one**2 for one in known) ** 0.5 if len(known) == len(errors) else None
        lines.insert(0, Line("score", "WiScore", (mean, error), _prompts(answered), len(pairs)))
    return lines


def _soft_tifa(answered: Sequence[Answered]) -> list[Line]:
    return [
        _per_image("score", "Soft-TIFA GM", answered, "geometric"),
        _per_image("score", "Soft-TIFA AM", answered, "arithmetic"),
    ]


def _per_image(group: str, name: str, answered: Sequence[Answered], mean: Any) -> Line:
    values = [
        (one.prompt, float(mean_of_answers(torch.tensor(one.answers, dtype=torch.float64), one.checks, mean)))
        for one in answered
    ]
    return Line(group, name, _percent(mean_by(values)), _prompts(answered), len(values))


def _by_kind(group: str, answered: Sequence[Answered]) -> list[Line]:
    return _pooled(
        group,
        ((one, check.kind, value) for one in answered for check, value in zip(one.checks, one.answers) if check.kind),
    )


def _gated_share(group: str, name: str, answered: Sequence[Answered], direct: bool = False) -> Line:
    """The mean over prompts of the mean over their images, as published scripts have it.

    Args:
        direct: whether a question falls with its own parents alone, not with theirs.
    """
    by_prompt: dict[str, list[float]] = {}
    for one in answered:
        right = torch.tensor(one.right, dtype=torch.float64)
        if direct:
            kept = [all(right[parent] > 0.5 for parent in check.parents) for check in one.checks]
            share = float((right * torch.tensor(kept, dtype=torch.float64)).mean())
        else:
            share = float(gated(right, one.checks).mean())
        by_prompt.setdefault(one.prompt, []).append(share)
    estimate = clustered_mean([[sum(shares) / len(shares)] for shares in by_prompt.values()])
    return Line(group, name, _percent(estimate), len(by_prompt), len(answered))


def _pooled(group: str, values: Iterable[tuple[Answered, str, float]]) -> list[Line]:
    """The mean of all values of each name, in the order of their first."""
    found: dict[str, list[tuple[Hashable, float]]] = {}
    for one, name, value in values:
        found.setdefault(name, []).append((one.prompt, value))
    return [
        Line(group, name, _percent(mean_by(some)), len({prompt for prompt, _ in some}), len(some))
        for name, some in found.items()
    ]


def _groups(answered: Sequence[Answered], of: Callable[[Answered], Any]) -> dict[str, list[Answered]]:
    found: dict[str, list[Answered]] = {}
    for one in answered:
        if name := of(one):
            found.setdefault(str(name), []).append(one)
    return found


def _prompts(answered: Sequence[Answered]) -> int:
    return len({one.prompt for one in answered})


def _percent(estimate: Estimate) -> Estimate:
    mean, error = estimate
    return 100 * mean, None if error is None else 100 * error

"""What rules would have gained, and what says early how good an image will be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from scipy.stats import rankdata
from torch import Tensor

from benchmarks.offline.rules import Chosen, Rule, best_of, reference_of
from benchmarks.offline.stored import FULL, MEASURES, Stored
from fk_steer.evaluation.statistics import mean_by, mean_of_means
from fk_steer.evaluation.world import Row
from fk_steer.shapes.captions import TASKS


def outcome(stored: Stored, chosen: Chosen) -> dict[str, Tensor]:
    """Measure, or 'rows' -> (P,): its mean over the repeats."""
    P = len(stored.tags)
    prompts = torch.arange(P)[:, None]
    found = {name: values[chosen.loop, prompts, chosen.seed].mean(1) for name, values in stored.finals.items()}
    return {**found, "rows": chosen.rows.mean(1)}


def row_of(values: Mapping[str, Tensor], tags: Sequence[str], ending: str = "") -> Row:
    """Mean and standard error over prompts: 'overall' accuracy in %, the unweighted mean of the tasks', and the guide's
    reward, the judge's and the oracle's."""
    by_task = [
        mean_by((p, 100 * value) for p, (value, tag) in enumerate(zip(values["correct"].tolist(), tags)) if tag == task)
        for task in TASKS
        if task in tags
    ]
    scores = {f"{name}{ending}": mean_by(enumerate(values[name].tolist())) for name in MEASURES if name != "correct"}
    return {f"overall{ending}": mean_of_means(by_task), **scores}


def compare(stored: Stored, rules: Mapping[str, Rule], pools: Tensor) -> dict[str, Row]:
    """Each rule's images and rows per image, and what it gains over best-of-n, paired.

    Columns: those of `row_of`, 'rows', and again those of `row_of` for the differences.
    """
    number = reference_of(stored)
    reference = outcome(stored, best_of(stored, pools, number))
    rows: dict[str, Row] = {}
    for name, rule in rules.items():
        values = outcome(stored, rule(stored, pools))
        gains = {measure: values[measure] - reference[measure] for measure in MEASURES}
        rows[name] = {
            **row_of(values, stored.tags),
            "rows": (values["rows"].mean().item(), None),
            **row_of(gains, stored.tags, f" - best-of-{number}"),
        }
    return rows


def predictors(stored: Stored) -> dict[str, Row]:
    """What says how good the full image of a seed will be: x0 predictions by step, and few-step images.

    Columns: 'rows' it takes to know; 'rank correlation', Spearman's, with the full image's reward among the seeds of a
    prompt, averaged over prompts; 'best in top quarter', in how many prompts, in %, the seed of the best full image is
    among the quarter that it puts first.
    """
    T = stored.steps[FULL]
    known = {
        f"x0 after step {step + 1} of {T}": (stored.predictions[:, :, step], (step + 1) * stored.rows[FULL] / T)
        for step in range(T)
    }
    for loop, steps in enumerate(stored.steps):
        if loop != FULL:
            known[f"image in {steps} steps"] = (stored.rewards[loop], stored.rows[loop])
    return {
        name: {
            "rows": (float(rows), None),
            "rank correlation": mean_by(enumerate(rank_correlation(values, stored.rewards[FULL]).tolist())),
            "best in top quarter": mean_by(enumerate((100 * finds_best(values, stored.rewards[FULL])).tolist())),
        }
        for name, (values, rows) in known.items()
    }


def rank_correlation(values: Tensor, others: Tensor) -> Tensor:
    """(P,) Spearman's, of (P, S) with (P, S); 0 where one of them is constant."""
    ranks = [torch.from_numpy(rankdata(some.numpy(), axis=1)) for some in (values, others)]
    a, b = (some - some.mean(1, keepdim=True) for some in ranks)
    scale = (a.square().sum(1) * b.square().sum(1)).sqrt()
    return torch.where(scale > 0, (a * b).sum(1) / scale.clamp(min=1e-12), torch.zeros_like(scale))


def finds_best(values: Tensor, others: Tensor) -> Tensor:
    """(P,) float64: whether the highest of `others` (P, S) is in the top quarter of `values` (P, S), rounded down but
    one at least."""
    best = others.argmax(1, keepdim=True)
    above = (values > values.gather(1, best)).sum(1)
    return (above < max(values.shape[1] // 4, 1)).double()

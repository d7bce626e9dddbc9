"""Means and their standard errors. Every table of this package has them from here.

What is sampled is prompts: several images of one prompt say less than as many of different ones. A standard error is
therefore that of `clustered_mean`, the clusters being

- in GenEval's summary, `fk-steer eval panel` and `fk-steer compare`: prompts, entries of a list with the same text
  being one, each with its images; differences between guides are taken within prompts first;
- in `fk-steer judge`: prompts, or what else a data set says belongs together, each with its judgements;
- in the tables of the bundled world (`world`, behind `benchmarks/`): prompts, each with its seeds; differences between
  settings are taken within a prompt and seed first, from the same noise;
- in the table of LLaVA-Reward's variants: training runs, each on its own.

A mean over GenEval's tasks is unweighted, `mean_of_means`, with the tasks as strata.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence

import numpy as np


Estimate = tuple[float, float | None]
"""A mean and its standard error; None if there is none."""


def clustered_mean(clusters: Sequence[Sequence[float]]) -> Estimate:
    """Mean over all values of all clusters and its standard error, with the clusters as what was sampled.

    The linearised variance of a ratio: with S_g and n_g the sum and number of values of the cluster g of G, N values
    and their mean m, G / (G - 1) * sum over g of (S_g - m n_g)^2 / N^2. With clusters of one size that is the variance
    of the clusters' means over G, and with single values the usual standard error of a mean. None for a single cluster.
    """
    sums = np.array([np.sum(values, dtype=float) for values in clusters])
    numbers = np.array([len(values) for values in clusters])
    total, groups = numbers.sum(), len(numbers)
    mean = float(sums.sum() / total)
    if groups < 2:
        return mean, None
    return mean, float(np.sqrt(groups / (groups - 1) * np.square(sums - mean * numbers).sum()) / total)


def mean_by(values: Iterable[tuple[Hashable, float]]) -> Estimate:
    """`clustered_mean` of pairs of a cluster and a value."""
    clusters: dict[Hashable, list[float]] = {}
    for cluster, value in values:
        clusters.setdefault(cluster, []).append(value)
    return clustered_mean(list(clusters.values()))


def mean_of_means(means: Sequence[Estimate]) -> Estimate:
    """Unweighted mean of independent estimates and its standard error; None if one of them has none."""
    errors = [error for _, error in means if error is not None]
    error = math.hypot(*errors) / len(means) if len(errors) == len(means) else None
    return float(np.mean([mean for mean, _ in means])), error


def plus_minus(estimate: Estimate, form: str) -> str:
    """'0.123 ± 0.004', or '0.123' without a standard error.

    Args:
        form: of both numbers, for example '.3f'.
    """
    mean, error = estimate
    return f"{mean:{form}}" + ("" if error is None else f" ± {error:{form.removeprefix('+')}}")

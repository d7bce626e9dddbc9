"""How well rewards agree with humans. Shares and correlations are in per cent, with standard errors clustered by prompt
where a share has one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from llava_reward_guide.packages import require

from ..statistics import Estimate, mean_by, mean_of_means
from .judgements import JudgeData, Judgement, Kind


Scores = Sequence[Sequence[float]]


def statistics(
    kind: Kind,
    judgements: Sequence[Judgement],
    scores: Scores,
    *,
    tie_threshold: float = 0.0,
    temperature: float = 0.1,
    label_threshold: float = 0.0,
    relative: bool = False,
) -> dict[str, Estimate]:
    """Name -> value and standard error of what is published on a kind of data.

    Args:
        kind: of the data.
        judgements: what humans said.
        scores: a reward for each image of each judgement.
        tie_threshold: rewards that differ by no more are a tie (MJ-Bench gives each model its own).
        temperature: tau of the probability sigmoid(difference / tau) in 'bf16', see `verdicts`.
        label_threshold: rewards from here on mean the label 1; 0 for the logits of a classifier.
        relative: whether rewards only say how images compare, such as probabilities of winning; 'bf16' and 'labels',
            which take them for scores of single images, are then left out.
    """
    if kind is Kind.ratings:
        return ratings([h for one in judgements for h in one.human], [s for some in scores for s in some])
    if kind is Kind.labels:
        return labels([one.human[0] for one in judgements], [some[0] for some in scores], label_threshold)
    if kind is Kind.votes:
        clusters = [one.cluster for one in judgements]
        human = [one.human[0] - one.human[1] for one in judgements]
        return votes(human, [some[0] - some[1] for some in scores], clusters, tie_threshold)
    better, worse, clusters = [], [], []
    for one, some in zip(judgements, scores, strict=True):
        for i, j in itertools.combinations(range(len(some)), 2):
            if one.human[i] != one.human[j]:
                first, second = (i, j) if one.human[i] > one.human[j] else (j, i)
                better.append(some[first])
                worse.append(some[second])
                clusters.append(one.cluster)
    return preferences(better, worse, clusters, tie_threshold, temperature, label_threshold, relative)


def of_benchmark(
    data: JudgeData, judgements: Sequence[Judgement], scores: Scores, tie_threshold: float = 0.0
) -> dict[str, Estimate]:
    """Name -> value and standard error of what a benchmark adds to the `statistics` of its kind of data.

    - Data with groups: the accuracy of each, ties counted as wrong, and 'macro', their unweighted mean; for each of the
      data's groupings.
    - MMRB2: 'accuracy, ties half', as its script counts a pair that is asked in both orders: each order for itself. A
      judge whose verdicts of two orders are averaged ties where they contradict each other.

    Args:
        judgements: those of the data that were scored.
        scores: of the two things of each.
    """
    columns: dict[str, Estimate] = {}
    gaps = [
        (some[0] - some[1]) * (1.0 if one.human[0] > one.human[1] else -1.0)
        for one, some in zip(judgements, scores, strict=True)
        if data.groupings or data.format.startswith("mmrb2")
    ]
    for number, grouping in enumerate(data.groupings):
        right: dict[str, list[tuple[str, float]]] = {}
        for one, gap in zip(judgements, gaps):
            right.setdefault(one.groups[number], []).append((one.cluster, 100.0 * (gap > tie_threshold)))
        of_group = {f"{grouping}{group}": mean_by(values) for group, values in sorted(right.items())}
        columns |= of_group
        columns[f"{grouping}macro"] = mean_of_means(list(of_group.values()))
    if data.format.startswith("mmrb2"):
        halves = [0.5 if abs(gap) <= tie_threshold else float(gap > 0) for gap in gaps]
        columns["accuracy, ties half"] = mean_by((one.cluster, 100.0 * half) for one, half in zip(judgements, halves))
    return columns


def preferences(
    better: Sequence[float],
    worse: Sequence[float],
    clusters: Sequence[str],
    tie_threshold: float = 0.0,
    temperature: float = 0.1,
    label_threshold: float = 0.0,
    relative: bool = False,
) -> dict[str, Estimate]:
    """Accuracy on pairs with ties counted as wrong, without them, and their share, by each convention of `verdicts`, or
    for `relative` rewards by 'fp32' alone."""
    columns: dict[str, Estimate] = {}
    for convention, verdict in verdicts(better, worse, tie_threshold, temperature, label_threshold).items():
        if relative and convention != "fp32":
            continue
        decided = verdict != 0
        columns[f"accuracy ({convention})"] = _share(verdict > 0, clusters)
        if decided.any():
            kept = [cluster for cluster, keep in zip(clusters, decided) if keep]
            columns[f"accuracy without ties ({convention})"] = _share(verdict[decided] > 0, kept)
        columns[f"ties ({convention})"] = _share(~decided, clusters)
    return columns


def verdicts(
    better: Sequence[float],
    worse: Sequence[float],
    tie_threshold: float = 0.0,
    temperature: float = 0.1,
    label_threshold: float = 0.0,
) -> dict[str, np.ndarray]:
    """Convention -> (N,) of 1 (the better image is preferred), 0 (tie) and -1.

    - 'fp32': the rewards themselves; a tie if they differ by no more than `tie_threshold`.
    - 'bf16': p = sigmoid(difference / temperature), all in bfloat16, as LLaVA-Reward's evaluation computes it; a tie if
      p is exactly 0.5, to which it rounds for -0.0039 < difference / temperature < 0.0078, roughly.
    - 'labels': the labels a classifier would give (1 from `label_threshold` on); a tie if they are equal.
    """
    first, second = np.asarray(better, np.float32), np.asarray(worse, np.float32)
    gap = first - second
    rounded = torch.from_numpy(first).bfloat16() - torch.from_numpy(second).bfloat16()
    probability = (rounded / temperature).sigmoid().float().numpy()
    label_gap = (first >= label_threshold).astype(int) - (second >= label_threshold).astype(int)
    return {
        "fp32": np.where(np.abs(gap) <= tie_threshold, 0, np.sign(gap)).astype(int),
        "bf16": np.sign(probability - 0.5).astype(int),
        "labels": label_gap,
    }


def votes(
    human: Sequence[float], metric: Sequence[float], clusters: Sequence[str], tie_threshold: float = 0.0
) -> dict[str, Estimate]:
    """GenAI-Bench's accuracies, from differences (left minus right) by humans and by a reward.

    'tau': with tie votes, where a tie is right; 'diff': without tie votes; 'tau, tie votes wrong': as the script for
    the Qwen models of UnifiedReward counts. A reward hardly ever ties, so that tau mostly counts how many votes do;
    'calibrated tau' is the best over thresholds for a tie (`calibrated_accuracy`), chosen on these very votes.

    VideoGen-RewardBench's accuracies with and without ties are 'tau' and 'diff' as UnifiedReward counts them, and
    'calibrated tau' and 'diff' as its authors do.
    """
    sign = np.sign(human)
    difference = np.asarray(metric, float)
    verdict = np.where(np.abs(difference) <= tie_threshold, 0, np.sign(difference))
    right, decided = verdict == sign, sign != 0
    accuracy, threshold = calibrated_accuracy(sign, difference)
    columns = {"tau": _share(right, clusters), "tau, tie votes wrong": _share(right & decided, clusters)}
    if decided.any():
        columns["diff"] = _share(right[decided], [cluster for cluster, keep in zip(clusters, decided) if keep])
    columns["calibrated tau"] = (100 * accuracy, None)
    columns["calibrated tie threshold"] = (threshold, None)
    columns["tie votes"] = _share(~decided, clusters)
    return columns


def ratings(human: Sequence[float], metric: Sequence[float]) -> dict[str, Estimate]:
    """TIFA160's statistics over all images: Pearson's r, Kendall's tau-b, and the accuracy on all pairs of images with
    ties calibrated. A correlation with a constant is left out."""
    require("scipy")
    from scipy import stats

    columns: dict[str, Estimate] = {}
    first, second = np.asarray(human, float), np.asarray(metric, float)
    if len(set(human)) > 1 and len(set(metric)) > 1:
        columns["Pearson"] = (100 * float(stats.pearsonr(first, second).statistic), None)
        columns["Kendall tau-b"] = (100 * float(stats.kendalltau(first, second, variant="b").statistic), None)
    i, j = np.triu_indices(len(first), 1)
    difference = first[i] - first[j]
    accuracy, threshold = calibrated_accuracy(difference, second[i] - second[j])
    columns["pairwise accuracy"] = (100 * accuracy, None)
    columns["calibrated tie threshold"] = (threshold, None)
    columns["human ties"] = (100 * float(np.mean(difference == 0)), None)
    return columns


def calibrated_accuracy(
    human: Sequence[float] | np.ndarray, metric: Sequence[float] | np.ndarray
) -> tuple[float, float]:
    """Pairwise accuracy with tie calibration (Deutsch et al., arXiv 2305.14324): the best, over thresholds, of the
    share of pairs that humans and the metric order alike or both call a tie.

    Args:
        human: (N,) differences; 0 is a tie.
        metric: (N,) differences; a tie up to the threshold, which is 0 or one of their magnitudes.

    Returns:
        the accuracy in [0, 1], and the smallest threshold that reaches it.
    """
    truth, difference = np.sign(human), np.asarray(metric, float)
    size = np.abs(difference)
    order = np.argsort(size, kind="stable")
    alike = (np.sign(difference) == truth) & (truth != 0)
    thresholds, ends = np.unique(size[order], return_index=True)
    ends = np.append(ends[1:], len(size))
    if thresholds[0] > 0:
        thresholds, ends = np.insert(thresholds, 0, 0.0), np.insert(ends, 0, 0)
    # Up to its end the metric ties; from there on it orders.
    ties = np.concatenate([[0], np.cumsum(truth[order] == 0)])[ends]
    ordered = alike.sum() - np.concatenate([[0], np.cumsum(alike[order])])[ends]
    correct = ties + ordered
    best = int(correct.argmax())
    return float(correct[best] / len(size)), float(thresholds[best])


def labels(human: Sequence[float], scores: Sequence[float], threshold: float = 0.0) -> dict[str, Estimate]:
    """A classifier's accuracy, F1 and recall with either label as the positive one, and the area under its ROC curve.

    In safety data the label 1 is 'safe', and published F1 take it as the positive one; that the unsafe ones are found
    shows in 'F1 (0 positive)'. The area counts equal scores as half; it is left out if all labels are equal.
    """
    require("scipy")
    from scipy import stats

    truth, values = np.asarray(human) == 1, np.asarray(scores, float)
    positive = values >= threshold
    columns: dict[str, Estimate] = {"accuracy": (100 * float(np.mean(truth == positive)), None)}
    for label, actual, predicted in ((1, truth, positive), (0, ~truth, ~positive)):
        hits, total = int((actual & predicted).sum()), int(actual.sum() + predicted.sum())
        columns[f"F1 ({label} positive)"] = (200 * hits / total if total else 0.0, None)
        if actual.any():
            columns[f"recall ({label} positive)"] = (100 * hits / int(actual.sum()), None)
    if truth.any() and not truth.all():
        wins = stats.mannwhitneyu(values[truth], values[~truth], method="asymptotic").statistic
        columns["AUC"] = (100 * float(wins) / int(truth.sum()) / int((~truth).sum()), None)
    return columns


def _share(holds: np.ndarray, clusters: Sequence[str]) -> Estimate:
    return mean_by((cluster, 100.0 * bool(value)) for cluster, value in zip(clusters, holds, strict=True))

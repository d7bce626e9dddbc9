"""Which pairs of the candidates of a prompt are kept.

| rule | pairs |
|---|---|
| best-worst | the best of all candidates and the worst, one pair |
| all-pairs | every two candidates |
| fixed-pairs | the first and second candidate, the third and fourth, and so on |
| unified-reward | the fixed pairs are compared; of their winners the one with the highest score and of their losers the one with the lowest make one pair |

The last is the recipe of UnifiedReward (Wang et al., arXiv 2503.05236). Everywhere a pair is kept only if one is
strictly better, and a verdict that is missing drops the pair: it is never taken for a score of 0 or for a win of the
first.
"""  # noqa: E501

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


RULES = ("best-worst", "all-pairs", "fixed-pairs", "unified-reward")

KEPT, TIE, DISAGREEMENT, BELOW_MARGIN, NOT_BETTER, UNREADABLE = OUTCOMES = (
    "kept",
    "tie",
    "disagreement",
    "below margin",
    "not better",
    "unreadable",
)
"""What becomes of a pair. 'disagreement': asked in the other order the judge says something else. 'not better': the
best winner of the rule 'unified-reward' scores no higher than the worst loser, or the candidate with most wins has lost
to the one with fewest."""


@dataclass(frozen=True)
class Comparison:
    """What a judge said of a pair of candidates, asked in both orders.

    Attributes:
        forward: probability that the first is better, where it was shown first, in [0, 1]; 0.5 is a tie, None a verdict
            that could not be had or read.
        backward: the same, still of the first, where it was shown second.
    """

    forward: float | None
    backward: float | None

    @property
    def probability(self) -> float | None:
        """That the first is better: the mean of both orders, in which a preference for a place cancels; None if either
        is missing."""
        return None if self.forward is None or self.backward is None else (self.forward + self.backward) / 2

    @property
    def outcome(self) -> str:
        """`KEPT` if both orders favour the same one; else why there is no winner."""
        if self.forward is None or self.backward is None:
            return UNREADABLE
        if self.forward == self.backward == 0.5:
            return TIE
        agree = (self.forward - 0.5) * (self.backward - 0.5) > 0
        return KEPT if agree else DISAGREEMENT

    @property
    def first_wins(self) -> bool:
        """Whether both orders favour the first."""
        return self.outcome == KEPT and self.forward is not None and self.forward > 0.5


class Judge(Protocol):
    """What decides about the candidates of one prompt, which are known by their numbers.

    Attributes:
        compares: whether it compares two candidates; otherwise it scores them.
    """

    compares: bool

    def scores(self, which: Sequence[int]) -> dict[int, float | None]:
        """A score for each of some candidates, higher is better; None where it could not be had."""
        ...

    def comparisons(self, pairs: Sequence[tuple[int, int]]) -> dict[tuple[int, int], Comparison]:
        """A verdict on each of some pairs."""
        ...


@dataclass(frozen=True)
class Pair:
    """A preference that is kept.

    Attributes:
        chosen, rejected: numbers of the candidates.
        chosen_score, rejected_score: what they were chosen by: scores, or mean win probabilities; None where only the
            two were compared.
        margin: how much better the chosen one is: the difference of the scores, or of the probabilities that one and
            the other is better.
        probability: that the chosen one is better, where the two were compared; else None.
    """

    chosen: int
    rejected: int
    chosen_score: float | None
    rejected_score: float | None
    margin: float
    probability: float | None = None


@dataclass(frozen=True)
class Sifted:
    """What a rule made of the candidates of a prompt.

    Attributes:
        pairs: those kept, the widest margin first.
        outcomes: one of `OUTCOMES` -> how many of the pairs that were looked at.
    """

    pairs: tuple[Pair, ...]
    outcomes: Mapping[str, int]


def sift(rule: str, number: int, judge: Judge, margin: float = 0.0, most: int | None = None) -> Sifted:
    """Apply a rule to the candidates of a prompt.

    Args:
        rule: one of `RULES`.
        number: of candidates, at least 2.
        judge: what decides.
        margin: the least margin of a pair that is kept; at 0 it need only be positive.
        most: how many pairs are kept at most, those with the widest margins; None for all.
    """
    if rule == "unified-reward":
        found, outcomes = _unified_reward(number, judge, margin)
    elif rule == "best-worst":
        found, outcomes = (_extreme_by_wins if judge.compares else _extreme_by_scores)(number, judge, margin)
    else:
        every = list(itertools.combinations(range(number), 2))
        pairs = fixed_pairs(number) if rule == "fixed-pairs" else every
        found, outcomes = (_by_comparing if judge.compares else _by_scores)(pairs, judge, margin)
    # Sorting is stable: pairs of one margin stay in the order of their candidates.
    ordered = sorted(found, key=lambda pair: -pair.margin)
    if most is not None and len(ordered) > most:
        ordered = ordered[:most]
    return Sifted(tuple(ordered), outcomes)


def fixed_pairs(number: int) -> list[tuple[int, int]]:
    """Candidates 0 and 1, 2 and 3, and so on; the last of an odd number is left out."""
    return [(first, first + 1) for first in range(0, number - 1, 2)]


Found = tuple[list[Pair], Counter[str]]


def _weighed(better: float, worse: float, margin: float) -> str:
    if better == worse:
        return TIE
    return KEPT if better - worse >= margin else BELOW_MARGIN


def _by_scores(pairs: Sequence[tuple[int, int]], judge: Judge, margin: float) -> Found:
    scores = judge.scores(sorted({one for pair in pairs for one in pair}))
    kept: list[Pair] = []
    outcomes: Counter[str] = Counter()
    for first, second in pairs:
        a, b = scores[first], scores[second]
        if a is None or b is None:
            outcomes[UNREADABLE] += 1
            continue
        chosen, rejected, high, low = (first, second, a, b) if a >= b else (second, first, b, a)
        outcomes[outcome := _weighed(high, low, margin)] += 1
        if outcome == KEPT:
            kept.append(Pair(chosen, rejected, high, low, high - low))
    return kept, outcomes


def _by_comparing(pairs: Sequence[tuple[int, int]], judge: Judge, margin: float) -> Found:
    kept: list[Pair] = []
    outcomes: Counter[str] = Counter()
    for (first, second), verdict in judge.comparisons(pairs).items():
        outcome = verdict.outcome
        if outcome == KEPT and verdict.probability is not None:
            probability = verdict.probability if verdict.first_wins else 1.0 - verdict.probability
            outcome = _weighed(probability, 1.0 - probability, margin)
            if outcome == KEPT:
                chosen, rejected = (first, second) if verdict.first_wins else (second, first)
                kept.append(Pair(chosen, rejected, None, None, 2.0 * probability - 1.0, probability))
        outcomes[outcome] += 1
    return kept, outcomes


def _extreme_by_scores(number: int, judge: Judge, margin: float) -> Found:
    scores = {one: score for one, score in judge.scores(range(number)).items() if score is not None}
    if len(scores) < 2:
        return [], Counter({UNREADABLE: 1})
    # Of equals the first.
    best = max(scores, key=lambda one: (scores[one], -one))
    worst = min(scores, key=lambda one: (scores[one], one))
    outcome = _weighed(scores[best], scores[worst], margin)
    pair = Pair(best, worst, scores[best], scores[worst], scores[best] - scores[worst])
    return [pair] if outcome == KEPT else [], Counter({outcome: 1})


def _extreme_by_wins(number: int, judge: Judge, margin: float) -> Found:
    """By the mean win probability over the comparisons that could be read. The chosen one must also have won against
    the rejected one itself."""
    verdicts = judge.comparisons(list(itertools.combinations(range(number), 2)))
    played: dict[int, list[float]] = {one: [] for one in range(number)}
    for (first, second), verdict in verdicts.items():
        if (probability := verdict.probability) is not None:
            # A verdict that depends on the place is a tie, whatever the numbers.
            probability = probability if verdict.outcome == KEPT else 0.5
            played[first].append(probability)
            played[second].append(1.0 - probability)
    wins = {one: sum(values) / len(values) for one, values in played.items() if values}
    if len(wins) < 2:
        return [], Counter({UNREADABLE: 1})
    best = max(wins, key=lambda one: (wins[one], -one))
    worst = min(wins, key=lambda one: (wins[one], one))
    if best == worst or wins[best] == wins[worst]:
        return [], Counter({TIE: 1})
    first, second = sorted((best, worst))
    direct = verdicts[first, second]
    if direct.outcome != KEPT or direct.probability is None:
        return [], Counter({direct.outcome: 1})
    if direct.first_wins != (best == first):
        return [], Counter({NOT_BETTER: 1})
    outcome = _weighed(wins[best], wins[worst], margin)
    probability = direct.probability if direct.first_wins else 1.0 - direct.probability
    pair = Pair(best, worst, wins[best], wins[worst], wins[best] - wins[worst], probability)
    return [pair] if outcome == KEPT else [], Counter({outcome: 1})


def _unified_reward(number: int, judge: Judge, margin: float) -> Found:
    outcomes: Counter[str] = Counter()
    winners: list[int] = []
    losers: list[int] = []
    for (first, second), verdict in judge.comparisons(fixed_pairs(number)).items():
        if verdict.outcome != KEPT:
            outcomes[verdict.outcome] += 1
            continue
        winner, loser = (first, second) if verdict.first_wins else (second, first)
        winners.append(winner)
        losers.append(loser)
    if not winners:
        return [], outcomes
    known = judge.scores(sorted([*winners, *losers]))
    scores: dict[int, float] = {}
    for winner, loser in zip(winners, losers):
        high, low = known[winner], known[loser]
        if high is None or low is None:
            outcomes[UNREADABLE] += 1
        else:
            scores[winner], scores[loser] = high, low
    winners = [one for one in winners if one in scores]
    losers = [one for one in losers if one in scores]
    if not winners:
        return [], outcomes
    best = max(winners, key=lambda one: (scores[one], -one))
    worst = min(losers, key=lambda one: (scores[one], one))
    outcome = _weighed(scores[best], scores[worst], margin) if scores[best] >= scores[worst] else NOT_BETTER
    outcomes[outcome if outcome != TIE else NOT_BETTER] += 1
    pair = Pair(best, worst, scores[best], scores[worst], scores[best] - scores[worst])
    return [pair] if outcome == KEPT else [], outcomes

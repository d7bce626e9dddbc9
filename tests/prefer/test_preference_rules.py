"""Which pairs are kept: by UnifiedReward's published recipe where it is sound, and without its defects."""

from __future__ import annotations

import itertools

import pytest

from fk_steer.prefer.judging import by_scores
from fk_steer.prefer.rules import Comparison, Pair, fixed_pairs, sift


FIRST, SECOND, TIE, DISAGREE = Comparison(1.0, 1.0), Comparison(0.0, 0.0), Comparison(0.5, 0.5), Comparison(1.0, 0.0)
UNREAD = Comparison(1.0, None)


class Table:
    """A judge that says what it was given."""

    def __init__(self, scores=(), verdicts=None):
        self.known, self.verdicts, self.compares = scores, verdicts, verdicts is not None
        self.asked = []

    def scores(self, which):
        self.asked += which
        return {one: self.known[one] for one in which}

    def comparisons(self, pairs):
        if self.verdicts is None:
            return by_scores(pairs, dict(enumerate(self.known)))
        return {pair: self.verdicts[pair] for pair in pairs}


def kept(found):
    return [(pair.chosen, pair.rejected) for pair in found.pairs]


def outcomes(found):
    return {name: count for name, count in found.outcomes.items() if count}


def published(verdicts, scores):
    """Steps 2 to 4 of the published recipe with numbers for scores: (chosen, rejected), or None. The second of a fixed
    pair wins only if the reply says so."""
    winners = [pair[1] if verdict == SECOND else pair[0] for pair, verdict in verdicts.items()]
    losers = [sum(pair) - winner for pair, winner in zip(verdicts, winners)]
    best, worst = max(winners, key=scores.__getitem__), min(losers, key=scores.__getitem__)
    return (best, worst) if scores[best] > scores[worst] else None


@pytest.mark.parametrize(
    "scores", [[7, 3, 9, 2, 5, 5], [1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], [5, 5, 5, 5, 5, 5], [3, 9, 1, 9, 1, 9]]
)
def test_the_recipe_keeps_what_the_published_one_keeps_where_all_verdicts_are_clear(scores):
    for said in itertools.product([FIRST, SECOND], repeat=3):
        verdicts = dict(zip(fixed_pairs(6), said))
        found = sift("unified-reward", 6, Table(scores, verdicts))
        expected = published(verdicts, scores)
        assert kept(found) == ([] if expected is None else [expected])
        assert outcomes(found) == ({"kept": 1} if expected else {"not better": 1})


def test_ten_is_more_than_nine():
    verdicts = {(0, 1): FIRST, (2, 3): FIRST}
    # As texts '10' < '9', and the winner with 9 would be chosen and the loser with 10 rejected.
    found = sift("unified-reward", 4, Table([10.0, 10.0, 9.0, 8.0], verdicts))
    assert found.pairs == (Pair(0, 3, 10.0, 8.0, 2.0),)
    assert max("10", "9") == "9" and published(verdicts, ["10", "10", "9", "8"]) == (2, 1)


def test_a_score_that_is_missing_drops_its_pair_and_is_no_zero():
    verdicts = {(0, 1): FIRST, (2, 3): FIRST}
    found = sift("unified-reward", 4, Table([7.0, None, 6.0, 4.0], verdicts))
    assert kept(found) == [(2, 3)] and outcomes(found) == {"kept": 1, "unreadable": 1}
    # With 0 in its place the loser that nobody has judged would be the worst.
    assert published(verdicts, [7, 0, 6, 4]) == (0, 1)


@pytest.mark.parametrize("verdict, why", [(TIE, "tie"), (DISAGREE, "disagreement"), (UNREAD, "unreadable")])
def test_without_a_winner_nobody_wins_and_not_the_first(verdict, why):
    verdicts = {(0, 1): verdict, (2, 3): SECOND}
    judge = Table([9, 1, 2, 5], verdicts)
    found = sift("unified-reward", 4, judge)
    assert kept(found) == [(3, 2)] and outcomes(found) == {"kept": 1, why: 1}
    assert judge.asked == [2, 3], "what is not in the running is not scored"
    assert published(verdicts, [9, 1, 2, 5]) == (0, 1)


def test_without_any_winner_there_is_no_pair():
    found = sift("unified-reward", 4, Table([9, 1, 2, 5], {(0, 1): TIE, (2, 3): UNREAD}))
    assert kept(found) == [] and outcomes(found) == {"tie": 1, "unreadable": 1}


def test_the_last_of_an_odd_number_is_in_no_fixed_pair():
    assert fixed_pairs(5) == [(0, 1), (2, 3)] and fixed_pairs(1) == []


def test_the_best_and_the_worst_by_scores():
    found = sift("best-worst", 5, Table([2.0, None, 5.0, -1.0, 5.0]))
    assert found.pairs == (Pair(2, 3, 5.0, -1.0, 6.0),)


@pytest.mark.parametrize(
    "scores, margin, why",
    [([1.0, 1.0], 0.0, "tie"), ([1.0, 1.4], 0.5, "below margin"), ([None, 3.0], 0.0, "unreadable")],
)
def test_a_pair_that_is_not_strictly_better_is_dropped_and_counted(scores, margin, why):
    for rule in ("best-worst", "all-pairs", "fixed-pairs"):
        found = sift(rule, 2, Table(scores), margin)
        assert kept(found) == [] and outcomes(found) == {why: 1}


def test_a_margin_is_the_least_that_is_kept():
    assert kept(sift("best-worst", 2, Table([1.0, 1.5]), margin=0.5)) == [(1, 0)]


def test_all_pairs_by_scores_the_widest_first():
    found = sift("all-pairs", 4, Table([1.0, 3.0, None, 1.0]))
    assert kept(found) == [(1, 0), (1, 3)]
    assert outcomes(found) == {"kept": 2, "tie": 1, "unreadable": 3}
    assert kept(sift("all-pairs", 3, Table([1.0, 3.0, 2.0]), most=2)) == [(1, 0), (2, 0)]


def test_a_judge_that_prefers_a_place_decides_nothing():
    always_first = Comparison(1.0, 0.0)
    pairs = dict.fromkeys(itertools.combinations(range(4), 2), always_first)
    for rule in ("all-pairs", "fixed-pairs", "best-worst", "unified-reward"):
        found = sift(rule, 4, Table([1, 2, 3, 4], pairs))
        assert found.pairs == () and found.outcomes.get("kept", 0) == 0
    assert sift("all-pairs", 4, Table(verdicts=pairs)).outcomes["disagreement"] == 6


def test_both_orders_are_averaged_and_have_to_agree():
    mild = Comparison(0.9, 0.6)
    assert mild.probability == 0.75 and mild.outcome == "kept" and mild.first_wins
    assert Comparison(0.9, 0.4).outcome == "disagreement" and Comparison(0.9, 0.5).outcome == "disagreement"
    assert Comparison(None, 1.0).probability is None
    found = sift("all-pairs", 2, Table(verdicts={(0, 1): Comparison(0.25, 0.25)}))
    assert found.pairs == (Pair(1, 0, None, None, 0.5, 0.75),)
    assert outcomes(sift("all-pairs", 2, Table(verdicts={(0, 1): mild}), margin=0.6)) == {"below margin": 1}


def test_the_best_by_wins_must_have_beaten_the_worst_itself():
    verdicts = {(0, 1): FIRST, (0, 2): FIRST, (1, 2): FIRST}
    found = sift("best-worst", 3, Table(verdicts=verdicts))
    assert found.pairs == (Pair(0, 2, 1.0, 0.0, 1.0, 1.0),)
    # 0 wins two of three and 3 none, but what they are to each other could not be read.
    some = {(0, 1): FIRST, (0, 2): FIRST, (0, 3): UNREAD, (1, 2): TIE, (1, 3): FIRST, (2, 3): FIRST}
    assert outcomes(sift("best-worst", 4, Table(verdicts=some))) == {"unreadable": 1}
    assert outcomes(sift("best-worst", 4, Table(verdicts={**some, (0, 3): SECOND}))) == {"not better": 1}
    circle = {(0, 1): FIRST, (1, 2): FIRST, (0, 2): SECOND}
    assert outcomes(sift("best-worst", 3, Table(verdicts=circle))) == {"tie": 1}


@pytest.mark.parametrize("verdict, why", [(TIE, "tie"), (DISAGREE, "disagreement"), (UNREAD, "unreadable")])
def test_without_a_verdict_on_the_two_the_best_and_the_worst_by_wins_are_no_pair(verdict, why):
    found = sift("best-worst", 3, Table(verdicts={(0, 1): SECOND, (0, 2): verdict, (1, 2): SECOND}))
    assert kept(found) == [] and outcomes(found) == {why: 1}


def test_a_comparison_that_could_not_be_read_counts_for_nobody():
    verdicts = {(0, 1): UNREAD, (0, 2): FIRST, (1, 2): FIRST}
    found = sift("best-worst", 3, Table(verdicts=verdicts))
    assert found.pairs == (Pair(0, 2, 1.0, 0.0, 1.0, 1.0),)


def test_scores_compare_alike_in_either_order():
    assert by_scores([(0, 1), (1, 2), (0, 3)], {0: 2.0, 1: 1.0, 2: 1.0, 3: None}) == {
        (0, 1): FIRST,
        (1, 2): TIE,
        (0, 3): Comparison(None, None),
    }

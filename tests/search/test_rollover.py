from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fk_steer.search import FKSteering, Stop
from fk_steer.search.rollover import roll_over


class Passes:
    """Passes whose rewards are read from a table, a row for each population."""

    def __init__(self, best: list[float], table: list[list[float]], cost: int) -> None:
        self.best, self.table, self.cost = list(best), table, cost
        self.calls: list[list[int]] = []

    def __call__(self, populations: list[int]) -> tuple[Tensor, int]:
        for p in populations:
            tries = sum(p in call for call in self.calls)
            self.best[p] = max(self.best[p], self.table[p][tries % len(self.table[p])])
        self.calls.append(populations)
        return torch.tensor(self.best), self.cost * len(populations)


def test_those_nearest_to_the_target_run_first():
    passes = Passes([0.1, 0.9, 0.5, 2.0], [[0.0]] * 4, cost=10)
    assert roll_over(torch.tensor(passes.best), 1.0, 10, 25, passes) == 5
    assert passes.calls == [[1, 2]]


def test_what_is_left_is_spent_on_those_still_below():
    passes = Passes([0.1, 0.9, 0.5], [[0.2, 0.3], [1.5], [0.6, 0.4]], cost=10)
    assert roll_over(torch.tensor(passes.best), 1.0, 10, 55, passes) == 5
    assert passes.calls == [[0, 1, 2], [0, 2]]
    assert passes.best == [0.3, 1.5, 0.6]


def test_nothing_is_run_without_rows_or_need():
    for best, cost, saved in [([0.0], 10, 9), ([1.0], 10, 100), ([0.0], 0, 100)]:
        passes = Passes(best, [[0.0]], cost)
        assert roll_over(torch.tensor(best), 1.0, cost, saved, passes) == saved
        assert not passes.calls


@settings(deadline=None, max_examples=100)
@given(
    table=st.lists(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, 1.25]), min_size=2, max_size=4), max_size=5),
    cost=st.integers(1, 5),
    saved=st.integers(0, 40),
)
def test_any_rollover(table, cost, saved):
    """Against a plain account: while rows are left, each round runs as many as they pay for, those nearest first."""
    passes = Passes([row[0] for row in table], [row[1:] for row in table], cost)
    best, left, expected = list(passes.best), saved, []
    tries = [0] * len(table)
    while True:
        missing = sorted((p for p in range(len(table)) if best[p] < 1.0), key=lambda p: (-best[p], p))
        chosen = sorted(missing[: left // cost])
        if not chosen:
            break
        for p in chosen:
            rest = table[p][1:]
            best[p] = max(best[p], rest[tries[p] % len(rest)])
            tries[p] += 1
        left -= cost * len(chosen)
        expected.append(chosen)
    assert roll_over(torch.tensor(passes.best), 1.0, cost, saved, passes) == left
    assert passes.calls == expected and passes.best == best


def test_settings_say_whether():
    for stop, calls in [(None, []), (Stop(1.0), []), (Stop(1.0, rollover=True), [[0]]), (Stop(0.5, True), [])]:
        passes = Passes([0.5], [[2.0]], cost=10)
        left = FKSteering(stop=stop).roll_over(torch.tensor([0.5]), 10, 10, passes)
        assert passes.calls == calls and left == (0 if calls else 10)

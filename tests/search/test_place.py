from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fk_steer.search import place


Table = list[list[int]]


def placed(ancestors: Table, slots: Table, num_slots: int) -> tuple[Table, Table]:
    taken, order = place(torch.tensor(ancestors), torch.tensor(slots), num_slots)
    return taken.tolist(), order.tolist()


def test_survivors_stay_where_they_are_when_the_population_shrinks():
    assert placed([[1, 3, 5]], [[0, 1, 2, 3, 4, 5]], 6) == ([[1, 3, 5]], [[0, 1, 2]])
    assert placed([[1]], [[1, 3, 5]], 6) == ([[3]], [[0]])


def test_copies_take_free_slots_when_it_grows():
    assert placed([[0, 0, 0, 0]], [[3]], 6) == ([[0, 1, 2, 3]], [[1, 2, 3, 0]])
    assert placed([[1, 0, 1]], [[2, 4]], 5) == ([[0, 2, 4]], [[2, 1, 0]])


def test_a_copy_replaces_whom_it_supplants():
    assert placed([[1, 1, 2]], [[0, 3, 4]], 6) == ([[0, 3, 4]], [[0, 1, 2]])


def test_remembered_ones_take_the_slots_that_are_free():
    assert placed([[4, 2, 5]], [[0, 1, 2]], 3) == ([[0, 1, 2]], [[0, 2, 1]])
    assert placed([[3, 4, 5]], [[0, 1, 2]], 3) == ([[0, 1, 2]], [[0, 1, 2]])


@st.composite
def populations(draw: st.DrawFn) -> tuple[Table, Table, int]:
    num_slots = draw(st.integers(1, 6))
    K = draw(st.integers(1, num_slots))
    M = draw(st.integers(1, num_slots))
    R = draw(st.integers(0, 3))
    P = draw(st.integers(1, 3))
    ancestors = [draw(st.lists(st.integers(0, K + R - 1), min_size=M, max_size=M)) for _ in range(P)]
    slots = [sorted(draw(st.permutations(range(num_slots)))[:K]) for _ in range(P)]
    return ancestors, slots, num_slots


@settings(deadline=None, max_examples=300)
@given(populations())
def test_any_plan(case):
    """Slots are distinct, ascending and of the population; whoever is continued in one of them stays; what becomes of a
    population is its own affair."""
    ancestors, slots, num_slots = case
    taken, order = placed(ancestors, slots, num_slots)
    for row, old, new, turn in zip(ancestors, slots, taken, order):
        M, K = len(row), len(old)
        assert new == sorted(set(new)) and len(new) == M and set(new) <= set(range(num_slots))
        assert sorted(turn) == list(range(M))
        lives_in = dict(zip(new, turn))
        if M == K and max(row) < K:
            assert new == old and turn == list(range(M))
        else:
            for k, slot in enumerate(old):
                if k in row:
                    assert lives_in[slot] == row.index(k), "the first of those that continue a particle"
            free = [slot for slot in range(num_slots) if slot not in {old[k] for k in row if k < K}]
            others = [m for m in range(M) if row[m] >= K or row.index(row[m]) != m]
            assert [lives_in[slot] for slot in free[: len(others)]] == others
        assert placed([row], [old], num_slots) == ([new], [turn])

from __future__ import annotations

import math

import pytest
import torch
from diffusion_1d import MIXTURE
from driver import Run, drive, num_steps, start

from fk_steer.search import Evolution, Look, RewardFacts


STEPS, AT, EARLIER, BACK = num_steps(MIXTURE), 5, 3, 3


def run_of(P: int, K: int, generations: int) -> Run:
    return drive(start(Evolution(K, generations, at=AT, back=BACK), MIXTURE, P), MIXTURE, (P, K), seed=K)


@pytest.mark.parametrize("K", [1, 2, 4, 5, 8])
@pytest.mark.parametrize("generations", [1, 2, 4])
def test_parents_are_the_better_half_of_parents_and_children(K, generations):
    """By brute force: a list of (reward, state) for each population, sorted."""
    P, half = 6, math.ceil(K / 2)
    run = run_of(P, K, generations)
    assert len(run.seen) == generations + 1
    from_before = 0
    for p in range(P):
        parents: list[tuple[float, float]] = []
        best = -math.inf
        for seen in run.seen:
            children = list(zip(seen.look.rewards[p].tolist(), seen.before[p].tolist()))
            everyone = sorted(parents + children, reverse=True)
            from_before += any(one in parents for one in everyone[:half])
            last = seen is run.seen[-1]
            parents = everyone[:K] if last else everyone[:half]
            assert parents[0][0] >= best, "the best reward never falls"
            best = parents[0][0]
            states = [state for _, state in parents]
            expected = states if last else (states + states)[:K]
            assert sorted(seen.after[p].tolist()) == sorted(expected)
    assert from_before or generations == 1, "some parents outlive a generation, or this tests little"


def test_the_best_of_all_go_on():
    run = run_of(4, 4, 3)
    assert run.seen[-1].plan.resume is None
    seen_at_all = torch.stack([seen.look.rewards.amax(1) for seen in run.seen]).amax(0)
    continued = MIXTURE.predict_x0(run.seen[-1].after, AT)
    assert torch.allclose(continued.amax(1), seen_at_all)


@pytest.mark.parametrize("generations", [1, 3])
def test_a_generation_costs_the_rows_of_the_way_back(generations):
    run = run_of(2, 4, generations)
    assert run.visited == [*range(AT + 1), *(generations * [*range(EARLIER, AT + 1)]), *range(AT + 1, STEPS)]
    assert run.rows == 2 * 4 * (STEPS + generations * BACK)
    assert [(seen.plan.resume, seen.plan.by) for seen in run.seen[:-1]] == [(EARLIER, "renoise")] * generations


def test_children_of_a_parent_differ():
    run = run_of(3, 4, 2)
    for seen in run.seen:
        assert all(len(set(row)) == 4 for row in seen.before.tolist())


def look(rewards: list[list[float]]) -> Look:
    values = torch.tensor(rewards, dtype=torch.float64)
    return Look(AT, STEPS, torch.arange(values.shape[1]).expand(values.shape), values)


def test_an_equal_does_not_replace_a_parent():
    search = start(Evolution(4, 2, at=AT, back=BACK), MIXTURE, 1)
    plan = search.step(look([[3.0, 1.0, 3.0, 2.0]]))
    assert plan.remember.tolist() == [[0, 2]] and plan.ancestors.tolist() == [[0, 2, 0, 2]]
    plan = search.step(look([[3.0, 3.0, 4.0, 0.0]]))
    assert plan.remember.tolist() == [[2, 4]]
    plan = search.step(look([[0.0, 3.0, 5.0, 4.0]]))
    assert plan.ancestors.tolist() == [[2, 3, 4, 5]] and AT not in search.events


def test_a_populations_slots_do_not_depend_on_what_its_neighbours_remember():
    """Slots decide which noise a child gets."""
    first = torch.tensor([[4.0, 3.0, 2.0, 1.0]] * 2)
    second = torch.tensor([[6.0, 9.0, 5.0, 8.0], [0.0, 0.0, 0.0, 0.0]])  # one has better children, one has not

    def slots_of(populations: list[int]) -> list[list[float]]:
        search = start(Evolution(4, 2, at=AT, back=BACK), MIXTURE, len(populations))
        rewards = iter([first[populations], second[populations], second[populations]])
        run = drive(search, MIXTURE, (len(populations), 4), reward=lambda x: next(rewards, x).double())
        return run.seen[1].ancestors.tolist()

    assert slots_of([0, 1])[0] == slots_of([0])[0]
    assert slots_of([0, 1])[1] == slots_of([1])[0]


def test_a_reward_that_only_compares_is_refused():
    with pytest.raises(ValueError, match="'mine' only those of particles"):
        Evolution().check(RewardFacts("mine", relative=True))


@pytest.mark.parametrize("at, back", [(0.3, 0.6), (9, 2)])
def test_outside_the_loop(at, back):
    with pytest.raises(ValueError, match="Expected to go back within the loop"):
        start(Evolution(at=at, back=back), MIXTURE, 1)

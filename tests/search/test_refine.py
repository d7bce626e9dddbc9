from __future__ import annotations

import math

import pytest
import torch
from diffusion_1d import MIXTURE
from driver import Run, drive, num_steps, start

from fk_steer.search import Look, Refine, RewardFacts


STEPS = num_steps(MIXTURE)
LAST = STEPS - 1


def run_of(settings: Refine, P: int = 3) -> Run:
    return drive(start(settings, MIXTURE, P), MIXTURE, (P, settings.num_particles))


def plain(K: int, *rounds: float, children: int | float | None = None) -> Refine:
    return Refine(K, schedule=(), greedy_from=1.0, rounds=rounds, children=children)


@pytest.mark.parametrize("K", [1, 2, 5])
@pytest.mark.parametrize("rounds", [(0.5,), (0.6, 0.3), (0.5, 0.5, 0.5)])
def test_the_best_so_far_is_the_parent(K, rounds):
    run = run_of(plain(K, *rounds))
    assert len(run.seen) == len(rounds) + 1
    for p in range(3):
        best = -math.inf, math.nan
        for seen in run.seen:
            best = max(best, *zip(seen.look.rewards[p].tolist(), seen.before[p].tolist()), key=lambda one: one[0])
            if seen is not run.seen[-1]:
                assert seen.after[p].tolist() == [best[1]] * K
        assert run.x[p].max() == best[1], "no round makes things worse"


def test_a_round_costs_the_rows_of_its_share():
    settings = plain(4, 0.5, 0.25, children=2)
    run = run_of(settings, 2)
    half, quarter = settings.steps_of(STEPS)
    assert (half, quarter) == (round(0.5 * STEPS), round(0.25 * STEPS))
    assert run.visited == [*range(STEPS), *range(STEPS - half, STEPS), *range(STEPS - quarter, STEPS)]
    assert run.rows == 2 * (4 * STEPS + 2 * (half + quarter))
    assert [(seen.plan.resume, seen.plan.by) for seen in run.seen[:2]] == [
        (STEPS - half, "renoise"),
        (STEPS - quarter, "renoise"),
    ]


@pytest.mark.parametrize(("children", "number"), [(None, 6), (4, 4), (9, 6), (0.5, 3), (0.01, 1)])
def test_children(children, number):
    settings = plain(6, 0.5, children=children)
    assert settings.num_children() == number
    assert run_of(settings).seen[0].plan.ancestors.shape == (3, number)


def test_an_equal_does_not_replace_the_parent():
    search = start(plain(2, 0.5, 0.5), MIXTURE, 1)

    def step(rewards: list[float]) -> tuple[list[list[int]], list[list[int]] | None]:
        plan = search.step(Look(LAST, STEPS, torch.arange(2)[None], torch.tensor([rewards], dtype=torch.float64)))
        return plan.ancestors.tolist(), None if plan.remember is None else plan.remember.tolist()

    assert step([3.0, 1.0]) == ([[0, 0]], [[0]])
    assert step([3.0, 2.0]) == ([[2, 2]], [[2]])
    assert step([1.0, 4.0]) == ([[1, 2]], None)
    assert not search.events


def test_rounds_end_greedily_too():
    settings = Refine(4, rounds=(0.5,), greedy_from=0.7)
    run = run_of(settings)
    late = list(settings.greedy(STEPS))
    steps = [seen.look.step for seen in run.seen]
    assert steps[-2 * len(late) - 2 :] == [*late, LAST, *late, LAST]
    after = run.seen[-len(late) - 1]
    assert after.look.step == late[0] and after.plan.directions is None, "the children of a round are no siblings yet"
    assert run.seen[-len(late)].plan.directions is not None or len(late) == 1


@pytest.mark.parametrize(
    ("setting", "value"), [("rounds", (1.0,)), ("rounds", (0.0,)), ("children", 0), ("children", 1.5)]
)
def test_values_out_of_range(setting, value):
    with pytest.raises(ValueError, match=setting):
        Refine(**{setting: value})


def test_a_reward_that_only_compares_is_refused():
    with pytest.raises(ValueError, match="compares rewards of different moments"):
        Refine().check(RewardFacts(name="pairs", relative=True))

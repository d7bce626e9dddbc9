from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusion_1d import MIXTURE
from driver import Run, drive, num_steps, start

from fk_steer.search import Look, Refine, RewardFacts


STEPS = num_steps(MIXTURE)
LAST = STEPS - 1


def run_of(settings: Refine, P: int = 3) -> Run:
    return drive(start(settings, MIXTURE, P), MIXTURE, (P, settings.num_particles))


def plain(K: int, rounds: int, *strengths: float, **settings: Any) -> Refine:
    return Refine(K, schedule=(), greedy_from=1.0, rounds=rounds, strengths=strengths, **settings)


@pytest.mark.parametrize("K", [1, 2, 5])
@pytest.mark.parametrize("rounds", [1, 3])
def test_the_best_so_far_is_the_parent(K, rounds):
    run = run_of(plain(K, rounds, 0.5))
    assert len(run.seen) == rounds + 1
    for p in range(3):
        best = -math.inf, math.nan
        for seen in run.seen:
            best = max(best, *zip(seen.look.rewards[p].tolist(), seen.before[p].tolist()), key=lambda one: one[0])
            if seen is not run.seen[-1]:
                assert seen.after[p].tolist() == [best[1]] * K
        assert run.x[p].max() == best[1], "no round makes things worse"


def test_a_round_costs_the_rows_of_its_share():
    settings = plain(4, 2, 0.4, children=2)
    run = run_of(settings, 2)
    (share,) = settings.steps_of(STEPS)
    assert share == round(0.4 * STEPS)
    assert run.visited == [*range(STEPS), *(2 * [*range(STEPS - share, STEPS)])]
    assert run.rows == 2 * (4 * STEPS + 2 * 2 * share) == 2 * settings.cost(STEPS)
    assert [(seen.plan.resume, seen.plan.by) for seen in run.seen[:2]] == [(STEPS - share, "renoise")] * 2


def outcomes(settings: Refine, rewards: list[list[float]]) -> list[tuple[int | None, list[bool]]]:
    """Where rounds begin and who takes part, for rewards of one particle in each of two prompts at the end of each."""
    search, seen = start(settings, MIXTURE, 2), []
    for ones in rewards:
        values = torch.tensor(ones, dtype=torch.float64)[:, None]
        plan = search.step(Look(LAST, STEPS, torch.zeros(2, 1, dtype=torch.long), values))
        asleep = torch.zeros(2, dtype=torch.bool) if plan.asleep is None else plan.asleep
        seen.append((plan.resume, (~asleep).tolist()))
    return seen


def test_each_prompt_has_its_strength():
    """The first gets better with the first strength, then no more; the second with the second alone."""
    settings = plain(1, 3, 0.6, 0.4)
    long, short = (STEPS - steps for steps in settings.steps_of(STEPS))
    assert outcomes(settings, [[0.0, 0.0], [1.0, -1.0], [0.5, 9.0], [9.0, 2.0], [0.0, 9.0]]) == [
        (long, [True, True]),
        (long, [True, False]),  # the second has failed and waits for a round of the other strength
        (short, [True, True]),  # the first has failed too; what a prompt that sleeps seems to have does not count
        (short, [False, True]),  # the first has made its three rounds
        (None, [True, True]),
    ]


def test_patience():
    settings = plain(1, 9, 0.5, patience=2)
    (steps,) = settings.steps_of(STEPS)
    back = STEPS - steps
    assert outcomes(settings, [[0.0, 0.0], [1.0, -1.0], [1.0, -1.0], [2.0, 9.0], [1.0, 9.0], [1.0, 9.0]]) == [
        (back, [True, True]),
        (back, [True, True]),
        (back, [True, False]),
        (back, [True, False]),
        (back, [True, False]),
        (None, [True, True]),
    ]


@pytest.mark.parametrize("greedy_from", [0.7, 1.0])
def test_what_others_do_makes_no_difference(greedy_from):
    """Each prompt ends with the best that it has seen, whichever rounds it took part in."""
    settings = Refine(3, rounds=4, strengths=(0.6, 0.3), patience=2, greedy_from=greedy_from)
    run = run_of(settings, 8)
    assert len({tuple(seen.plan.asleep.tolist()) for seen in run.seen if seen.plan.asleep is not None}) > 1
    for p in range(8):
        ends = [seen for seen in run.seen if seen.look.step == LAST]
        awake = [True] + [not (s.plan.asleep is not None and s.plan.asleep[p]) for s in ends[:-1]]
        best = max(float(s.look.rewards[p].max()) for s, played in zip(ends, awake) if played)
        assert float(MIXTURE.predict_x0(run.x, LAST)[p].max()) == pytest.approx(best)


@pytest.mark.parametrize(("children", "number"), [(None, 6), (4, 4), (9, 6), (0.5, 3), (0.01, 1)])
def test_children(children, number):
    settings = plain(6, 1, 0.5, children=children)
    assert settings.num_children() == number
    assert run_of(settings).seen[0].plan.ancestors.shape == (3, number)


def test_an_equal_does_not_replace_the_parent():
    search = start(plain(2, 2, 0.5), MIXTURE, 1)

    def step(rewards: list[float]) -> tuple[list[list[int]], list[list[int]] | None]:
        plan = search.step(Look(LAST, STEPS, torch.arange(2)[None], torch.tensor([rewards], dtype=torch.float64)))
        return plan.ancestors.tolist(), None if plan.remember is None else plan.remember.tolist()

    assert step([3.0, 1.0]) == ([[0, 0]], [[0]])
    assert step([3.0, 2.0]) == ([[2, 2]], [[2]])
    assert step([1.0, 4.0]) == ([[1, 2]], None)
    assert not search.events


def test_rounds_end_greedily_too():
    settings = Refine(4, greedy_from=0.7)
    run = run_of(settings)
    late = list(settings.greedy(STEPS))
    steps = [seen.look.step for seen in run.seen]
    assert steps[-2 * len(late) - 2 :] == [*late, LAST, *late, LAST]
    after = run.seen[-len(late) - 1]
    assert after.look.step == late[0] and after.plan.directions is None, "the children of a round are no siblings yet"
    assert run.seen[-len(late)].plan.directions is not None or len(late) == 1


@pytest.mark.parametrize(
    ("setting", "value"),
    [("rounds", -1), ("strengths", (1.0,)), ("strengths", ()), ("patience", 0), ("children", 0), ("children", 1.5)],
)
def test_values_out_of_range(setting, value):
    with pytest.raises(ValueError, match=setting):
        Refine(**{setting: value})


def test_a_reward_that_only_compares_is_refused():
    with pytest.raises(ValueError, match="compares rewards of different moments"):
        Refine().check(RewardFacts(name="pairs", relative=True))


def test_prompts_that_are_good_enough_make_no_rounds():
    settings = plain(1, 9, 0.5, stop=1.0)
    (steps,) = settings.steps_of(STEPS)
    assert outcomes(settings, [[0.0, 2.0], [0.5, 9.0], [1.5, 9.0]]) == [
        (STEPS - steps, [True, False]),
        (STEPS - steps, [True, False]),
        (None, [True, True]),
    ]


def test_no_average_over_a_path_that_goes_back():
    with pytest.raises(ValueError, match="'refine' goes back, so `average_last` has no path"):
        Refine(average_last=2)

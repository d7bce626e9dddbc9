from __future__ import annotations

import math

import pytest
import torch
from diffusion_1d import MIXTURE
from driver import Run, drive, num_steps, start

from fk_steer.search import DepthFirst, Look, RewardFacts, Search


P, K, STEPS = 12, 2, num_steps(MIXTURE)
AT, EARLIER, BACK = 4, 2, 3
"""Judged at step 4; three steps are taken again, from step 2 on."""


def run_of(target: float | None, attempts: int = 3, populations: int = P, seed: int = 0) -> Run:
    search = start(DepthFirst(K, target, attempts, at=AT, back=BACK), MIXTURE, populations)
    return drive(search, MIXTURE, (populations, K), seed=seed)


def fate(rewards: list[float], target: float) -> int:
    """Which of the looks at a population goes on: the first that reaches the target, or the first best one."""
    reached = [number for number, reward in enumerate(rewards) if reward >= target]
    return reached[0] if reached else rewards.index(max(rewards))


def best_at_each_look(run: Run, p: int, target: float) -> list[float]:
    """The best reward of a population at each look while it was awake."""
    rewards = [seen.look.rewards[p].max().item() for seen in run.seen]
    reached = [number for number, reward in enumerate(rewards) if reward >= target]
    return rewards[: reached[0] + 1] if reached else rewards


@pytest.mark.parametrize("attempts", [1, 3])
@pytest.mark.parametrize("target", [-0.2, 0.0, 0.35, None])
def test_the_first_good_attempt_or_the_best_of_all_goes_on(target, attempts):
    run = run_of(target, attempts)
    bar = math.inf if target is None else target
    chosen = [fate(best_at_each_look(run, p, bar), bar) for p in range(P)]
    for p, number in enumerate(chosen):
        assert torch.equal(run.seen[-1].after[p], run.seen[number].before[p]), "the very states of that attempt"
    assert len(run.seen) <= attempts + 1
    if target == 0.0 and attempts == 3:
        assert len(set(chosen)) > 2, "populations have different fates, or this tests little"
    if target is None:
        assert len(run.seen) == attempts + 1


def test_nobody_goes_back_where_all_are_good_enough():
    run = run_of(-100.0)
    assert run.visited == list(range(STEPS)) and len(run.seen) == 1
    assert run.rows == P * K * STEPS
    unseen = drive(Search(), MIXTURE, (P, K))
    assert torch.equal(run.x, unseen.x) and torch.equal(run.seen[0].after, run.seen[0].before)


def test_whoever_is_good_enough_sleeps_and_is_not_computed():
    """An attempt costs `back` of the rows of the populations that are below the target, and no others."""
    target = 0.0
    run = run_of(target)
    looks = [len(best_at_each_look(run, p, target)) for p in range(P)]
    attempts = [number - 1 for number in looks]
    assert set(attempts) >= {0, 1, 3}
    assert run.rows == K * (P * STEPS + sum(attempts) * BACK)
    assert run.visited == [*range(AT + 1), *(3 * [*range(EARLIER, AT + 1)]), *range(AT + 1, STEPS)]
    for number, seen in enumerate(run.seen[:-1]):
        asleep = [attempt <= number for attempt in attempts]
        assert seen.plan.asleep.tolist() == asleep
        assert seen.plan.resume == EARLIER and seen.plan.by == "renoise"
    assert run.seen[-1].plan.asleep is None and run.x.isfinite().all()


def test_attempts_come_down_with_other_noise():
    run = run_of(None)
    states = torch.stack([seen.before for seen in run.seen])
    assert len(states.unique()) == states.numel()


def test_a_population_goes_on_as_one_of_its_attempts_and_not_as_a_mixture():
    """With two particles the better reward of an attempt stands for both."""
    run = run_of(None)
    for p in range(P):
        both = [sorted(seen.before[p].tolist()) for seen in run.seen]
        assert sorted(run.seen[-1].after[p].tolist()) in both


def look(step: int, rewards: list[list[float]]) -> Look:
    values = torch.tensor(rewards, dtype=torch.float64)
    return Look(step, STEPS, torch.arange(values.shape[1]).expand(values.shape), values)


def test_attempts_are_counted():
    for attempts in (1, 2, 5):
        search = start(DepthFirst(K, 1.0, attempts, at=AT, back=BACK), MIXTURE, 1)
        plans = []
        while AT in search.events:
            plans.append(search.step(look(AT, [[0.0, -1.0]])))
        assert [plan.resume for plan in plans] == [EARLIER] * attempts + [None]


def test_a_tie_does_not_replace_what_is_kept():
    search = start(DepthFirst(K, 1.0, 1, at=AT, back=BACK), MIXTURE, 1)
    search.step(look(AT, [[0.0, 0.5]]))
    assert search.step(look(AT, [[0.5, 0.2]])).ancestors.tolist() == [[2, 3]]


def test_rewards_of_minus_infinity_are_the_worst_beside_others_and_alone():
    search = start(DepthFirst(K, 1.0, 2, at=AT, back=BACK), MIXTURE, 2)
    search.step(look(AT, [[-math.inf, -math.inf], [0.0, 0.0]]))
    plan = search.step(look(AT, [[-math.inf, -5.0], [-math.inf, -math.inf]]))
    assert plan.remember.tolist() == [[0, 1], [2, 3]]
    for neighbours in ([], [[0.0, 0.0]]):
        search = start(DepthFirst(K, 1.0, 2, at=AT, back=BACK), MIXTURE, 1 + len(neighbours))
        plans = [search.step(look(AT, [[-math.inf, -math.inf], *neighbours])) for _ in range(3)]
        assert [plan.remember[0].tolist() for plan in plans[:2]] == [[0, 1], [2, 3]]
        assert plans[2].ancestors[0].tolist() == [2, 3]


def test_at_the_target_is_good_enough():
    plan = start(DepthFirst(K, 0.5, at=AT, back=BACK), MIXTURE, 1).step(look(AT, [[0.5, 0.0]]))
    assert plan.resume is None and plan.ancestors.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    "at, back, num_steps, step, earlier",
    [(0.6, 0.3, 10, 5, 3), (0.6, 0.3, 100, 59, 30), (4, 3, 9, 4, 2), (0.9, 0.9, 10, 8, 0), (3, 1, 9, 3, 3)],
)
def test_where_to_judge_and_where_to_go_back_to(at, back, num_steps, step, earlier):
    """From 60% of the loop by 30% to 30% of it: the steps after that are taken again."""
    assert DepthFirst(at=at, back=back).span(num_steps) == (step, earlier)


@pytest.mark.parametrize("at, back", [(0.3, 0.6), (4, 6), (9, 2), (4, 0), (0.6, 0.001)])
def test_outside_the_loop(at, back):
    with pytest.raises(ValueError, match="Expected to go back within the loop of 9 steps"):
        start(DepthFirst(K, 1.0, at=at, back=back), MIXTURE, 1)


def test_a_reward_that_only_compares_is_refused():
    with pytest.raises(ValueError, match="'mine' only those of particles"):
        DepthFirst().check(RewardFacts("mine", relative=True))

from __future__ import annotations

import pytest
import torch
from diffusion_1d import MIXTURE
from driver import drive, num_steps, start

from fk_steer.search import Finish, FKSteering, Look
from fk_steer.smc import Schedule


STEPS = num_steps(MIXTURE)
EARLY = Schedule(at=(0.3, 0.5, 0.9))


def look(step: int, rewards: list[list[float]]) -> Look:
    values = torch.tensor(rewards, dtype=torch.float64)
    return Look(step, STEPS, torch.arange(values.shape[1]).expand(values.shape), values)


def test_until_then_it_is_steering():
    """The same plans as those of the steering alone, from the same rewards."""
    runs = [
        drive(start(settings, MIXTURE, 3), MIXTURE, (3, 5))
        for settings in (FKSteering(5, schedule=Schedule(at=(0.3, 0.5))), Finish(5, schedule=EARLY, greedy_from=0.7))
    ]
    late = Finish(greedy_from=0.7).greedy(STEPS).start
    alone, both = ([seen for seen in run.seen if seen.look.step < late] for run in runs)
    assert len(alone) == len(both) == 2
    for one, other in zip(alone, both):
        assert torch.equal(one.ancestors, other.ancestors) and torch.equal(one.after, other.after)


@pytest.mark.parametrize("greedy_from", [0.5, 0.72, 0.9])
def test_then_all_continue_the_best_at_every_step(greedy_from):
    settings = Finish(4, greedy_from=greedy_from)
    run = drive(start(settings, MIXTURE, 3), MIXTURE, (3, 4))
    late = settings.greedy(STEPS)
    assert [seen.look.step for seen in run.seen if seen.look.step >= late.start] == list(late)
    for seen in run.seen:
        if seen.look.step in late:
            best = seen.before.gather(1, seen.look.rewards.argmax(1, keepdim=True))
            assert torch.equal(seen.after, best.expand(3, 4))
    assert run.search.log_normalizer is None
    assert run.outcome is not None and torch.equal(run.outcome.weights.log, run.outcome.weights.log[:, :1].expand(3, 4))


def test_the_noise_of_siblings_is_weighed_by_their_rewards():
    search = start(Finish(4, schedule=(), greedy_from=0.5), MIXTURE, 2)
    first, *_ = Finish(greedy_from=0.5).greedy(STEPS)
    rewards = [[1.0, 2.0, 6.0, 3.0], [0.0, 0.0, 0.0, 0.0]]
    assert search.step(look(first, rewards)).directions is None, "the first are no siblings"
    directions = search.step(look(first + 1, rewards)).directions
    assert directions is not None and directions.shape == (2, 4, 4)
    assert directions[0, 3].tolist() == [-2.0, -1.0, 3.0, 0.0]
    assert not directions[:, :3].any() and not directions[1].any()


@pytest.mark.parametrize("settings", [Finish(2), Finish(8, recombine=False)])
def test_without_recombination(settings):
    run = drive(start(settings, MIXTURE, 1), MIXTURE, (1, settings.num_particles))
    assert all(seen.plan.directions is None for seen in run.seen)


def test_infinite_rewards_give_no_direction():
    search = start(Finish(3, schedule=(), greedy_from=0.5), MIXTURE, 1)
    first, *_ = Finish(greedy_from=0.5).greedy(STEPS)
    search.step(look(first, [[0.0, 1.0, 2.0]]))
    plan = search.step(look(first + 1, [[0.0, -torch.inf, 2.0]]))
    assert plan.directions is not None and plan.directions.isfinite().all()


@pytest.mark.parametrize("value", [-0.1, 1.1, "late"])
def test_a_share_of_the_loop(value):
    with pytest.raises(ValueError, match="greedy_from"):
        Finish(greedy_from=value)


def test_pruning_that_is_left_out_is_not_counted():
    """An event from `greedy_from` on keeps nobody from going on, and a run costs what the settings say."""
    settings = Finish(6, schedule=Schedule(at=(0.3, 0.9), alive=(4, 1)), greedy_from=0.6)
    run = drive(start(settings, MIXTURE, 2), MIXTURE, (2, 6))
    assert [seen.plan.ancestors.shape[1] for seen in run.seen] == [4] * len(run.seen)
    assert run.rows <= 2 * settings.cost(STEPS)
    assert settings.cost(STEPS) == 6 * (min(settings.sizes(STEPS)) + 1) + 4 * (STEPS - min(settings.sizes(STEPS)) - 1)


def test_without_events_of_its_own_it_looks_all_the_same():
    assert Finish(schedule=()).looks and not FKSteering(schedule=()).looks


def test_final_images_are_ranked_by_the_end_of_their_path():
    """All come from one path but for the last step, so the average only adds what they share."""
    settings = Finish(4, greedy_from=0.7, average_last=2)
    run = drive(start(settings, MIXTURE, 3), MIXTURE, (3, 4))
    assert run.outcome is not None and run.outcome.ranking is not None
    looked = [seen.look.rewards.gather(1, seen.ancestors) for seen in run.seen[-2:]]
    looked[0] = looked[0].gather(1, run.seen[-1].ancestors)
    torch.testing.assert_close(run.outcome.ranking, (looked[0] + looked[1] + run.x) / 3)


def test_no_elite():
    with pytest.raises(ValueError, match="'finish' lets all particles continue the best one, so `elite` cannot"):
        Finish(elite=True)

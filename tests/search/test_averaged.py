"""Final images ranked by the end of their own path."""

from __future__ import annotations

import pytest
import torch
from diffusion_1d import MIXTURE
from driver import Run, drive, num_steps, start
from torch import Tensor

from fk_steer.search import Averaged, FKSteering, Look, Outcome, Plan, Search, strategy
from fk_steer.smc import Schedule


P, K = 6, 4
EVENTS = (2, 4, 6)


def run_of(settings: FKSteering, **options: object) -> Run:
    return drive(start(settings, MIXTURE, P), MIXTURE, (P, settings.num_particles), seed=1, **options)  # type: ignore[arg-type]


def ranking_by_hand(run: Run, last: int) -> Tensor:
    """For every final particle, back along its ancestors: the mean of the last rewards on its path."""
    means = torch.empty(run.x.shape, dtype=torch.float64)
    for p in range(P):
        for k in range(run.x.shape[1]):
            path, place = [run.x[p, k].item()], k
            for seen in reversed(run.seen):
                place = int(seen.ancestors[p, place])
                path.append(seen.look.rewards[p, place].item())
            means[p, k] = sum(path[: last + 1]) / len(path[: last + 1])
    return means


@pytest.mark.parametrize("last", [1, 2, 3, 9])
@pytest.mark.parametrize(
    "overrides",
    [
        {"schedule": EVENTS},
        {"schedule": EVENTS, "resampling": "multinomial"},
        {"schedule": EVENTS, "resampling": "argmax"},
        {"schedule": Schedule(EVENTS, (3, 1, 4))},
        {"schedule": Schedule(EVENTS, (2, 2, 2)), "resampling": "top-k"},
        {"schedule": EVENTS, "elite": True},
        {"schedule": EVENTS, "standardize": True},
        {"schedule": EVENTS, "stop": 0.5},
    ],
    ids=str,
)
def test_the_mean_is_over_a_particles_own_path(overrides, last):
    run = run_of(FKSteering(K, average_last=last, **overrides))
    assert run.outcome is not None and run.outcome.ranking is not None
    torch.testing.assert_close(run.outcome.ranking, ranking_by_hand(run, last))


def test_nothing_else_changes():
    plain, averaged = (run_of(FKSteering(K, schedule=EVENTS, average_last=last)) for last in (0, 2))
    assert plain.outcome is not None and averaged.outcome is not None
    assert torch.equal(plain.x, averaged.x)
    assert torch.equal(plain.outcome.weights.log, averaged.outcome.weights.log)
    assert plain.outcome.ranking is None
    assert torch.equal(plain.search.log_normalizer, averaged.search.log_normalizer)


class Still(Search):
    """Everyone goes on."""

    events = range(4)
    unscored = (1,)

    def step(self, look: Look) -> Plan:
        return Plan(look.everyone)


def finished(search: Search, looks: list[tuple[list[float], bool]], final: list[float]) -> Outcome:
    slots = torch.arange(2)[None]
    for step, (rewards, final_reward) in enumerate(looks):
        values = torch.tensor([rewards], dtype=torch.float64)
        plan = search.step(Look(step, num_steps(MIXTURE), slots, values, final_reward=final_reward))
        search.adopt(plan.ancestors)
    return search.finish(torch.tensor([final], dtype=torch.float64))


def test_rewards_of_another_scale_and_of_steps_that_are_not_scored_do_not_count():
    looks = [([100.0, -100.0], False), ([0.0, 0.0], True), ([2.0, 4.0], True)]
    outcome = finished(Averaged(Still(), 3), looks, [4.0, 1.0])
    assert outcome.ranking is not None and outcome.ranking.tolist() == [[3.0, 2.5]]


def test_without_events_it_is_the_reward():
    outcome = finished(Averaged(Still(), 3), [], [4.0, 1.0])
    assert outcome.ranking is not None and outcome.ranking.tolist() == [[4.0, 1.0]]


def test_infinities_of_both_signs_leave_the_final_reward():
    outcome = finished(Averaged(Still(), 1), [([-torch.inf, torch.inf], True)], [torch.inf, 1.0])
    assert outcome.ranking is not None and outcome.ranking.tolist() == [[torch.inf, torch.inf]]


@pytest.mark.parametrize("value", [-1, 1.5, "two"])
def test_mistakes(value):
    with pytest.raises(ValueError, match="`average_last`"):
        FKSteering(average_last=value)


def test_survives_being_written_down():
    settings = FKSteering(average_last=2)
    assert strategy.Strategy.from_dict(settings.to_dict()) == settings

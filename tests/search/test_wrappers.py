"""The particle that is kept, prompts that are good enough, z-scores, and the search that they change."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from diffusion_1d import MIXTURE
from driver import Run, drive, leap, num_steps, start
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fk_steer.search import (
    SMC,
    EarlyStop,
    Elite,
    FKSteering,
    Look,
    Lookahead,
    Plan,
    Search,
    Standardized,
    Start,
    Wrapper,
)
from fk_steer.smc import RESAMPLERS, FeynmanKac, Max, Resampling, Schedule, Weights, standardize


P, K, STEPS = 6, 4, num_steps(MIXTURE)
EVENTS = (2, 4, 6)


def steering(**overrides: object) -> FKSteering:
    return FKSteering(K, 4.0, **{"tempering": "constant", "schedule": EVENTS, **overrides})  # type: ignore[arg-type]


def run_of(strategy: FKSteering, populations: int = P, seed: int = 0, **options: object) -> Run:
    return drive(
        start(strategy, MIXTURE, populations), MIXTURE, (populations, strategy.num_particles), seed=seed, **options
    )


def look_at(rewards: list[list[float]], step: int = 2, **options: object) -> Look:
    values = torch.tensor(rewards, dtype=torch.float64)
    return Look(step, STEPS, torch.arange(values.shape[1]).expand(values.shape), values, **options)  # type: ignore[arg-type]


# SMC.


@pytest.mark.parametrize("potential", ["difference", "max", "sum", "current"])
@pytest.mark.parametrize("schedule", [EVENTS, Schedule(EVENTS, (3, 1, 4)), Schedule(EVENTS, (2, 2, 2))], ids=str)
@pytest.mark.parametrize("ess_threshold", [0.5, 1.0])
def test_smc_is_the_feynman_kac_model(potential, schedule, ess_threshold):
    """Weights, ancestors, normaliser: those of the model on the rewards seen, particle by particle."""
    strategy = steering(potential=potential, schedule=schedule, resampling=Resampling("ssp", ess_threshold))
    run = run_of(strategy)
    model = FeynmanKac(4.0, strategy.potential, strategy.tempering, strategy.resampling)
    generators = [torch.Generator().manual_seed(1000 + p) for p in range(P)]
    state, sizes = model.start(P, K), list(strategy.schedule.events(STEPS, K).values())
    for seen, size in zip(run.seen, sizes):
        state = model.weigh(state, seen.look.rewards, seen.look.progress)
        ancestors, resampled = model.select(state, size, generators)
        assert torch.equal(seen.plan.weights.log, state.weights.log)
        assert torch.equal(seen.plan.ancestors, ancestors) and torch.equal(seen.plan.resampled, resampled)
        assert torch.equal(seen.plan.lmbda, state.lmbda)
        # In the order of their slots, which is that in which they are seen next.
        assert torch.equal(seen.ancestors.sort(1).values, ancestors.sort(1).values)
        state = model.follow(state, seen.ancestors, resampled)
    state, event = model.finish(state, run.x)
    assert torch.equal(run.outcome.weights.log, event.weights.log)
    assert torch.equal(run.outcome.lmbda, torch.full((P,), 4.0).double())
    assert torch.equal(run.search.log_normalizer, state.log_normalizer)


def test_slots_and_what_lives_in_them():
    """Pruned to three, to one, and grown to four again: survivors stay, copies take free slots."""
    run = run_of(steering(schedule=Schedule(EVENTS, (3, 1, 4)), resampling="top-k", potential="current"))
    assert [seen.slots.shape[1] for seen in run.seen] == [3, 1, 4]
    for seen in run.seen[:2]:
        assert torch.equal(seen.slots, seen.look.slots.gather(1, seen.ancestors))
        assert torch.equal(seen.after, seen.before.gather(1, seen.ancestors))
    assert run.slots.tolist() == [[0, 1, 2, 3]] * P
    assert all(len(set(row)) == K for row in run.x.tolist())


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**20),
    sizes=st.lists(st.integers(1, K), min_size=3, max_size=3),
    resampler=st.sampled_from(sorted(RESAMPLERS)),
    potential=st.sampled_from(["difference", "max", "sum", "current"]),
    ess_threshold=st.sampled_from([0.0, 0.5, 1.0]),
    elite=st.booleans(),
)
def test_lineages(seed, sizes, resampler, potential, ess_threshold, elite):
    """Slots are distinct and ascending, states are their ancestors', log G telescopes whatever is resampled or kept."""
    strategy = steering(
        schedule=Schedule(EVENTS, sizes),
        resampling=Resampling(resampler, ess_threshold),
        potential=potential,
        elite=elite,
    )
    run = run_of(strategy, seed=seed)
    alive = torch.arange(K).expand(P, K)
    for seen, size in zip(run.seen, sizes):
        assert torch.equal(seen.look.slots, alive)
        assert seen.slots.shape == (P, size) and (seen.slots.diff(dim=1) > 0).all()
        assert (seen.slots >= 0).all() and (seen.slots < K).all()
        assert torch.equal(seen.after, seen.before.gather(1, seen.ancestors))
        alive = seen.slots
    smc = run.search.inner if elite else run.search
    assert torch.allclose(smc.state.path, 4.0 * run.x)


def test_the_normalizer_is_estimated_only_where_it_is_consistent():
    assert run_of(steering()).search.log_normalizer.isfinite().all()
    for strategy in (
        steering(resampling="top-k"),
        steering(resampling="argmax"),
        steering(potential=Max(exact_terminal=False)),
        steering(standardize=True),
        steering(elite=True),
        steering(stop=-100.0),
    ):
        assert run_of(strategy).search.log_normalizer is None
    relative = start(steering(), MIXTURE, P, relative=True)
    assert drive(relative, MIXTURE, (P, K)).search.log_normalizer is None
    assert run_of(steering(stop=100.0)).search.log_normalizer.isfinite().all(), (
        "a target nobody reaches changes nothing"
    )


def test_a_population_in_which_particles_were_moved_has_no_weights_to_carry():
    search = SMC(
        steering(resampling=Resampling(ess_threshold=0.0)), Start(2, STEPS, [torch.Generator(), torch.Generator()])
    )
    search.step(look_at([[0.0, 1.0, 2.0, 3.0]] * 2))
    search.adopt(torch.tensor([[0, 1, 2, 3], [0, 0, 2, 3]]))
    assert search.state.weights.log[0].tolist() == [0.0, 4.0, 8.0, 12.0]
    assert search.state.weights.log[1].tolist() == [0.0] * 4
    assert search.state.path[1].tolist() == [0.0, 0.0, 8.0, 12.0]
    assert search.log_normalizer is None


# Elite.


def elite_path(run: Run, p: int, event: int) -> Tensor:
    """From the best particle at an event on, without noise."""
    seen = next(seen for seen in run.seen if seen.look.step == event)
    x = seen.before[p, seen.look.rewards[p].argmax()]
    for step in range(event, STEPS - 1):
        x = leap(MIXTURE, x, step, step + 1)
    return x


@pytest.mark.parametrize("resampler", RESAMPLERS)
@pytest.mark.parametrize("alive", [None, (3, 2, 1), (2, 4, 3), (1, 4, 4), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("potential", ["difference", "current"])
def test_the_elite_goes_on_without_noise_whatever_its_weight(resampler, alive, potential):
    """It is the best at the first event, and nothing that comes later ends it; the others get their noise."""
    run = run_of(
        steering(schedule=Schedule(EVENTS, alive), resampling=resampler, elite=True, potential=potential),
        reward=lambda x0: x0.sin() * 3,
    )
    for p in range(P):
        expected = elite_path(run, p, EVENTS[0])
        found = (run.x[p] - expected).abs() < 1e-9
        assert found.sum() == 1
    for seen in run.seen:
        assert (seen.plan.quiet.sum(1) == 1).all()


def test_the_result_is_never_worse_than_the_best_seed_without_noise():
    worst_case = run_of(steering(elite=True, resampling="multinomial"), 50)
    for p in range(50):
        assert worst_case.x[p].max() >= elite_path(worst_case, p, EVENTS[0]) - 1e-9


@pytest.mark.parametrize("window, event", [((0.0, 1.0), 2), ((4 / 9, 1.0), 4), ((5 / 9, 1.0), 4), ((6 / 9, 1.0), 6)])
def test_the_elite_is_the_best_at_the_first_event_with_noise_in_its_step_or_the_next(window, event):
    strategy = steering(elite=True, noise={"window": window}, potential="current")
    run = run_of(strategy, noisy=lambda step: strategy.noise.on(step, STEPS))
    first = next(seen for seen in run.seen if seen.plan.quiet is not None)
    assert first.look.step == event
    for p in range(P):
        assert ((run.x[p] - elite_path(run, p, event)).abs() < 1e-9).any()
    without = start(strategy, MIXTURE, P)
    drive(without, MIXTURE, (P, K), noisy=lambda step: False)
    assert without.log_normalizer is not None, "where there is no noise nobody is kept"


@settings(deadline=None, max_examples=200)
@given(data=st.data(), K=st.integers(1, 5), M=st.integers(1, 6), elite=st.integers(0, 4))
def test_any_plan_keeps_the_elite(data, K, M, elite):
    """Of an inner plan as little as possible is changed: nothing if the particle is in its place, one entry if not."""
    elite = elite % K
    ancestors = torch.tensor([data.draw(st.lists(st.integers(0, K - 1), min_size=M, max_size=M))])

    class Inner(Search):
        def step(self, look: Look) -> Plan:
            return Plan(ancestors)

    rewards = torch.zeros(1, K).double()
    rewards[0, elite] = 1.0
    plan = Elite(Inner()).step(look_at(rewards.tolist()))
    changed = (plan.ancestors != ancestors).nonzero()[:, 1].tolist()
    if M == K:
        assert changed == ([] if ancestors[0, elite] == elite else [elite])
        assert plan.quiet.nonzero().tolist() == [[0, elite]]
    else:
        assert changed == ([] if elite in ancestors[0] else [M - 1])
        assert plan.quiet.nonzero().tolist() == [[0, plan.ancestors[0].tolist().index(elite)]]
    assert plan.ancestors[plan.quiet].tolist() == [elite]


# EarlyStop.


def test_a_population_stops_at_its_target_and_its_neighbours_do_not_notice():
    target = 0.05
    stopping, other = run_of(steering(stop=target)), run_of(steering())
    stopped_at = {}
    for number, seen in enumerate(stopping.seen):
        for p in range(P):
            if p not in stopped_at and seen.look.rewards[p].max() >= target:
                stopped_at[p] = number
    assert 0 < len(stopped_at) < P and len(set(stopped_at.values())) > 1
    for number, seen in enumerate(stopping.seen):
        for p in range(P):
            stopped = stopped_at.get(p, 99) <= number
            assert seen.plan.stopped[p] == stopped
            if stopped:
                assert len(set(seen.ancestors[p].tolist())) == len(set(seen.slots[p].tolist())) == 1
                assert seen.plan.resampled[p]
            else:
                assert torch.equal(seen.ancestors[p], other.seen[number].ancestors[p])
    for p, number in stopped_at.items():
        assert stopping.x[p].std() == 0.0
        assert stopping.x[p, 0] == pytest.approx(elite_path(stopping, p, EVENTS[number]).item(), abs=1e-9)
    unstopped = [p for p in range(P) if p not in stopped_at]
    for p in unstopped:
        assert torch.equal(stopping.x[p], other.x[p])
        assert torch.equal(stopping.outcome.weights.log[p], other.outcome.weights.log[p])
    assert stopping.rows == other.rows - sum((K - 1) * (STEPS - 1 - EVENTS[number]) for number in stopped_at.values())


def test_a_stopped_population_stays_stopped_and_pruning_reaches_it_too():
    run = run_of(steering(stop=-100.0, schedule=Schedule(EVENTS, (3, 1, 4))))
    assert all(seen.plan.stopped.all() for seen in run.seen)
    assert [seen.slots.shape[1] for seen in run.seen] == [3, 1, 4]
    for p in range(P):
        assert run.x[p].tolist() == pytest.approx([elite_path(run, p, EVENTS[0]).item()] * K, abs=1e-9)
    assert run.outcome.weights.normalized.isfinite().all()
    assert run.rows == P * (K * (EVENTS[0] + 1) + STEPS - 1 - EVENTS[0])


def test_rewards_on_another_scale_stop_nobody_and_nothing_undoes_a_stop():
    search = EarlyStop(GoesOn(), 0.5)
    assert not search.step(look_at([[1.0, 0.0]], final_reward=False)).stopped.any()
    assert search.step(look_at([[0.5, 0.0]])).stopped.all()
    assert search.step(look_at([[0.0, 0.0]], final_reward=False)).stopped.all()
    assert search.step(look_at([[0.0, 0.0]])).stopped.all()


def test_the_target_is_on_the_scale_of_the_reward_where_z_scores_are_weighed():
    run = run_of(steering(stop=0.3, standardize=True))
    reached = torch.stack([seen.look.rewards.amax(1) >= 0.3 for seen in run.seen]).any(0)
    assert 0 < reached.sum() < P
    assert torch.equal(run.seen[-1].plan.stopped, reached)


class GoesOn(Search):
    """Everyone goes on."""

    def step(self, look: Look) -> Plan:
        return Plan(look.everyone)


# Standardized, and wrappers at large.


def test_z_scores_are_weighed():
    """Those of a search without the wrapper whose rewards are z-scores already."""
    shown = run_of(steering(standardize=True), reward=lambda x0: 100.0 * x0 + 7.0)
    plain = run_of(steering(), reward=standardize)
    for one, other in zip(shown.seen, plain.seen):
        assert torch.allclose(one.plan.weights.log, other.plan.weights.log)
        assert torch.equal(one.ancestors, other.ancestors)
    assert torch.equal(shown.x, plain.x)
    assert torch.allclose(shown.outcome.weights.log, plain.outcome.weights.log)
    asked = start(steering(), MIXTURE, P, standardize=True)
    again = drive(asked, MIXTURE, (P, K), reward=lambda x0: 100.0 * x0 + 7.0)
    assert torch.equal(again.x, shown.x), "the reward may ask for it too"


def test_wrappers_hand_on_what_they_do_not_change():
    class Inner(GoesOn):
        events, unscored = (1, 2), (1,)
        adopted = None

        def adopt(self, ancestors: Tensor) -> None:
            self.adopted = ancestors

        @property
        def log_normalizer(self) -> Tensor:
            return torch.tensor([0.5])

    for wrap in (Wrapper, Elite, Standardized, lambda inner: EarlyStop(inner, math.inf)):
        inner = Inner()
        search = wrap(wrap(inner))
        assert search.events == (1, 2) and search.unscored == (1,)
        ancestors = torch.tensor([[0, 0]])
        search.adopt(ancestors)
        assert inner.adopted is ancestors and search.log_normalizer.tolist() == [0.5]
        assert search.finish(torch.zeros(1, 2)).weights.log.tolist() == Weights.uniform(1, 2).log.tolist()
        inner.events = (2,)
        assert search.events == (2,), "events may change in the course of a run"


def test_a_wrapped_lookahead_comes_back():
    lookahead = Lookahead(K, EVENTS)
    plain = drive(start(lookahead, MIXTURE, P), MIXTURE, (P, K))
    wrapped = drive(Wrapper(start(lookahead, MIXTURE, P)), MIXTURE, (P, K))
    assert wrapped.visited == plain.visited and torch.equal(wrapped.x, plain.x)


def test_what_settings_are_wrapped_in():
    search = start(steering(elite=True, standardize=True, stop=1.0), MIXTURE, 1)
    kinds = []
    while isinstance(search, Wrapper):
        kinds.append(type(search))
        search = search.inner
    assert kinds == [EarlyStop, Standardized, Elite] and type(search) is SMC


def test_a_look():
    look = look_at([[1.0, 3.0, 3.0, -1.0]], step=4)
    assert look.ranked().tolist() == [[1, 2, 0, 3]]
    assert look.everyone.tolist() == [[0, 1, 2, 3]]
    assert look.progress == 5 / STEPS
    assert dataclasses.replace(look, step=STEPS - 1).progress == 1.0


def test_a_search_that_says_nothing():
    with pytest.raises(NotImplementedError, match="Search has to say what becomes of the particles"):
        Search().step(look_at([[0.0]]))
    assert Search().log_normalizer is None and not Search().events

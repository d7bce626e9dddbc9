from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fk_steer.smc import (
    POTENTIALS,
    RESAMPLERS,
    Constant,
    Current,
    Event,
    FeynmanKac,
    Max,
    Resampling,
    Rising,
    State,
    Sum,
    TargetESS,
)


NEVER, HALF, ALWAYS = Resampling(ess_threshold=0.0), Resampling(ess_threshold=0.5), Resampling(ess_threshold=1.0)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def rewards_of(P: int, K: int, seed: int) -> torch.Tensor:
    return torch.randn(P, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def first_event(model: FeynmanKac, rewards: list[list[float]] | torch.Tensor, progress: float = 0.5) -> Event:
    """The event of one step from equal weights."""
    rewards = torch.as_tensor(rewards)
    seeds = generators(*range(len(rewards)))
    return model.step(model.start(*rewards.shape), rewards, progress, generator=seeds)[1]


@pytest.mark.parametrize("potential", POTENTIALS)
@pytest.mark.parametrize("ess_threshold", [0.0, 0.5, 1.0])
def test_path_product_is_the_tilt(potential, ess_threshold):
    """Whatever happened on the way, log G summed over a path is lambda r(x_0)."""
    model = FeynmanKac(3.0, POTENTIALS[potential](), resampling=Resampling(ess_threshold=ess_threshold))
    state, seeds = model.start(2, 5), generators(0, 1)
    for step in range(4):
        state, _ = model.step(state, rewards_of(2, 5, step), step / 5, generator=seeds)
    final = rewards_of(2, 5, 9)
    state, _ = model.finish(state, final)
    assert torch.allclose(state.path, 3.0 * final)


def test_a_step_is_to_weigh_to_select_and_to_follow():
    model = FeynmanKac(3.0, resampling=HALF)
    begun, rewards = model.start(2, 5), rewards_of(2, 5, 0)
    together, event = model.step(begun, rewards, 0.5, 4, generators(0, 1))
    weighed = model.weigh(begun, rewards, 0.5)
    ancestors, resampled = model.select(weighed, 4, generators(0, 1))
    apart = model.follow(weighed, ancestors, resampled)
    assert torch.equal(together.weights.log, apart.weights.log)
    assert all(torch.equal(one, other) for one, other in zip(together[1:], apart[1:]))
    assert torch.equal(event.weights.log, weighed.weights.log) and torch.equal(event.ancestors, ancestors)
    assert torch.equal(begun.weights.log, torch.zeros(2, 5).double()), "a step leaves the state it is given as it is"


def test_what_follows_are_the_ancestors_chosen():
    """Paths, statistics and, where nothing was resampled, weights are those of the ancestors."""
    model = FeynmanKac(1.0, Max())
    weighed = model.weigh(model.start(2, 3), torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), 0.5)
    ancestors = torch.tensor([[2, 2, 0, 1], [1, 1, 1, 0]])
    state = model.follow(weighed, ancestors, torch.tensor([True, False]))
    assert state.path.tolist() == state.statistic.tolist() == [[3.0, 3.0, 1.0, 2.0], [5.0, 5.0, 5.0, 4.0]]
    assert state.weights.log.tolist() == [[0.0] * 4, [5.0, 5.0, 5.0, 4.0]]


def test_weights_are_carried_until_resampling():
    model = FeynmanKac(1.0, Current(), resampling=NEVER)
    state, first = model.step(model.start(1, 3), torch.tensor([[0.1, 0.2, 0.3]]), 0.3)
    state, second = model.step(state, torch.tensor([[0.0, 0.5, 0.0]]), 0.6)
    assert not first.resampled.any() and not second.resampled.any()
    assert torch.allclose(second.weights.normalized, torch.tensor([[0.1, 0.7, 0.3]]).double().softmax(1))


def test_effective_sample_size_triggers_per_population():
    model = FeynmanKac(1.0, resampling=HALF)
    rewards = torch.tensor([[0.0, 0.0, 0.0, 50.0], [0.0, 0.0, 0.0, 0.1]])
    state, event = model.step(model.start(2, 4), rewards, 0.5, generator=generators(0, 1))
    assert event.resampled.tolist() == [True, False]
    assert event.ancestors.tolist() == [[3, 3, 3, 3], [0, 1, 2, 3]]
    assert torch.equal(state.weights.log[0], torch.zeros(4, dtype=torch.float64))
    assert state.weights.log[1, 3] > state.weights.log[1, 0]


def test_a_population_does_not_depend_on_the_others():
    """Neither its weights, nor its draws, whether the others are resampled or not."""
    model = FeynmanKac(2.0, resampling=HALF)
    rewards = [torch.stack([rewards_of(1, 6, step)[0] * scale for scale in (0.1, 0.4, 3.0)]) for step in range(4)]

    def run(populations: list[int]) -> tuple[State, list[Event]]:
        state, seeds, events = model.start(len(populations), 6), generators(*populations), []
        for step, values in enumerate(rewards):
            state, event = model.step(state, values[populations], step / 5, generator=seeds)
            events.append(event)
        return state, events

    together, events = run([0, 1, 2])
    assert len({tuple(event.resampled.tolist()) for event in events}) > 1
    for p in range(3):
        alone, events_alone = run([p])
        assert torch.equal(together.path[p], alone.path[0])
        assert torch.equal(together.log_normalizer[p], alone.log_normalizer[0])
        assert all(torch.equal(a.ancestors[p], b.ancestors[0]) for a, b in zip(events, events_alone))


def test_rewards_are_not_saturated_at_lambda_60():
    """The reference clamps exp(lambda r) at 1e10, so that at lambda 60 every reward above 0.384 ties."""
    event = first_event(FeynmanKac(60.0, Current(), resampling=NEVER), [[0.4, 0.5, 0.7, 0.8]])
    assert event.weights.log.argmax() == 3
    assert torch.allclose(event.weights.log_normalized.diff(), torch.tensor([[6.0, 12.0, 6.0]]).double())


def test_large_negative_rewards_do_not_underflow():
    assert first_event(FeynmanKac(60.0), [[-30.0, -20.0, -25.0]]).ancestors.tolist() == [[1, 1, 1]]


def test_max_distinguishes_negative_rewards_unless_floored():
    rewards = torch.tensor([[-0.3, -0.1, -0.9]])
    free = first_event(FeynmanKac(10.0, Max(), resampling=NEVER), rewards)
    floored = first_event(FeynmanKac(10.0, Max(floor=0.0), resampling=NEVER), rewards)
    assert torch.allclose(free.weights.normalized, (10 * rewards).double().softmax(1))
    assert torch.allclose(floored.weights.normalized, torch.full((1, 3), 1 / 3).double())


@pytest.mark.parametrize("potential", POTENTIALS)
def test_the_terminal_weight_without_exactness_is_the_statistic(potential):
    """Rewards 1, 0 on one path and 0, 0.5 on the other; lambda 2."""
    model = FeynmanKac(2.0, POTENTIALS[potential](exact_terminal=False), resampling=NEVER)
    state, _ = model.step(model.start(1, 2), torch.tensor([[1.0, 0.0]]), 0.5)
    state, event = model.finish(state, torch.tensor([[0.0, 0.5]]))
    statistic = {"difference": [0.0, 0.5], "max": [1.0, 0.5], "sum": [1.0, 0.5], "current": [0.0, 0.5]}[potential]
    assert torch.allclose(state.path, 2.0 * torch.tensor([statistic]).double())
    assert torch.allclose(event.weights.normalized, (2.0 * torch.tensor([statistic])).double().softmax(1))


def test_a_particle_may_be_killed():
    model = FeynmanKac(2.0)
    state, event = model.step(
        model.start(1, 4), torch.tensor([[0.0, -torch.inf, 0.0, 0.0]]), 0.5, generator=generators(0)
    )
    assert 1 not in event.ancestors
    assert state.log_normalizer.item() == pytest.approx(math.log(3 / 4))


@pytest.mark.parametrize("potential", POTENTIALS)
def test_a_killed_particle_stays_dead_without_resampling(potential):
    model = FeynmanKac(2.0, POTENTIALS[potential](), resampling=NEVER)
    state, _ = model.step(model.start(1, 3), torch.tensor([[0.0, -torch.inf, 0.0]]), 0.3)
    state, event = model.step(state, torch.tensor([[0.0, 5.0, 0.0]]), 0.6)
    assert event.weights.log[0, 1] == -torch.inf
    assert event.weights.alive.tolist() == [[True, False, True]]
    _, event = model.finish(state, torch.tensor([[1.0, 9.0, 1.0]]))
    assert event.weights.normalized[0].tolist() == pytest.approx([0.5, 0, 0.5])


def test_when_all_die_the_weights_are_uniform_and_a_warning_says_so():
    model = FeynmanKac(2.0, resampling=HALF)
    with pytest.warns(UserWarning, match=r"population \[1\]"):
        state, event = model.step(
            model.start(2, 3), torch.tensor([[0.0, 1.0, 0.0], [-torch.inf] * 3]), 0.5, generator=generators(0, 1)
        )
    assert torch.allclose(event.weights.normalized[1], torch.full((3,), 1 / 3).double())
    assert state.log_normalizer[1] == -torch.inf and state.log_normalizer[0].isfinite()


def test_an_infinite_reward_takes_all_the_weight():
    model = FeynmanKac(2.0)
    state, event = model.step(model.start(1, 3), torch.tensor([[0.0, torch.inf, 1.0]]), 0.5, generator=generators(0))
    assert event.ancestors.tolist() == [[1, 1, 1]]
    assert model.finish(state, torch.tensor([[0.0, 1.0, 2.0]]))[1].weights.log_normalized.isfinite().all()


@pytest.mark.parametrize("tempering", [Constant(), TargetESS()])
def test_lambda_zero_ignores_even_infinite_rewards(tempering):
    event = first_event(FeynmanKac(0.0, tempering=tempering, resampling=HALF), [[0.0, -torch.inf, torch.inf]])
    assert torch.allclose(event.weights.normalized, torch.full((1, 3), 1 / 3).double())


@pytest.mark.parametrize("potential", POTENTIALS)
@pytest.mark.parametrize(
    ("rewards", "weights"),
    [
        ([-torch.inf, -torch.inf, -torch.inf, 0.7], [0.0, 0.0, 0.0, 1.0]),
        ([-torch.inf, 2.0, 2.0, 2.0], [0.0, 1 / 3, 1 / 3, 1 / 3]),
        ([1.0, 2.0, torch.inf, torch.inf], [0.0, 0.0, 0.5, 0.5]),
    ],
)
def test_infinite_rewards_decide_whatever_lambda_target_ess_finds(potential, rewards, weights):
    event = first_event(FeynmanKac(None, POTENTIALS[potential](), TargetESS(), NEVER), [rewards])
    assert event.weights.normalized[0].tolist() == pytest.approx(weights)


def test_a_sum_of_rewards_survives_infinite_ones_and_starts_anew_when_all_have_died():
    model = FeynmanKac(1.0, Sum(), resampling=NEVER)
    state, _ = model.step(model.start(1, 2), torch.tensor([[torch.inf, torch.inf]]), 0.2)
    with pytest.warns(UserWarning, match="weight of zero"):
        state, _ = model.step(state, torch.tensor([[-torch.inf, -torch.inf]]), 0.4)
    _, event = model.step(state, torch.tensor([[0.0, 1.0]]), 0.6)
    assert event.weights.normalized[0].tolist() == pytest.approx([1 / (1 + math.e), math.e / (1 + math.e)])


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**20),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    resampler=st.sampled_from(sorted(RESAMPLERS)),
    potential=st.sampled_from(sorted(POTENTIALS)),
    ess_threshold=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_any_run(seed, sizes, resampler, potential, ess_threshold):
    """Ancestors are particles that were there, paths follow them, weights are weights and telescope."""
    model = FeynmanKac(2.0, POTENTIALS[potential](), Constant(), Resampling(resampler, ess_threshold))
    state, seeds, size = model.start(2, 6), generators(seed, seed + 1), 6
    for step, wanted in enumerate(sizes):
        rewards = rewards_of(2, size, seed + step)
        path = model.weigh(state, rewards, step / 5).path
        state, event = model.step(state, rewards, step / 5, wanted, seeds)
        assert event.ancestors.shape == (2, wanted)
        assert (event.ancestors >= 0).all() and (event.ancestors < size).all()
        assert torch.equal(state.path, path.gather(1, event.ancestors))
        assert torch.allclose(event.weights.normalized.sum(1), torch.ones(2).double())
        assert ((event.weights.ess >= 1 - 1e-9) & (event.weights.ess <= size + 1e-9)).all()
        assert not state.weights.log[event.resampled].any()
        for ancestors in event.ancestors[~event.resampled].tolist():
            assert ancestors == list(range(size))
        size = wanted
    final = rewards_of(2, size, seed + 99)
    state, event = model.finish(state, final)
    assert torch.allclose(state.path, 2.0 * final)
    assert torch.equal(event.ancestors, torch.arange(size).expand(2, -1)) and not event.resampled.any()


@pytest.mark.parametrize(
    "rewards, offspring, message",
    [
        (torch.zeros(1, 3), None, r"shape \(2, 3\), but got \(1, 3\)"),
        (torch.full((2, 3), torch.nan), None, "NaN"),
        (torch.zeros(2, 3), 0, "at least one offspring, but got 0"),
    ],
)
def test_bad_input(rewards, offspring, message):
    model = FeynmanKac(1.0)
    with pytest.raises(ValueError, match=message):
        model.step(model.start(2, 3), rewards, 0.5, offspring)


def test_bad_final_rewards():
    model = FeynmanKac(1.0)
    for rewards, message in [(torch.zeros(2, 4), "shape"), (torch.full((2, 3), torch.nan), "NaN")]:
        with pytest.raises(ValueError, match=message):
            model.finish(model.start(2, 3), rewards)


@pytest.mark.parametrize("tempering", [Constant(), Rising()])
def test_a_lambda_is_needed_unless_the_tempering_finds_its_own(tempering):
    with pytest.raises(ValueError, match=f"The tempering '{tempering.name}' needs `lmbda`"):
        FeynmanKac(None, tempering=tempering)
    assert FeynmanKac(None, tempering=TargetESS()).lmbda is None

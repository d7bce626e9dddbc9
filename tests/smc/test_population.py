from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fk_steer.smc import POTENTIALS, RESAMPLERS, Constant, Population, Rising, TargetESS


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def rewards_of(P: int, K: int, seed: int) -> torch.Tensor:
    return torch.randn(P, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("potential", POTENTIALS)
@pytest.mark.parametrize("ess_threshold", [0.0, 0.5, 1.0])
def test_path_product_is_the_tilt(potential, ess_threshold):
    """Whatever happened on the way, log G summed over a path is lambda r(x_0)."""
    population = Population(2, 5, 3.0, POTENTIALS[potential], ess_threshold=ess_threshold, generator=generators(0, 1))
    for step in range(4):
        population.step(rewards_of(2, 5, step), step / 5)
    final = rewards_of(2, 5, 9)
    population.finish(final)
    assert torch.allclose(population.path, 3.0 * final)


def test_weights_are_carried_until_resampling():
    population = Population(1, 3, 1.0, ess_threshold=0.0, potential=POTENTIALS["current"])
    first = population.step(torch.tensor([[0.1, 0.2, 0.3]]), 0.3)
    second = population.step(torch.tensor([[0.0, 0.5, 0.0]]), 0.6)
    assert not first.resampled.any() and not second.resampled.any()
    assert torch.allclose(second.log_weights.exp(), torch.tensor([[0.1, 0.7, 0.3]]).double().softmax(1))


def test_effective_sample_size_triggers_per_population():
    population = Population(2, 4, 1.0, ess_threshold=0.5, generator=generators(0, 1))
    event = population.step(torch.tensor([[0.0, 0.0, 0.0, 50.0], [0.0, 0.0, 0.0, 0.1]]), 0.5)
    assert event.resampled.tolist() == [True, False]
    assert event.ancestors.tolist() == [[3, 3, 3, 3], [0, 1, 2, 3]]
    assert event.distinct_roots.tolist() == [1, 4]
    assert torch.equal(population.log_weights[0], torch.zeros(4, dtype=torch.float64))
    assert population.log_weights[1, 3] > population.log_weights[1, 0]


def test_thresholds_at_the_ends():
    flat = torch.zeros(1, 4)
    always = Population(1, 4, 1.0, ess_threshold=1.0, resampler=RESAMPLERS["multinomial"], generator=generators(3))
    never = Population(1, 4, 100.0, ess_threshold=0.0, generator=generators(3))
    assert always.step(flat, 0.5).resampled.all()
    assert not never.step(torch.tensor([[0.0, 0.0, 0.0, 9.0]]), 0.5).resampled.any()


def test_rewards_are_not_saturated_at_lambda_60():
    """The reference clamps exp(lambda r) at 1e10, so that at lambda 60 every reward above 0.384 ties."""
    population = Population(1, 4, 60.0, POTENTIALS["current"], ess_threshold=0.0)
    event = population.step(torch.tensor([[0.4, 0.5, 0.7, 0.8]]), 0.5)
    assert event.log_weights.argmax() == 3
    assert torch.allclose(event.log_weights.diff(), torch.tensor([[6.0, 12.0, 6.0]]).double())


def test_large_negative_rewards_do_not_underflow():
    event = Population(1, 3, 60.0, ess_threshold=1.0, generator=generators(0)).step(
        torch.tensor([[-30.0, -20.0, -25.0]]), 0.5
    )
    assert event.ancestors.tolist() == [[1, 1, 1]]


def test_max_distinguishes_negative_rewards_unless_floored():
    rewards = torch.tensor([[-0.3, -0.1, -0.9]])
    free = Population(1, 3, 10.0, POTENTIALS["max"], ess_threshold=0.0).step(rewards, 0.5)
    floored = Population(1, 3, 10.0, POTENTIALS["max"], floor=0.0, ess_threshold=0.0).step(rewards, 0.5)
    assert torch.allclose(free.log_weights.exp(), (10 * rewards).double().softmax(1))
    assert torch.allclose(floored.log_weights.exp(), torch.full((1, 3), 1 / 3).double())


def test_a_particle_may_be_killed():
    population = Population(1, 4, 2.0, ess_threshold=1.0, generator=generators(0))
    event = population.step(torch.tensor([[0.0, -torch.inf, 0.0, 0.0]]), 0.5)
    assert 1 not in event.ancestors
    assert population.log_normalizer.item() == pytest.approx(math.log(3 / 4))


def test_a_killed_particle_stays_dead_without_resampling():
    population = Population(1, 3, 2.0, ess_threshold=0.0)
    population.step(torch.tensor([[0.0, -torch.inf, 0.0]]), 0.3)
    event = population.step(torch.tensor([[0.0, 5.0, 0.0]]), 0.6)
    assert event.log_weights[0, 1] == -torch.inf
    assert population.finish(torch.tensor([[1.0, 9.0, 1.0]])).log_weights.exp()[0].tolist() == pytest.approx(
        [0.5, 0, 0.5]
    )


def test_when_all_die_the_weights_are_uniform_and_a_warning_says_so():
    population = Population(2, 3, 2.0, generator=generators(0, 1))
    with pytest.warns(UserWarning, match=r"population \[1\]"):
        event = population.step(torch.tensor([[0.0, 1.0, 0.0], [-torch.inf] * 3]), 0.5)
    assert torch.allclose(event.log_weights[1].exp(), torch.full((3,), 1 / 3).double())
    assert population.log_normalizer[1] == -torch.inf and population.log_normalizer[0].isfinite()


def test_an_infinite_reward_takes_all_the_weight():
    population = Population(1, 3, 2.0, ess_threshold=1.0, generator=generators(0))
    event = population.step(torch.tensor([[0.0, torch.inf, 1.0]]), 0.5)
    assert event.ancestors.tolist() == [[1, 1, 1]]
    assert population.finish(torch.tensor([[0.0, 1.0, 2.0]])).log_weights.isfinite().all()


@pytest.mark.parametrize("tempering", [Constant(), TargetESS()])
def test_lambda_zero_ignores_even_infinite_rewards(tempering):
    event = Population(1, 3, 0.0, tempering=tempering).step(torch.tensor([[0.0, -torch.inf, torch.inf]]), 0.5)
    assert torch.allclose(event.log_weights.exp(), torch.full((1, 3), 1 / 3).double())


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
    population = Population(1, 4, None, POTENTIALS[potential], tempering=TargetESS(), ess_threshold=0.0)
    event = population.step(torch.tensor([rewards]), 0.5)
    assert event.log_weights.exp()[0].tolist() == pytest.approx(weights)


def test_target_ess_is_that_of_the_particles_alive():
    both = torch.tensor([[0.1, 0.2, 0.4, 0.9], [0.1, 0.2, 0.4, 0.9]])
    with_dead = torch.cat([both, torch.full((2, 4), -torch.inf)], 1)
    alone = Population(2, 4, None, tempering=TargetESS()).step(both, 0.5)
    event = Population(2, 8, None, tempering=TargetESS()).step(with_dead, 0.5)
    assert torch.allclose(event.ess, torch.full((2,), 2.0).double())
    assert torch.allclose(event.lmbda, alone.lmbda)


def test_a_sum_of_rewards_survives_infinite_ones_and_starts_anew_when_all_have_died():
    population = Population(1, 2, 1.0, POTENTIALS["sum"], ess_threshold=0.0)
    population.step(torch.tensor([[torch.inf, torch.inf]]), 0.2)
    with pytest.warns(UserWarning, match="weight of zero"):
        population.step(torch.tensor([[-torch.inf, -torch.inf]]), 0.4)
    event = population.step(torch.tensor([[0.0, 1.0]]), 0.6)
    assert event.log_weights.exp()[0].tolist() == pytest.approx([1 / (1 + math.e), math.e / (1 + math.e)])


def test_target_ess_is_met_and_does_not_depend_on_the_scale_of_the_reward():
    rewards = rewards_of(3, 8, 0)
    events = [
        Population(3, 8, None, tempering=TargetESS(0.6), generator=generators(0, 1, 2)).step(
            scale * rewards + shift, 0.5
        )
        for scale, shift in [(1.0, 0.0), (100.0, 7.0), (1e-3, -2.0)]
    ]
    for event, scale in zip(events, [1.0, 100.0, 1e-3]):
        assert torch.allclose(event.ess, torch.full((3,), 0.6 * 8).double(), rtol=1e-6)
        assert torch.allclose(event.lmbda * scale, events[0].lmbda, rtol=1e-6)


def test_target_ess_is_capped_by_lambda_and_survives_flat_rewards():
    event = Population(2, 4, 0.5, tempering=TargetESS(0.5)).step(torch.tensor([[0.0, 1.0, 0.0, 0.0], [1.0] * 4]), 0.5)
    assert event.lmbda[0] == 0.5 and event.log_weights.isfinite().all()
    tied = Population(1, 4, None, tempering=TargetESS(0.5)).step(torch.tensor([[1.0, 1.0, 0.0, 0.0]]), 0.5)
    assert tied.log_weights.exp()[0].tolist() == pytest.approx([0.5, 0.5, 0.0, 0.0], abs=1e-9)


def test_rising_lambda():
    population = Population(1, 2, 10.0, tempering=Rising())
    assert population.step(torch.zeros(1, 2), 0.25).lmbda.tolist() == [2.5]
    assert population.finish(torch.zeros(1, 2)).lmbda.tolist() == [10.0]


def test_survivors_keep_their_slots_when_the_population_shrinks_and_copies_take_free_ones_when_it_grows():
    population = Population(1, 6, 1.0, POTENTIALS["current"], RESAMPLERS["top-k"])
    event = population.step(torch.tensor([[0.0, 5.0, 1.0, 4.0, 2.0, 3.0]]), 0.2, num_offspring=3)
    assert event.slots.tolist() == [[1, 3, 5]] and event.parents.tolist() == [[1, 3, 5]]
    event = population.step(torch.tensor([[1.0, 3.0, 2.0]]), 0.4, num_offspring=1)
    assert (
        event.slots.tolist() == [[3]]
        and event.ancestors.tolist() == [[1]]
        and event.slots_before.tolist() == [[1, 3, 5]]
    )
    event = population.step(torch.tensor([[1.0]]), 0.6, num_offspring=4)
    assert event.slots.tolist() == [[0, 1, 2, 3]] and event.parents.tolist() == [[3, 3, 3, 3]]
    assert event.distinct_roots.tolist() == [1]
    assert population.roots.tolist() == [[3, 3, 3, 3]]


def test_collapse_continues_the_best_particle_alone():
    population = Population(2, 4, 1.0, ess_threshold=0.0, generator=generators(0, 1))
    rewards = torch.tensor([[0.0, 3.0, 1.0, 2.0], [0.0, 3.0, 1.0, 2.0]])
    event = population.step(rewards, 0.3, collapse=torch.tensor([True, False]))
    assert event.parents.tolist() == [[1, 1, 1, 1], [0, 1, 2, 3]]
    assert event.resampled.tolist() == [True, False]
    assert event.distinct_roots.tolist() == [1, 4]
    event = population.step(rewards, 0.6, 2, collapse=torch.tensor([True, False]))
    assert len(set(event.parents[0].tolist())) == 1
    final = population.finish(torch.zeros(2, 2))
    assert final.log_weights.isfinite().all()


@pytest.mark.parametrize("resampler", RESAMPLERS)
@pytest.mark.parametrize("size", [4, 2, 1, 6])
def test_a_particle_can_be_kept_whatever_its_weight(resampler, size):
    population = Population(
        3, 6, 50.0, resampler=RESAMPLERS[resampler], ess_threshold=1.0, generator=generators(0, 1, 2)
    )
    population.step(torch.zeros(3, 6), 0.1, 4, keep=torch.tensor([5, 5, 0]))
    keep = torch.tensor([3, 0, 2])
    slots = population.slots.gather(1, keep[:, None])
    rewards = torch.zeros(3, 4).scatter_(1, keep[:, None], -9.0)
    event = population.step(rewards, 0.3, size, keep=keep)
    kept = (event.slots == slots) & (event.parents == slots)
    assert kept.any(1).all()


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**20),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    resampler=st.sampled_from(sorted(RESAMPLERS)),
    potential=st.sampled_from(sorted(POTENTIALS)),
    ess_threshold=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_lineages(seed, sizes, resampler, potential, ess_threshold):
    """Slots stay distinct and ascending, ancestors come from the living, roots follow them, weights telescope."""
    population = Population(
        2,
        6,
        2.0,
        POTENTIALS[potential],
        RESAMPLERS[resampler],
        Constant(),
        ess_threshold,
        generator=generators(seed, seed + 1),
    )
    roots = torch.arange(6).expand(2, 6)
    for step, size in enumerate(sizes):
        alive = population.slots
        event = population.step(rewards_of(2, population.size, seed + step), step / 5, size)
        assert torch.equal(event.slots_before, alive)
        assert event.slots.shape == (2, size) and (event.slots.diff(dim=1) > 0).all()
        assert (event.slots >= 0).all() and (event.slots < 6).all()
        roots = roots.gather(1, event.ancestors)
        assert torch.equal(population.roots, roots)
        assert torch.allclose(event.log_weights.exp().sum(1), torch.ones(2).double())
        assert ((event.ess >= 1 - 1e-9) & (event.ess <= alive.shape[1] + 1e-9)).all()
    final = rewards_of(2, population.size, seed + 99)
    population.finish(final)
    assert torch.allclose(population.path, 2.0 * final)


@pytest.mark.parametrize(
    "rewards, offspring, message",
    [
        (torch.zeros(1, 3), None, r"shape \(2, 3\)"),
        (torch.full((2, 3), torch.nan), None, "NaN"),
        (torch.zeros(2, 3), 4, "1 to 3"),
        (torch.zeros(2, 3), 0, "1 to 3"),
    ],
)
def test_bad_input(rewards, offspring, message):
    with pytest.raises(ValueError, match=message):
        Population(2, 3, 1.0).step(rewards, 0.5, offspring)

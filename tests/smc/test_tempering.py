from __future__ import annotations

import pytest
import torch

from fk_steer.smc import (
    POTENTIALS,
    Current,
    Event,
    FeynmanKac,
    Geometric,
    Resampling,
    Rising,
    TargetESS,
    Weights,
    effective_sample_size,
)


NEVER = Resampling(ess_threshold=0.0)


def rewards_of(P: int, K: int, seed: int) -> torch.Tensor:
    return torch.randn(P, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def first_event(model: FeynmanKac, rewards: torch.Tensor, progress: float = 0.5) -> Event:
    return model.step(model.start(*rewards.shape), rewards, progress, generator=torch.Generator().manual_seed(0))[1]


def test_scales():
    assert Rising(end=2.0).scale(0.5) == 1.0
    assert Rising(power=2.0).scale(0.5) == 0.25
    assert Geometric().scale(0.0) == 0.0 and Geometric().scale(1.0) == 1.0
    assert Geometric().scale(0.5) == pytest.approx(1.008**50 - 1)


def test_rising_lambda_reaches_its_value_at_the_final_images():
    model = FeynmanKac(10.0, tempering=Rising(end=2.0))
    state, event = model.step(model.start(1, 2), torch.zeros(1, 2), 0.25)
    assert event.lmbda.tolist() == [5.0]
    assert model.finish(state, torch.zeros(1, 2))[1].lmbda.tolist() == [10.0]


@pytest.mark.parametrize("ess", [0.2, 1 / 3, 0.6, 0.9])
@pytest.mark.parametrize("K", [2, 3, 4, 8, 50])
@pytest.mark.parametrize("potential", POTENTIALS)
def test_target_ess_is_met_and_does_not_depend_on_the_scale_of_the_reward(potential, K, ess):
    """1 + ess (K - 1), whatever is multiplied with the reward or, but for `sum`, added to it."""
    model = FeynmanKac(None, POTENTIALS[potential](), TargetESS(ess), NEVER)
    rewards = rewards_of(3, K, 0)
    scales = [(1.0, 0.0), (100.0, 7.0), (1e-3, -2.0)]
    events = [first_event(model, scale * rewards + shift) for scale, shift in scales]
    for event, (scale, _) in zip(events, scales):
        assert torch.allclose(event.weights.ess, torch.full((3,), 1 + ess * (K - 1), dtype=torch.float64), rtol=1e-9)
        assert torch.allclose(event.lmbda * scale, events[0].lmbda, rtol=1e-6)
        assert torch.allclose(event.weights.normalized, events[0].weights.normalized, rtol=1e-6)


def test_two_particles_keep_more_than_one_particles_worth():
    """A target of ess K, below 1 for K = 2, would have no lambda at which it is met."""
    event = first_event(FeynmanKac(None, tempering=TargetESS(), resampling=NEVER), torch.tensor([[0.0, 1.0]]))
    assert event.weights.ess.item() == pytest.approx(4 / 3, rel=1e-9)
    w = event.weights.normalized[0]
    assert w[0] > 0.1 and event.lmbda[0] == pytest.approx((w[1] / w[0]).log().item(), rel=1e-9)


def test_target_ess_is_that_of_the_particles_alive():
    both = torch.tensor([[0.1, 0.2, 0.4, 0.9], [0.1, 0.2, 0.4, 0.9]])
    with_dead = torch.cat([both, torch.full((2, 4), -torch.inf)], 1)
    model = FeynmanKac(None, tempering=TargetESS())
    event = first_event(model, with_dead)
    assert torch.allclose(event.weights.ess, torch.full((2,), 2.0).double())
    assert torch.allclose(event.lmbda, first_event(model, both).lmbda)


def test_carried_weights_count():
    """At the second of two events the weights of both make up the effective sample size."""
    model = FeynmanKac(None, Current(), TargetESS(0.5), NEVER)
    state, _ = model.step(model.start(1, 5), torch.arange(5.0)[None], 0.3)
    _, event = model.step(state, -torch.arange(5.0)[None], 0.6)
    assert event.weights.ess.item() == pytest.approx(3.0, rel=1e-9)
    assert event.weights.log.argmax() == 0, "the second reward outweighs the first, which counted for more before"


def test_lambda_does_not_fall_where_the_path_telescopes():
    """A later reward that spreads more would be met by a smaller lambda, which would take back what was weighed."""
    model = FeynmanKac(None, tempering=TargetESS(), resampling=Resampling("systematic"))
    state, first = model.step(model.start(1, 4), torch.tensor([[0.0, 1.0, 2.0, 3.0]]), 0.3)
    state, second = model.step(state, 100.0 * torch.tensor([[0.0, 1.0, 2.0, 3.0]]), 0.6)
    assert second.lmbda >= first.lmbda


def test_lambda_may_fall_where_every_event_counts_by_itself():
    model = FeynmanKac(None, Current(), TargetESS(), Resampling("systematic"))
    state, first = model.step(model.start(1, 4), torch.tensor([[0.0, 1.0, 2.0, 3.0]]), 0.3)
    state, second = model.step(state, 100.0 * torch.tensor([[0.0, 1.0, 2.0, 3.0]]), 0.6)
    assert second.lmbda.item() == pytest.approx(first.lmbda.item() / 100)
    assert second.weights.ess.item() == pytest.approx(2.0)


def test_target_ess_is_capped_by_lambda_and_survives_flat_rewards():
    capped = FeynmanKac(0.5, tempering=TargetESS(0.5), resampling=NEVER)
    event = first_event(capped, torch.tensor([[0.0, 1.0, 0.0, 0.0], [1.0] * 4]))
    assert event.lmbda[0] == 0.5 and event.weights.log.isfinite().all()
    free = FeynmanKac(None, tempering=TargetESS(1 / 4), resampling=NEVER)
    tied = first_event(free, torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
    assert tied.weights.normalized[0].tolist() == pytest.approx([0.5, 0.5, 0.0, 0.0], abs=1e-9)


def test_the_final_images_are_weighed_with_the_limit():
    model = FeynmanKac(3.0, tempering=TargetESS(0.9), resampling=NEVER)
    rewards = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    state, event = model.step(model.start(1, 4), rewards, 0.5)
    assert event.lmbda < 1.0
    _, event = model.finish(state, rewards)
    assert event.lmbda.tolist() == [3.0]
    assert torch.allclose(event.weights.normalized, (3.0 * rewards).double().softmax(1))


# A comparison with a quantity that was solved for is decided by the settings.


@pytest.mark.parametrize("K", range(3, 33))
def test_a_threshold_that_was_solved_for_resamples(K):
    """Target ESS and threshold are both K / 2: always resampled, whatever the rewards."""
    tempering = TargetESS((K / 2 - 1) / (K - 1))
    scales = torch.logspace(-6, 6, 200, dtype=torch.float64)[:, None]
    rewards = rewards_of(200, K, K) * scales + rewards_of(200, 1, K + 1) * scales
    model = FeynmanKac(None, tempering=tempering, resampling=Resampling(ess_threshold=0.5))
    state = model.start(200, K)
    for progress in (0.3, 0.6):
        state, event = model.step(state, rewards, progress, generator=torch.Generator().manual_seed(0))
        if progress == 0.3:
            assert torch.allclose(event.weights.ess, torch.full((200,), K / 2).double(), rtol=1e-9)
            assert event.resampled.all()
        rewards = rewards_of(200, K, K + 2) * scales


def test_a_threshold_below_what_was_solved_for_does_not():
    model = FeynmanKac(None, tempering=TargetESS(1 / 3), resampling=Resampling(ess_threshold=0.499))
    assert not first_event(model, rewards_of(300, 4, 0)).resampled.any()


@pytest.mark.parametrize("scheme", ["ssp", "multinomial"])
def test_equal_weights_are_always_resampled_at_a_threshold_of_one(scheme):
    """1 / sum_k (1 / K)^2 is above K for many K but for rounding."""
    for K in range(1, 65):
        for constant in (0.0, -3.7, 0.1, 1e3):
            weights = Weights(torch.full((2, K), constant, dtype=torch.float64))
            _, resampled = Resampling(scheme)(weights, K, torch.Generator().manual_seed(0))
            assert resampled.all(), f"K = {K}"
    assert any(effective_sample_size(torch.zeros(1, K)) > K for K in range(1, 65))


@pytest.mark.parametrize("K", [1, 2, 7, 49])
def test_equal_weights_are_never_resampled_below_a_threshold_of_one(K):
    _, resampled = Resampling(ess_threshold=0.999)(Weights.uniform(3, K), K, torch.Generator().manual_seed(0))
    assert not resampled.any()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Rising(end=0.0), "`end` and `power` above 0, but got 0.0 and 1.0"),
        (lambda: Rising(power=-1.0), "above 0"),
        (lambda: Rising(end=float("inf")), "`end` to be a finite number"),
        (lambda: Geometric(gamma=-1.0), "`gamma` above 0"),
        (lambda: TargetESS(1.0), "`ess` between 0 and 1, but got 1.0"),
        (lambda: TargetESS(0.0), "between 0 and 1"),
        (lambda: TargetESS("half"), "`ess` to be a finite number, but got 'half'"),
    ],
)
def test_bad_temperings(make, message):
    with pytest.raises(ValueError, match=message):
        make()

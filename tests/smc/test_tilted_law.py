"""Weighted particles against exact tilted means and normalisers, and the cases in which the reference goes wrong."""

from __future__ import annotations

import math

import pytest
import torch
from diffusion_1d import GAUSSIAN, MIXTURE, Diffusion1D

from fk_steer.smc import (
    BIASED,
    POTENTIALS,
    RESAMPLERS,
    Constant,
    FeynmanKac,
    Geometric,
    Resampling,
    Rising,
    TargetESS,
    Tempering,
)


K, REPEATS, EVENTS = 1024, 32, (3, 6)


def estimate(
    model: Diffusion1D,
    lmbda: float | None,
    *,
    potential: str = "difference",
    resampler: str = "ssp",
    tempering: Tempering | None = None,
    ess_threshold: float = 0.9,
    sizes: tuple[int, int] = (K, K),
    num_particles: int = K,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted means of x_0 and estimates of log Z, (REPEATS,) each, from independent populations."""
    generator = torch.Generator().manual_seed(0)
    steering = FeynmanKac(lmbda, POTENTIALS[potential](), tempering or Constant(), Resampling(resampler, ess_threshold))
    state = steering.start(REPEATS, num_particles)
    x = model.initial((REPEATS, num_particles), generator)
    for t in range(model.num_steps):
        if t in EVENTS:
            size = sizes[EVENTS.index(t)]
            state, event = steering.step(state, model.predict_x0(x, t), t / model.num_steps, size, generator)
            x = x.gather(1, event.ancestors)
        x = model.move(x, t, generator)
    state, event = steering.finish(state, x)
    return (event.weights.normalized * x).sum(1), state.log_normalizer


def assert_within_4_standard_errors(estimates: torch.Tensor, exact: float) -> None:
    standard_error = estimates.std() / math.sqrt(REPEATS)
    assert abs(estimates.mean() - exact) < 4 * standard_error


@pytest.mark.parametrize("model", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("lmbda", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("ess_threshold", [1.0, 0.9], ids=["always", "ess"])
@pytest.mark.parametrize("resampler", [name for name, scheme in RESAMPLERS.items() if scheme not in BIASED])
@pytest.mark.parametrize("potential", POTENTIALS)
def test_tilted_mean_and_normalizer(model, lmbda, ess_threshold, resampler, potential):
    means, log_normalizers = estimate(
        model, lmbda, potential=potential, resampler=resampler, ess_threshold=ess_threshold
    )
    assert_within_4_standard_errors(means, model.tilted_mean(lmbda))
    assert_within_4_standard_errors(log_normalizers, model.log_normalizer(lmbda))


@pytest.mark.parametrize("potential", POTENTIALS)
@pytest.mark.parametrize(
    "tempering",
    [Rising(), Rising(end=2.0, power=2.0), Geometric(), TargetESS(0.7)],
    ids=lambda tempering: tempering.name,
)
def test_tempering_keeps_the_target(tempering, potential):
    means, log_normalizers = estimate(MIXTURE, 3.0, potential=potential, tempering=tempering)
    assert_within_4_standard_errors(means, MIXTURE.tilted_mean(3.0))
    assert_within_4_standard_errors(log_normalizers, MIXTURE.log_normalizer(3.0))


@pytest.mark.parametrize("sizes", [(K // 2, K // 4), (K // 4, K), (K // 2, K // 2)], ids=["shrink", "regrow", "halve"])
@pytest.mark.parametrize("resampler", ["ssp", "systematic", "multinomial"])
def test_population_size_may_change(sizes, resampler):
    means, log_normalizers = estimate(GAUSSIAN, 2.0, sizes=sizes, resampler=resampler)
    assert_within_4_standard_errors(means, GAUSSIAN.tilted_mean(2.0))
    assert_within_4_standard_errors(log_normalizers, GAUSSIAN.log_normalizer(2.0))


def test_without_the_tilt_the_data_law_is_left_alone():
    means, log_normalizers = estimate(MIXTURE, 0.0)
    assert_within_4_standard_errors(means, MIXTURE.tilted_mean(0.0))
    assert torch.equal(log_normalizers, torch.zeros(REPEATS, dtype=torch.float64))

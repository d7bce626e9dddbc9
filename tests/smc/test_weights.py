from __future__ import annotations

import math

import pytest
import torch

from fk_steer.smc import Weights, standardize


INF = math.inf


def test_adding_is_multiplying_the_weights():
    old = Weights(torch.tensor([[0.0, 1.0, -2.0], [0.0, 0.0, 0.0]]).double())
    log_potential = torch.tensor([[1.0, -1.0, 0.5], [700.0, 0.0, -700.0]]).double()
    new = old.add(log_potential)
    product = old.normalized * log_potential.exp()
    assert torch.allclose(new.weights.normalized, product / product.sum(1, keepdim=True))
    assert torch.allclose(new.log_mean, product.sum(1).log())
    assert torch.equal(new.log_potential, log_potential) and not new.dead.any()
    assert old.log.tolist() == [[0.0, 1.0, -2.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    "old, added, normalized, applied, log_mean, dead",
    [
        ([0.0, 0.0], [-INF, 0.0], [0.0, 1.0], [-INF, 0.0], math.log(0.5), False),
        ([0.0, -INF], [0.0, INF], [1.0, 0.0], [0.0, INF], 0.0, False),
        ([0.0, 0.0], [5.0, INF], [0.0, 1.0], [-INF, 0.0], math.log(0.5), False),
        ([0.0, 0.0], [-INF, -INF], [0.5, 0.5], [-INF, -INF], -INF, True),
        ([0.0, -INF], [-INF, 3.0], [0.5, 0.5], [-INF, 3.0], -INF, True),
    ],
    ids=["killed", "the dead stay dead", "infinite takes all", "all die", "the last one dies"],
)
def test_infinities(old, added, normalized, applied, log_mean, dead):
    new = Weights(torch.tensor([old]).double()).add(torch.tensor([added]).double())
    assert new.weights.normalized.tolist() == [normalized]
    assert new.log_potential.tolist() == [applied]
    assert new.log_mean.item() == pytest.approx(log_mean)
    assert new.dead.item() is dead


def test_what_is_known_of_weights():
    weights = Weights(torch.tensor([[0.0, 0.0, -INF], [1.0, 1.0, 1.0]]).double())
    assert weights.alive.tolist() == [[True, True, False], [True, True, True]]
    assert weights.ess.tolist() == pytest.approx([2.0, 3.0])
    assert torch.allclose(weights.log_normalized.exp(), weights.normalized)
    assert torch.allclose(Weights.uniform(2, 3).normalized, torch.full((2, 3), 1 / 3, dtype=torch.float64))


def test_standardizing():
    rewards = torch.tensor([[1.0, 2.0, 3.0, 6.0], [5.0, 5.0, 5.0, 5.0], [0.1, 0.1, 0.1, 0.1]]).double()
    z = standardize(rewards)
    assert z[0].mean().item() == pytest.approx(0.0, abs=1e-12)
    assert z[0].std(unbiased=False).item() == pytest.approx(1.0)
    assert z[1:].tolist() == [[0.0] * 4] * 2, "ties have no spread, not even that of rounding"
    with_infinite = standardize(torch.tensor([1.0, 2.0, 3.0, 6.0, -INF, INF]).double())
    assert torch.allclose(with_infinite[:4], z[0]) and with_infinite[4:].tolist() == [-INF, INF]

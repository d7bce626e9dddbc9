from __future__ import annotations

import math

import pytest
import torch

from fk_steer.smc import BIASED, RESAMPLERS, Resampling, Weights, effective_sample_size, normalize, ssp, systematic


UNBIASED = [name for name, scheme in RESAMPLERS.items() if scheme not in BIASED]
FLOOR_OR_CEIL = ["ssp", "systematic"]


def log_weights(P: int, K: int, seed: int = 0) -> torch.Tensor:
    return 1.5 * torch.randn(P, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def offspring(ancestors: torch.Tensor, K: int) -> torch.Tensor:
    ones = torch.ones(ancestors.shape, dtype=torch.float64)
    return torch.zeros(len(ancestors), K, dtype=torch.float64).scatter_add_(1, ancestors, ones)


@pytest.mark.parametrize("name", UNBIASED)
@pytest.mark.parametrize("K, M", [(5, 5), (4, 8), (8, 3), (1, 4), (6, 1)])
def test_expected_offspring(name, K, M):
    repeats = 20_000
    lw = log_weights(1, K)
    ancestors = RESAMPLERS[name](lw.expand(repeats, K), M, torch.Generator().manual_seed(1))
    counts = offspring(ancestors, K)
    expected = M * lw.softmax(1)[0]
    standard_error = (counts.std(0) / math.sqrt(repeats)).clamp(min=1e-12)
    assert ancestors.shape == (repeats, M)
    assert ((counts.mean(0) - expected).abs() <= 4.5 * standard_error).all()


@pytest.mark.parametrize("name", FLOOR_OR_CEIL)
@pytest.mark.parametrize("K, M", [(5, 5), (64, 64), (7, 3), (3, 16)])
def test_offspring_is_floor_or_ceil(name, K, M):
    lw = log_weights(500, K)
    counts = offspring(RESAMPLERS[name](lw, M, torch.Generator().manual_seed(1)), K)
    expected = M * lw.softmax(1)
    assert (counts >= expected.floor()).all() and (counts <= expected.ceil()).all()


def test_residual_keeps_the_floor():
    lw = log_weights(500, 6)
    counts = offspring(RESAMPLERS["residual"](lw, 12, torch.Generator().manual_seed(1)), 6)
    assert (counts >= (12 * lw.softmax(1)).floor()).all()


@pytest.mark.parametrize("name", ["ssp", "systematic", "stratified", "residual", "top-k"])
@pytest.mark.parametrize("K", [1, 2, 3, 4, 7, 10, 49, 4096])
def test_uniform_weights_change_nothing(name, K):
    lw = torch.full((2, K), -3.7)
    assert torch.equal(RESAMPLERS[name](lw, None, torch.Generator().manual_seed(0)), torch.arange(K).expand(2, K))


@pytest.mark.parametrize("name", RESAMPLERS)
def test_zero_weights_have_no_offspring(name):
    lw = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]]).expand(200, 5)
    M = 2 if name == "top-k" else 5
    ancestors = RESAMPLERS[name](lw, M, torch.Generator().manual_seed(0))
    assert set(ancestors.unique().tolist()) == ({3} if name == "argmax" else {1, 3})


@pytest.mark.parametrize("name", UNBIASED)
def test_one_particle_has_all_the_weight(name):
    ancestors = RESAMPLERS[name](torch.tensor([[0.0, 1000.0, 0.0]]), None, torch.Generator().manual_seed(0))
    assert ancestors.tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("name", [name for name in UNBIASED if name != "multinomial"])
def test_survivors_keep_their_index(name):
    ancestors = RESAMPLERS[name](log_weights(300, 9), None, torch.Generator().manual_seed(0))
    survives = offspring(ancestors, 9) > 0
    assert (ancestors[survives] == torch.arange(9).expand(300, 9)[survives]).all()


@pytest.mark.parametrize("name", RESAMPLERS)
def test_populations_are_independent(name):
    """With a generator each, a population's ancestors do not depend on its neighbours."""
    lw = log_weights(3, 6)
    seeds = [10, 11, 12]
    together = RESAMPLERS[name](lw, 6, [torch.Generator().manual_seed(seed) for seed in seeds])
    alone = [RESAMPLERS[name](lw[p : p + 1], 6, [torch.Generator().manual_seed(seeds[p])]) for p in range(3)]
    assert torch.equal(together, torch.cat(alone))


def test_top_k_takes_the_heaviest():
    lw = torch.tensor([[0.1, 3.0, 2.0, -1.0], [5.0, 0.0, 5.0, 5.0]])
    assert RESAMPLERS["top-k"](lw, 2).tolist() == [[1, 2], [0, 2]]
    assert RESAMPLERS["top-k"](lw[:1], 6).tolist() == [[0, 1, 1, 2, 2, 3]]


def test_argmax_takes_the_heaviest_alone():
    lw = torch.tensor([[0.1, 3.0, 2.0], [5.0, 0.0, 5.0]])
    assert RESAMPLERS["argmax"](lw).tolist() == [[1, 1, 1], [0, 0, 0]]
    assert RESAMPLERS["argmax"](lw, 2).tolist() == [[1, 1], [0, 0]]


@pytest.mark.parametrize("name", ["ssp", "systematic", "stratified", "residual"])
def test_varies_less_than_multinomial(name):
    """Variance of the resampled mean of a function of the particle, over several functions."""
    K, repeats = 16, 4000
    lw = log_weights(1, K, seed=3).expand(repeats, K)
    values = torch.randn(8, K, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def variance(name: str) -> torch.Tensor:
        ancestors = RESAMPLERS[name](lw, None, torch.Generator().manual_seed(5))
        return values[:, ancestors].mean(-1).var(-1).sum()

    # The relative standard error of a variance from 4000 draws is sqrt(2 / 4000) = 2%.
    assert variance(name) < 0.7 * variance("multinomial")


def test_large_float32_population_does_not_run_off_the_end():
    lw = torch.zeros(1, 100_000)
    lw[0, -10:] = -torch.inf
    for scheme in (ssp, systematic):
        assert scheme(lw, None, torch.Generator().manual_seed(0)).max() < 100_000 - 10


def test_effective_sample_size():
    lw = torch.tensor([[0.0, 0.0, 0.0, 0.0], [900.0, 0.0, 0.0, 0.0], [0.0, 0.0, -torch.inf, -torch.inf]])
    assert torch.allclose(effective_sample_size(lw), torch.tensor([4.0, 1.0, 2.0], dtype=torch.float64))


def test_infinite_log_weights():
    lw = torch.tensor([[-torch.inf] * 3, [0.0, torch.inf, torch.inf], [0.0, -torch.inf, 0.0]])
    expected = torch.tensor([[1 / 3] * 3, [0.0, 0.5, 0.5], [0.5, 0.0, 0.5]], dtype=torch.float64)
    assert torch.allclose(normalize(lw), expected)


@pytest.mark.parametrize("bad, message", [(torch.zeros(3), "shape"), (torch.tensor([[0.0, torch.nan]]), "NaN")])
def test_bad_log_weights(bad, message):
    with pytest.raises(ValueError, match=message):
        ssp(bad)


def test_no_offspring_is_refused():
    with pytest.raises(ValueError, match="M = 0"):
        ssp(torch.zeros(1, 3), 0)


@pytest.mark.parametrize("scheme", RESAMPLERS)
@pytest.mark.parametrize("ess_threshold", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("before, after", [(1, 1), (4, 4), (4, 2), (4, 1), (2, 4), (1, 3)])
def test_whether_copies_are_possible(scheme, ess_threshold, before, after):
    """No copies in many draws where none are said to be possible, and some where they are."""
    resampling = Resampling(scheme, ess_threshold)
    lw = torch.where(torch.arange(before) == 0, 0.0, -3.0).double().expand(200, before)
    ancestors, _ = resampling(Weights(lw), after, torch.Generator().manual_seed(0))
    assert resampling.copies(before, after) == any(len(set(row)) < after for row in ancestors.tolist())


def test_a_change_in_number_always_resamples():
    ancestors, resampled = Resampling("top-k", 0.0)(Weights.uniform(2, 4), 2, None)
    assert resampled.all() and ancestors.tolist() == [[0, 1], [0, 1]]


def test_who_is_biased():
    assert [name for name in RESAMPLERS if Resampling(name).biased] == ["top-k", "argmax"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(scheme="ssr"), "Unknown resampler 'ssr'. Known: ssp, systematic"),
        (dict(scheme=["ssp"]), "Unknown resampler"),
        (dict(ess_threshold=1.5), "`ess_threshold` to be between 0.0 and 1.0, but got 1.5"),
        (dict(ess_threshold=math.nan), "`ess_threshold` to be between"),
        (dict(after_noise="no"), "`after_noise` to be True or False, but got 'no'"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        Resampling(**arguments)

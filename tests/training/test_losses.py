"""The losses of pairs: their formulas, what is measured of each kind of model, and the optimum that theory says."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fk_steer.testing.pipelines import flux, sd, sd_scheduler, sdxl
from fk_steer.training.losses import PairErrors, implicit_accuracy, implicit_reward, pair_losses
from fk_steer.training.process import Process, draw_times, process_of


MODEL = PairErrors(torch.tensor([0.10, 0.30, 0.2]), torch.tensor([0.40, 0.20, 0.2]))
REFERENCE = PairErrors(torch.tensor([0.15, 0.25, 0.2]), torch.tensor([0.35, 0.20, 0.2]))
# ((r_w - m_w) - (r_l - m_l)) by hand: 0.05 + 0.05, -0.05 - 0, 0.
GAIN = [0.10, -0.05, 0.0]


def test_implicit_reward_and_accuracy():
    reward = implicit_reward(MODEL, REFERENCE, beta=20.0)
    torch.testing.assert_close(reward, torch.tensor([1.0, -0.5, 0.0]))
    assert implicit_accuracy(reward).tolist() == [1.0, 0.0, 0.5]


def test_losses_equal_their_formulas():
    dpo = pair_losses("dpo", MODEL, REFERENCE, beta=20.0)
    expected = [math.log1p(math.exp(-10 * gain)) for gain in GAIN]
    torch.testing.assert_close(dpo, torch.tensor(expected))
    ipo = pair_losses("ipo", MODEL, REFERENCE, beta=20.0)
    # IPO's own form, times beta².
    own = [400 * (gain / 2 - 1 / 40) ** 2 for gain in GAIN]
    torch.testing.assert_close(ipo, torch.tensor(own), rtol=1e-5, atol=1e-6)
    assert torch.equal(pair_losses("sft", MODEL, REFERENCE, beta=20.0), MODEL.chosen)
    # beta / 2 * (m_w - r_w), by hand.
    forgotten = torch.tensor([-0.5, 0.5, 0.0])
    for name, plain in (("dpo", dpo), ("ipo", ipo)):
        torch.testing.assert_close(pair_losses(name, MODEL, REFERENCE, 20.0, anchor=0.3) - plain, 0.3 * forgotten)
    with pytest.raises(ValueError, match=r"Unknown `loss` 'kto'. Known: dpo, ipo, sft\."):
        pair_losses("kto", MODEL, REFERENCE, 1.0)


ALPHAS = torch.tensor([0.99, 0.6, 0.2])
SIGNAL, LEVEL = ALPHAS.sqrt(), (1 - ALPHAS).sqrt()


@pytest.fixture
def noisy():
    generator = torch.Generator().manual_seed(0)
    latents, noise, output = (torch.randn(3, 2, 4, 4, generator=generator) for _ in range(3))
    return latents, noise, output, torch.tensor([0, 1, 2])


def per_row(values: torch.Tensor) -> torch.Tensor:
    return values.view(3, 1, 1, 1)


def test_errors_of_each_target(noisy):
    """Written out for what each kind of model predicts, without the conversions of the module."""
    latents, noise, output, times = noisy
    a, s = per_row(SIGNAL), per_row(LEVEL)
    truths = {"epsilon": noise, "v_prediction": a * noise - s * latents, "sample": latents}
    for target, truth in truths.items():
        process = Process(SIGNAL, LEVEL, torch.arange(3), target, "target")
        torch.testing.assert_close(process.noisy(latents, noise, times), a * latents + s * noise)
        expected = ((output - truth) ** 2).mean((1, 2, 3))
        torch.testing.assert_close(process.errors(output, latents, noise, times), expected)
    sigma = torch.tensor([0.1, 0.5, 0.9])
    flow = Process(1 - sigma, sigma, 1000 * sigma, "flow", "target")
    mixed = (1 - per_row(sigma)) * latents + per_row(sigma) * noise
    torch.testing.assert_close(flow.noisy(latents, noise, times), mixed)
    expected = ((output - (noise - latents)) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(flow.errors(output, latents, noise, times), expected)


def test_errors_of_the_noise_that_a_prediction_implies(noisy):
    """With the weighting 'epsilon' models of every kind that imply the same noise have the same errors."""
    latents, noise, output, times = noisy
    for signal, level, targets in (
        (SIGNAL, LEVEL, ("epsilon", "v_prediction", "sample")),
        (1 - LEVEL, LEVEL, ("flow",)),
    ):
        a, s = per_row(signal), per_row(level)
        x = a * latents + s * noise
        # All from one x0 prediction, each by its own definition.
        implied = {
            "epsilon": (x - a * output) / s,
            "v_prediction": (a * x - output) / s,
            "sample": output,
            "flow": (x - output) / s,
        }
        expected = (((x - a * output) / s - noise) ** 2).mean((1, 2, 3))
        for target in targets:
            process = Process(signal, level, torch.arange(3), target, "epsilon")
            found = process.errors(implied[target], latents, noise, times)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_schedulers_say_what_their_models_learned():
    process = process_of(sd(prediction_type="v_prediction").scheduler, "auto")
    assert (process.target, process.weighting, len(process.timesteps)) == ("v_prediction", "target", 1000)
    torch.testing.assert_close(process.signal**2 + process.level**2, torch.ones(1000))
    alphas = sd_scheduler().alphas_cumprod
    torch.testing.assert_close(process.signal, alphas.sqrt())
    assert process_of(sdxl().scheduler, "auto").weighting == "epsilon"
    pipe = flux()
    pipe.scheduler.set_timesteps(4)
    flow = process_of(pipe.scheduler, "auto")
    assert (flow.target, flow.weighting, len(flow.timesteps)) == ("flow", "target", 1000)
    torch.testing.assert_close(flow.level, flow.timesteps / 1000)
    torch.testing.assert_close(flow.signal + flow.level, torch.ones(1000))
    with pytest.raises(ValueError, match="Cannot train a model of DDIMScheduler that predicts 'edm'"):
        process_of(sd_scheduler("edm"), "auto")


def test_times_are_drawn_from_what_is_asked_for():
    process = process_of(sd_scheduler(), "auto")
    generator = torch.Generator().manual_seed(0)

    def drawn(*arguments):
        return torch.cat([draw_times(process, generator, *arguments) for _ in range(400)])

    assert set(drawn("auto", [249, 499]).tolist()) == {249, 499}
    uniform, middle = drawn("auto"), drawn("logit-normal")
    assert uniform.min() < 20 and uniform.max() > 979
    assert ((uniform - 499.5).abs() < 250).float().mean() == pytest.approx(0.5, abs=0.07)
    # A logistic of a standard normal is between 1/4 and 3/4 with a probability of 0.728.
    assert ((middle - 499.5).abs() < 250).float().mean() == pytest.approx(0.728, abs=0.07)


@pytest.mark.parametrize("target", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_moves_mass_to_the_preferred_mode_as_theory_says(target, loss):
    """A model of two modes whose share is all that it can learn.

    Summed over the log signal-to-noise ratio, half the error of the noise is a negative log-likelihood, up to a
    constant of the data; so the implicit reward is beta times a log-likelihood ratio, and the optimum of DPO multiplies
    the odds of the preferred mode by exp(r / beta), with r the log odds of being preferred.
    """
    spread, width, strength, preferred = 24.0, 0.2, 2.0, 0.85
    ratio = torch.linspace(spread / 2, -spread / 2, 300)
    signal, level = torch.sigmoid(ratio).sqrt(), torch.sigmoid(-ratio).sqrt()
    process = Process(signal, level, torch.arange(300), target, "epsilon")
    # Both the noise and where in its mode an image is take the quantiles of a normal distribution, in all pairs.
    quantiles = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(24) + 0.5) / 24)
    offsets, noise = torch.cartesian_prod(width * quantiles, quantiles).repeat(300, 1).split(1, dim=1)
    times = torch.arange(300).repeat_interleave(24 * 24)

    def predicted(latents: torch.Tensor, log_odds: torch.Tensor) -> torch.Tensor:
        x, a, s = process.noisy(latents, noise, times), signal[times, None], level[times, None]
        variance = a**2 * width**2 + s**2
        right = torch.sigmoid(log_odds + 2 * a * x / variance)
        gain = a * width**2 / variance
        x0 = right * (1 + gain * (x - a)) + (1 - right) * (-1 + gain * (x + a))
        return (x - a * x0) / s if target == "epsilon" else (a * x - x0) / s

    def errors(log_odds: torch.Tensor, turned: bool) -> PairErrors:
        found = []
        for mode in (-1.0, 1.0) if turned else (1.0, -1.0):
            latents = mode + offsets
            found.append(process.errors(predicted(latents, log_odds), latents, noise, times).mean()[None])
        return PairErrors(*found)

    start = torch.tensor(0.4)
    log_odds = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([log_odds], max_iter=40, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.zeros(1)
        for turned, share in ((False, preferred), (True, 1 - preferred)):
            value = value + share * pair_losses(
                loss, errors(log_odds, turned), errors(start, turned), beta=strength * spread
            )
        value.sum().backward()
        return value.sum()

    optimizer.step(closure)
    # With p for the preferred image: DPO's h is log(p / (1 - p)), IPO's is (2 p - 1) / 2.
    wanted = math.log(preferred / (1 - preferred)) if loss == "dpo" else preferred - 0.5
    assert log_odds.item() - 0.4 == pytest.approx(wanted / strength, rel=0.03)
    assert F.sigmoid(log_odds) > F.sigmoid(start)

"""Samplers that start from noise without any signal, and what NaN is blamed on."""

from __future__ import annotations

import inspect

import diffusers
import pytest
import torch

from fk_steer import Execution, FKSteering, Noise, Resampling, steer
from fk_steer.diffusion import UnsupportedSchedulerError
from fk_steer.diffusion.noise import noise_switched, parting_steps
from fk_steer.diffusion.watch import NotFiniteError
from fk_steer.testing import PROMPTS, SIZE, redness, row_generators, sd, sd_scheduler, sdxl


ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}


def zero_snr(kind="DDIM", **options):
    return sd_scheduler(kind=getattr(diffusers, f"{kind}Scheduler"), **{**ZERO_SNR, **options})


@pytest.mark.parametrize("model", [sd, sdxl])
@pytest.mark.parametrize("kind", ["DDIM", "DDIMParallel", "DDPM", "EulerDiscrete", "DPMSolverMultistep", "TCD", "LCM"])
def test_default_steering_at_zero_terminal_snr_is_finite(kind, model):
    output = steer(model(zero_snr(kind)), redness)(PROMPTS[0], num_inference_steps=10, output_type="pt", **SIZE)
    assert output.particles.isfinite().all()


def test_ddim_at_full_noise_for_any_number_of_steps():
    """At eta = 1 the variance and the level of the next step are equal there, but for rounding."""
    sample = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    rounded = 0
    for steps in range(4, 51):
        scheduler = zero_snr()
        scheduler.set_timesteps(steps)
        found, stock = [], scheduler.step
        for eta in (1.0, 0.3):
            with noise_switched(scheduler, stock, eta) as step:
                found.append(step(sample, scheduler.timesteps[0], sample, generator=row_generators(0, 1))[0])
            plain = stock(sample, scheduler.timesteps[0], sample, eta=eta, generator=row_generators(0, 1))[0]
            assert found[-1].isfinite().all()
            rounded += not plain.isfinite().all()
            assert torch.equal(found[-1], plain) or not plain.isfinite().all()
        assert "_get_variance" not in vars(scheduler)
    assert rounded > 5


def test_noise_switched_off_is_the_stock_pipeline_at_zero_terminal_snr():
    call = {**SIZE, "num_inference_steps": 10, "output_type": "pt"}
    quiet = FKSteering(2, lmbda=1.0, noise=Noise(eta=0.0), schedule=())
    output = steer(sd(zero_snr()), redness, quiet)(PROMPTS[0], generator=row_generators(0, 1), **call)
    stock = sd(zero_snr())(PROMPTS[0], num_images_per_prompt=2, generator=row_generators(0, 1), **call).images
    order = redness(stock, []).argsort(descending=True)
    assert torch.equal(output.particles[0], stock[order])


@pytest.mark.parametrize("kind", ["DDIM", "DDPM", "TCD", "LCM"])
def test_epsilon_says_nothing_of_x0_without_signal(kind):
    pipe = sd(zero_snr(kind, prediction_type="epsilon"))
    with pytest.raises(
        UnsupportedSchedulerError, match=r"at step 0 \(timestep 999\).*`prediction_type='v_prediction'`"
    ):
        steer(pipe, redness)(PROMPTS[0], num_inference_steps=10, **SIZE)


@pytest.mark.parametrize("kind", ["EulerDiscrete", "DPMSolverMultistep", "UniPCMultistep"])
def test_a_sampler_that_divides_by_zero_is_named(kind):
    betas = zero_snr().betas.tolist()
    pipe = sd(sd_scheduler(kind=getattr(diffusers, f"{kind}Scheduler"), trained_betas=betas))
    with pytest.raises(UnsupportedSchedulerError, match=f"{kind}Scheduler makes NaN .* divides by alpha_bar"):
        steer(pipe, redness)(PROMPTS[0], num_inference_steps=10, **SIZE)


def test_nan_parts_no_copies():
    scheduler = zero_snr(prediction_type="epsilon")
    scheduler.set_timesteps(10)
    with pytest.raises(UnsupportedSchedulerError, match="makes NaN"):
        parting_steps(scheduler, scheduler.timesteps.tolist(), lambda index: 1.0)


class TestBlame:
    CALL = {**SIZE, "num_inference_steps": 8, "output_type": "pt"}

    def run(self, pipe, message, steering=None, **call):
        settings = steering or FKSteering(2, lmbda=1.0, schedule=(0.5,), seed=0)
        with pytest.raises(NotFiniteError, match=message):
            steer(pipe, redness, settings)(PROMPTS[0], **{**self.CALL, **call})

    @pytest.mark.parametrize(
        "steering", [None, FKSteering(2, lmbda=1.0, schedule=(), seed=0)], ids=["event", "final images"]
    )
    @pytest.mark.parametrize("output_type", ["pt", "latent"])
    def test_the_denoiser(self, steering, output_type):
        pipe, calls = sd(), []

        def spoil(module, args, output):
            calls.append(1)
            return (output[0] * torch.nan,) if len(calls) == 3 else output

        with pipe.unet.register_forward_hook(spoil):
            message = r"denoiser \(UNet2DConditionModel\) returned NaN .* at step 2\. It computes in float32"
            self.run(pipe, message, steering, output_type=output_type)

    def test_the_sampler(self):
        pipe = sd()
        step, calls = pipe.scheduler.step, []

        def spoiled(output, timestep, sample, **options):
            calls.append(1)
            stepped = step(output, timestep, sample, **options)
            return tuple(value * torch.nan for value in stepped) if len(calls) == 2 else stepped

        spoiled.__signature__ = inspect.signature(step)  # type: ignore[attr-defined]
        pipe.scheduler.step = spoiled
        self.run(pipe, "DDIMScheduler made NaN or infinities of finite numbers at step 1")

    def test_the_latents(self):
        latents = torch.full((2, 4, 8, 8), torch.nan)
        self.run(sd(), "initial latents hold NaN", latents=latents)

    @pytest.mark.parametrize(
        "steering", [None, FKSteering(2, lmbda=1.0, schedule=(), seed=0)], ids=["event", "final images"]
    )
    def test_the_decoder(self, steering):
        pipe = sd()
        pipe.vae.decoder.conv_out.bias.data.fill_(torch.nan)
        self.run(pipe, r"decoder \(AutoencoderKL\) made NaN of finite latents\. It computes in float32", steering)


class TestNoiseThatStopsEarly:
    CALL = {**SIZE, "num_inference_steps": 20, "output_type": "latent"}

    def test_a_solver_that_remembers_noise_is_seen_to_add_none(self):
        """SA-Solver's is over below timestep 200, but its memory of it is not."""
        scheduler = sd_scheduler(kind=diffusers.SASolverScheduler)
        scheduler.set_timesteps(20)
        timesteps = scheduler.timesteps.tolist()
        parting = parting_steps(scheduler, timesteps, lambda index: 1.0)
        assert any(parting) and not any(parted for parted, t in zip(parting, timesteps) if t < 150)

    @pytest.mark.parametrize(
        ("kind", "at", "late"),
        [("SASolver", (0.3, 0.95), False), ("EulerAncestralDiscrete", (0.3, 18), True), ("LCM", (0.3, 18), True)],
    )
    def test_copies_that_stay_equal_are_warned_of(self, kind, at, late):
        pipe = sd(sd_scheduler(kind=getattr(diffusers, f"{kind}Scheduler")))
        resampling = Resampling("multinomial", after_noise=late)
        settings = FKSteering(6, lmbda=30.0, schedule=at, seed=0, resampling=resampling)
        with pytest.warns(UserWarning, match=f"{kind}Scheduler adds no noise after step .* stay identical"):
            output = steer(pipe, redness, settings)(PROMPTS[0], **self.CALL)
        assert len(output.particles[0].flatten(1).unique(dim=0)) < 6


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_chunks_do_not_decide_what_is_resampled(size):
    """The default tempering solves for an effective sample size of half of four particles, which is the threshold."""
    call = {**SIZE, "num_inference_steps": 8, "output_type": "latent"}
    settings = FKSteering(4, schedule=(0.3, 0.5, 0.7), resampling=Resampling(ess_threshold=0.5), seed=0)

    def events(execution):
        trace = steer(sd(), redness, settings, execution)(PROMPTS, **call).trace
        return [(event.resampled, event.parents) for event in trace.events[:-1]]

    whole = events(Execution())
    assert events(Execution(denoise_batch_size=size, decode_batch_size=size, reward_batch_size=size)) == whole
    assert whole[0][0] == [True, True]

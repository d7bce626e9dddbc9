"""The whole bridge, scheduler included, against closed forms: Gaussian data, its exact score, DDIM with eta 1."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline

from fk_steer import FKSteering, Resampling, Schedule, steer
from fk_steer.search import Metropolis


MEAN, STD, LMBDA, STEPS = 0.3, 0.5, 3.0, 12
K, REPEATS = 256, 48


class ExactDenoiser(torch.nn.Module):
    """The optimal noise prediction for data from N(MEAN, STD^2)."""

    def __init__(self, scheduler):
        super().__init__()
        self.scheduler = scheduler

    def forward(self, sample, timestep):
        a = self.scheduler.alphas_cumprod[timestep]
        gain = a.sqrt() * STD**2 / (a * STD**2 + 1 - a)
        x0 = MEAN + gain * (sample - a.sqrt() * MEAN)
        return ((sample - a.sqrt() * x0) / (1 - a).sqrt(),)


class IdentityDecoder:
    """Latents are images: decoding changes nothing."""

    config = {"scaling_factor": 1.0}
    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self):
        self.config = FrozenConfig(self.config)

    def modules(self):
        return iter(())

    def decode(self, z, return_dict=False):
        return (z,)


class FrozenConfig(dict):
    __getattr__ = dict.__getitem__


class GaussianPipeline(DiffusionPipeline):
    def __init__(self, scheduler):
        super().__init__()
        self.register_modules(scheduler=scheduler)
        self.unet, self.vae = ExactDenoiser(scheduler), IdentityDecoder()
        self.image_processor = SimpleNamespace(postprocess=lambda image, output_type: image)

    @torch.no_grad()
    def __call__(
        self,
        prompt,
        num_images_per_prompt=1,
        num_inference_steps=STEPS,
        eta=0.0,
        generator=None,
        output_type="pt",
        return_dict=True,
    ):
        rows = len(prompt) * num_images_per_prompt
        latents = torch.cat([torch.randn(1, 1, 1, 1, generator=g) for g in generator])
        assert len(latents) == rows
        self.scheduler.set_timesteps(num_inference_steps)
        for timestep in self.loop():
            output = self.unet(latents, timestep)[0]
            latents = self.scheduler.step(output, timestep, latents, eta=eta, generator=generator, return_dict=False)[0]
        return (self.vae.decode(latents, return_dict=False)[0],)

    def loop(self):
        return self.scheduler.timesteps


def value(images, prompts):
    return images.flatten()


def steps_of_the_sampler(scheduler) -> list[tuple[float, float, float]]:
    """Slope, offset and variance of the noise of each step of DDIM with eta 1, which is linear in x."""
    scheduler.set_timesteps(STEPS)
    steps = []
    for timestep in scheduler.timesteps.tolist():
        previous = timestep - 1000 // STEPS
        a = float(scheduler.alphas_cumprod[timestep])
        b = float(scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.final_alpha_cumprod)
        noise = (1 - b) / (1 - a) * (1 - a / b)
        gain = math.sqrt(a) * STD**2 / (a * STD**2 + 1 - a)
        offset = MEAN - gain * math.sqrt(a) * MEAN
        toward = math.sqrt(1 - b - noise) / math.sqrt(1 - a)
        slope = math.sqrt(b) * gain + toward * (1 - math.sqrt(a) * gain)
        steps.append((slope, math.sqrt(b) * offset - toward * math.sqrt(a) * offset, noise))
    return steps


def law_of_the_sampler(scheduler) -> tuple[float, float]:
    """Mean and variance of x0."""
    mean, variance = 0.0, 1.0
    for slope, offset, noise in steps_of_the_sampler(scheduler):
        mean, variance = slope * mean + offset, slope**2 * variance + noise
    return mean, variance


SETTINGS = {
    "default": FKSteering(),
    "always-multinomial": FKSteering(resampling="multinomial", tempering="constant"),
    "max-systematic": FKSteering(potential="max", resampling=Resampling("systematic", 0.9)),
    "sum-stratified": FKSteering(potential="sum", resampling="stratified", schedule=(0.5, 0.8)),
    "current-residual": FKSteering(potential="current", resampling=Resampling("residual", 0.9)),
    "after-the-noise": FKSteering(resampling=Resampling(after_noise=True), tempering="constant"),
    "shrinking": FKSteering(schedule=Schedule(at=(0.3, 0.6), alive=(0.5, 0.25))),
    "regrowing": FKSteering(schedule=Schedule(at=(0.3, 0.6), alive=(0.25, 1.0))),
    "das": FKSteering.preset("das"),
    "never": FKSteering(resampling=Resampling(ess_threshold=0.0)),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_weighted_images_are_samples_of_the_tilted_law(name):
    pipe = GaussianPipeline(DDIMScheduler(clip_sample=False))
    settings = SETTINGS[name].replace(num_particles=K, lmbda=LMBDA)
    mean, variance = law_of_the_sampler(pipe.scheduler)

    # Prompts share their seed, so that each equals itself alone: independent repeats need a generator each.
    generators = [torch.Generator().manual_seed(seed) for seed in range(REPEATS)]
    output = steer(pipe, value, settings)([""] * REPEATS, generator=generators, output_type="pt")
    x0 = output.particles.view(output.rewards.shape).double()
    estimates = (output.log_weights.double().exp() * x0).sum(1)
    log_normalizers = torch.tensor(output.trace.log_normalizer)
    # With so few particles log Z is biased by about minus half its variance.
    log_normalizers = log_normalizers + log_normalizers.var() / 2
    for estimate, exact in (
        (estimates, mean + LMBDA * variance),
        (log_normalizers, LMBDA * mean + LMBDA**2 * variance / 2),
    ):
        assert abs(estimate.mean() - exact) < 4 * estimate.std() / math.sqrt(REPEATS)


def test_the_unsteered_law_is_what_the_recursion_says():
    pipe = GaussianPipeline(DDIMScheduler(clip_sample=False))
    settings = FKSteering(num_particles=20_000, lmbda=0.0, schedule=Schedule())
    x0 = steer(pipe, value, settings)([""], generator=torch.Generator().manual_seed(1), output_type="pt").rewards[0]
    mean, variance = law_of_the_sampler(pipe.scheduler)
    assert abs(x0.mean() - mean) < 4 * math.sqrt(variance / 20_000)
    assert abs(x0.var() - variance) < 4 * variance * math.sqrt(2 / 20_000)


def law_of_the_moves(scheduler, back: int) -> tuple[float, float]:
    """Mean and variance of the law that "noise, then denoise by the last `back` steps" leaves invariant: the
    stationary one of an autoregression, which is reversible for it."""
    steps = steps_of_the_sampler(scheduler)[STEPS - back :]
    a = float(scheduler.alphas_cumprod[scheduler.timesteps[STEPS - back]])
    slope, offset, variance = math.sqrt(a), 0.0, 1 - a
    for step_slope, step_offset, noise in steps:
        slope, offset = step_slope * slope, step_slope * offset + step_offset
        variance = step_slope**2 * variance + noise
    return offset / (1 - slope), variance / (1 - slope**2)


@pytest.mark.parametrize("back", [6, 10])
def test_metropolis_moves_leave_the_tilted_law_invariant(back):
    """Chains that start at the sampler's law have forgotten it after some moves."""
    tilt, number = 1.5, 1500
    pipe = GaussianPipeline(DDIMScheduler(clip_sample=False))
    settings = Metropolis(number, lmbda=tilt, moves=16, at=STEPS - 1, back=back)
    output = steer(pipe, value, settings)([""], generator=torch.Generator().manual_seed(2), output_type="pt")
    x0 = output.rewards[0].double()
    mean, variance = law_of_the_moves(pipe.scheduler, back)
    assert abs(x0.mean() - (mean + tilt * variance)) < 4 * math.sqrt(variance / number)
    assert abs(x0.var() - variance) < 4 * variance * math.sqrt(2 / number)
    # Some moves are accepted, some are not.
    moves = list(enumerate(output.trace.events))[1:-1]
    accepted = sum(seen == event_number for event_number, event in moves for seen in event.parent_events[0])
    assert 0.2 < accepted / (len(moves) * number) < 0.95


def test_a_loop_that_does_not_go_over_the_timesteps_cannot_be_sent_back():
    class OverNumbers(GaussianPipeline):
        def loop(self):
            return self.scheduler.timesteps.tolist()

    pipe = OverNumbers(DDIMScheduler(clip_sample=False))
    with pytest.raises(ValueError, match="this pipeline's loop does not go over the scheduler's timesteps"):
        steer(pipe, value, Metropolis(2, lmbda=1.0))([""], output_type="pt")
    steer(pipe, value, FKSteering(2, lmbda=1.0))([""], output_type="pt")

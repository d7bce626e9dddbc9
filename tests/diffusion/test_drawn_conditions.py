"""Conditions that a pipeline draws for each text, as the prior tokens of GLM-Image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

from fk_steer import Noise, Strategy, preset, steer
from fk_steer.search import Plan
from fk_steer.testing import PROMPTS, quiet, redness, row_generators


class Denoiser(torch.nn.Module):
    device, dtype = torch.device("cpu"), torch.float32

    def forward(self, sample, timestep, prior_token_id):
        return (sample - torch.tanh(prior_token_id.float().mean(1))[:, None, None, None],)


class DrawsTokens(DiffusionPipeline):
    def __init__(self, scheduler, transformer):
        super().__init__()
        self.register_modules(scheduler=scheduler, transformer=transformer)
        object.__setattr__(self, "drawn", [])

    def generate_prior_tokens(self, prompt, generator=None):
        self.drawn.append(len(prompt))
        return torch.stack([torch.randint(-9, 9, (4,), generator=generator) for _ in prompt]), None

    @torch.no_grad()
    def __call__(self, prompt, num_inference_steps=4, generator=None, output_type="np", return_dict=True):
        prompt = [prompt] if isinstance(prompt, str) else prompt
        generators = generator if isinstance(generator, list) else [generator] * len(prompt)
        tokens, _ = self.generate_prior_tokens(prompt, generator=generators[0])
        self.scheduler.set_timesteps(num_inference_steps)
        samples = torch.stack([torch.randn(3, 4, 4, generator=one) for one in generators])
        for t in self.scheduler.timesteps:
            velocity = self.transformer(samples, t.expand(len(samples)), tokens)[0]
            samples = self.scheduler.step(velocity, t, samples, return_dict=False)[0]
        return ((samples / 4 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy(),)


@dataclass(frozen=True)
class FollowsTheSecond(Strategy):
    def events(self, num_steps):
        return [1]

    def step(self, look):
        return Plan(torch.full_like(look.everyone, 1))

    def copying(self, num_steps):
        return []


def test_particles_share_what_is_drawn_for_their_prompt():
    pipe = quiet(DrawsTokens(FlowMatchEulerDiscreteScheduler(), Denoiser()))
    strategy = FollowsTheSecond(3, noise=Noise(0.0))
    output = steer(pipe, redness, strategy)(PROMPTS, generator=row_generators(0, 1, 2, 3, 4, 5), output_type="np")
    assert pipe.drawn[0] == 2  # once for each prompt, and not for each particle
    for particles in output.particles:
        assert abs(particles - particles[:1]).max() < 1e-6
    assert abs(output.particles[0][0] - output.particles[1][0]).max() > 1e-3


def test_a_single_particle_is_the_stock_image_and_pictures_draw_nothing():
    pipe = quiet(DrawsTokens(FlowMatchEulerDiscreteScheduler(), Denoiser()))
    stock = pipe(PROMPTS[0], generator=row_generators(0)[0], return_dict=False)[0]
    single = preset("best-of-n", num_particles=1, noise=Noise(0.0))
    output = steer(pipe, redness, single)(PROMPTS[0], generator=row_generators(0), output_type="np")
    assert (output.images == stock).all()
    pipe.drawn.clear()
    steer(pipe, redness, FollowsTheSecond(3, noise=Noise(0.0)))(
        PROMPTS[0], generator=row_generators(0, 1, 2), on_event=lambda event: event.predictions()
    )
    assert len(pipe.drawn) <= 2  # in the run itself, and once to see what belongs to a row

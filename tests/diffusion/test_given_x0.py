"""Flows whose sigmas exceed 1, and loops that ask the scheduler for x0 and then give it one."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiffusionPipeline, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

from fk_steer import Noise, Strategy, steer
from fk_steer.diffusion.noise import noise_switched
from fk_steer.diffusion.schedulers import levels, predict_x0
from fk_steer.search import Plan
from fk_steer.testing import quiet, redness, row_generators


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_of_an_unbounded_flow_are_x0_and_noise(eta):
    x0 = torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    scheduler = FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    scheduler.register_to_config(sigma_max=80.0, sigma_min=0.002)
    scheduler.set_timesteps(sigmas=torch.linspace(0, 1, 5).tolist())
    sample = x0 + scheduler.sigmas[0] * torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    for index, timestep in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[index]
        output = (sample - x0) / sigma
        assert torch.allclose(predict_x0(scheduler, output, timestep, sample), x0, atol=1e-4)
        assert [float(level) for level in levels(scheduler, timestep, index)] == [1.0, float(sigma)]
        with noise_switched(scheduler, scheduler.step, eta) as step:
            sample = step(output, timestep, sample, generator=torch.Generator().manual_seed(10 + index))[0]
        following = float(scheduler.sigmas[index + 1])
        assert float((sample - x0).std()) == pytest.approx(following, rel=0.05, abs=1e-5)
        assert float(((sample - x0) * x0).mean()) == pytest.approx(0.0, abs=0.02 * following + 1e-5)
    assert not scheduler.config.stochastic_sampling


class Denoiser(torch.nn.Module):
    device, dtype = torch.device("cpu"), torch.float32

    def forward(self, sample, timestep):
        return (torch.sin(3 * sample),)


class AsksForX0(DiffusionPipeline):
    """Guides x0 by that of the negated samples, as the scheduler says it is, with both in one batch."""

    def __init__(self, scheduler, transformer):
        super().__init__()
        self.register_modules(scheduler=scheduler, transformer=transformer)

    @torch.no_grad()
    def __call__(self, prompt, num_inference_steps=6, generator=None, output_type="np", return_dict=True):
        prompt = [prompt] if isinstance(prompt, str) else prompt
        generators = generator if isinstance(generator, list) else [generator] * len(prompt)
        self.scheduler.set_timesteps(num_inference_steps)
        samples = torch.stack([torch.randn(3, 4, 4, generator=one) for one in generators])
        samples = samples * self.scheduler.init_noise_sigma
        for t in self.scheduler.timesteps:
            both = [self.transformer(self.scheduler.scale_model_input(one, t), t)[0] for one in (samples, -samples)]
            x0 = self.scheduler.step(torch.cat(both), t, torch.cat([samples, samples]), return_dict=False)[1]
            self.scheduler._step_index -= 1
            one, other = x0.chunk(2)
            x0 = one + 0.5 * (one - other)
            samples = self.scheduler.step(x0, t, samples, return_dict=False, pred_original_sample=x0)[0]
        return ((samples / 4 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy(),)


class FollowsTheSecond(Strategy):
    """At one step all go on as copies of the second particle."""

    def events(self, num_steps):
        return [3, num_steps - 1]

    def step(self, look):
        return Plan(torch.full_like(look.everyone, 1) if look.step == 3 else look.everyone)

    def copying(self, num_steps):
        return []


def test_a_loop_that_asks_for_x0_is_steered_by_the_x0_it_gives():
    pipe = quiet(AsksForX0(EDMEulerScheduler(), Denoiser()))
    (stock,) = pipe("", generator=row_generators(1), return_dict=False)
    shown = []

    def keep(event):
        if not event.final:
            shown.append(event.predictions())

    output = steer(pipe, redness, FollowsTheSecond(3, noise=Noise(0.0)))(
        "", generator=row_generators(0, 1, 2), output_type="np", on_event=keep
    )
    assert len(output.trace.events) == 3 and output.trace.num_steps == 6
    for image in output.particles[0]:
        assert abs(image - stock[0]).max() < 1e-5
    # The last x0 is the final image.
    assert abs(shown[-1][0, 0].permute(1, 2, 0).numpy() - stock[0]).max() < 1e-5

"""What rows hold beside their samples goes where the particles go, or is the same for all of them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline
from PIL import Image

from fk_steer import Plan, Strategy, steer
from fk_steer.diffusion.conditions import Conditions, InitialNoise
from fk_steer.search import Noise
from fk_steer.testing import pipelines, row_generators


@dataclass(frozen=True)
class CopyOne(Strategy):
    """All go on as copies of the first from one step on, without noise."""

    at: int = 0
    noise: Noise = Noise(0.0)

    def events(self, num_steps):
        return [self.at]

    def step(self, look):
        return Plan(torch.zeros_like(look.everyone))

    def copying(self, num_steps):
        return []


@pytest.mark.parametrize(
    "make, kind", [(pipelines.sd, StableDiffusionInpaintPipeline), (pipelines.sdxl, StableDiffusionXLInpaintPipeline)]
)
@pytest.mark.parametrize("at", [0, 1])
def test_what_a_mask_keeps_is_noised_as_for_the_particle_that_is_continued(make, kind, at):
    """In a loop that blends the image's own pixels in at every step, with the noise that a row began with."""
    pipe = pipelines.quiet(
        kind(**{**make().components, **({"feature_extractor": None} if kind is StableDiffusionInpaintPipeline else {})})
    )
    image = Image.effect_noise((32, 32), 90).convert("RGB")
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 16, 32))
    out = steer(pipe, pipelines.redness, CopyOne(3, at=at))(
        "a cat",
        image=image,
        mask_image=mask,
        strength=1.0,
        num_inference_steps=4,
        height=32,
        width=32,
        generator=row_generators(0, 1, 2),
        output_type="pt",
    )
    copies = out.particles[0]
    assert torch.equal(copies[0], copies[1]) and torch.equal(copies[0], copies[2])


def test_initial_noise_follows_and_later_noise_does_not():
    scheduler = DDPMScheduler()
    initial, later = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    image, time, origins = torch.zeros(3, 4), torch.tensor([999]), torch.tensor([0, 0, 2])
    noise = InitialNoise()

    def add(step, origins, value):
        return noise.add(scheduler.add_noise, step, origins, (image, value, time), {})

    assert torch.equal(add(-1, None, initial), scheduler.add_noise(image, initial, time))
    assert torch.equal(add(1, origins, initial), scheduler.add_noise(image, initial[origins], time))
    assert torch.equal(add(1, origins, later), scheduler.add_noise(image, later, time))
    other_rows = torch.ones(2, 4)
    assert torch.equal(
        noise.add(scheduler.add_noise, 0, origins, (image[:2], other_rows, time), {}),
        scheduler.add_noise(image[:2], other_rows, time),
    )


def test_particles_of_a_population_share_the_noise_of_their_conditions():
    scheduler = DDPMScheduler()
    noise = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    image, time = torch.ones(4, 4), torch.tensor([500] * 4)
    conditions = Conditions()
    conditions.begin(row_generators(0, 1, 2, 3), [0, 0, 1, 1])
    shared = conditions.add_noise(scheduler.add_noise, image, noise=noise, timesteps=time)
    assert torch.equal(shared, scheduler.add_noise(image, noise[[0, 0, 2, 2]], time))
    # Run again for the fourth row alone.
    conditions.begin(row_generators(3), [1])
    alone = conditions.add_noise(scheduler.add_noise, image[:1], noise=noise[3:], timesteps=time[:1])
    assert torch.equal(alone, shared[3:])


def test_shared_draws_keep_their_order_in_memory():
    """On which the order of sums depends, and with it the last bit of an image."""

    class Posterior:
        def sample(self, generator):
            return torch.zeros(2, 4, 3, 3).contiguous(memory_format=torch.channels_last)

    conditions, generators = Conditions(), row_generators(0, 1)
    conditions.begin(generators, [0, 0])
    assert conditions.draw(Posterior(), generators).is_contiguous(memory_format=torch.channels_last)

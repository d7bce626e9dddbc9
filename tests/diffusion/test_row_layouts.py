"""Where the rows are in a denoiser's arguments, and what conditions share."""

from __future__ import annotations

import pytest
import torch

from fk_steer.diffusion.conditions import Conditions
from fk_steer.diffusion.layout import (
    Block,
    Entries,
    UnknownLayoutError,
    known_layout,
    learned_layout,
    take_units,
)
from fk_steer.diffusion.noise import noise_switched
from fk_steer.diffusion.schedulers import predict_x0
from fk_steer.testing import row_generators


def test_rows_are_where_a_call_grows():
    one = {
        "x": [torch.zeros(4, 2)],
        "llama": torch.zeros(5, 2, 7),
        "frames": torch.zeros(6, 3),
        "ids": torch.zeros(6, 3),
    }
    many = {
        "x": [torch.full((4, 2), float(row)) for row in range(3)],
        "llama": torch.arange(6.0).view(1, 6, 1).expand(5, 6, 7),
        "frames": torch.arange(18.0).view(18, 1).expand(18, 3),
        "ids": torch.zeros(6, 3),
    }
    layout = learned_layout(one, many, 3)
    assert layout == {"x": Entries(), "llama": Block(1, 2), "frames": Block(0, 6), "ids": None}
    taken = take_units(many, layout, torch.tensor([2, 0]))
    assert [entry[0, 0].item() for entry in taken["x"]] == [2.0, 0.0]
    assert taken["llama"][0, :, 0].tolist() == [4.0, 5.0, 0.0, 1.0]
    assert taken["frames"][:, 0].tolist() == [*range(12, 18), *range(6)]
    assert taken["ids"] is many["ids"]


def test_what_does_not_grow_with_the_rows_is_not_known():
    with pytest.raises(UnknownLayoutError):
        learned_layout({"x": torch.zeros(1, 5)}, {"x": torch.zeros(2, 7)}, 3)
    with pytest.raises(UnknownLayoutError):
        known_layout({"sample": torch.zeros(3, 1), "llama": torch.zeros(5, 3)}, 3)


def test_particles_of_a_population_share_the_draws_of_an_image():
    class Posterior:
        def sample(self, generator):
            return torch.stack([torch.randn(2, generator=one) for one in generator])

    conditions = Conditions()
    generators = row_generators(0, 1, 2, 3)
    conditions.begin(generators, [0, 0, 1, 1])
    first, second = (conditions.draw(Posterior(), generators) for _ in range(2))
    assert torch.equal(first[0], first[1]) and torch.equal(first[2], first[3])
    assert not torch.equal(first[0], first[2]) and not torch.equal(first[0], second[0])
    again = row_generators(1)
    conditions.begin(again, [0])
    assert torch.equal(conditions.draw(Posterior(), again)[0], first[0])


def test_an_inverted_flow_ends_at_x0():
    """m = x0 - eps leads from noise to x0, with the scheduler's noise and without."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    x0 = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    for eta in (0.0, 1.0):
        scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
        scheduler.set_timesteps(5)
        sample = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
        for index, timestep in enumerate(scheduler.timesteps):
            sigma = scheduler.sigmas[index]
            output = (x0 - sample) / (1 - sigma)  # whatever the noise in the sample
            assert torch.allclose(predict_x0(scheduler, output, timestep, sample), x0, atol=1e-4)
            with noise_switched(scheduler, scheduler.step, eta) as step:
                sample = step(output, timestep, sample, generator=torch.Generator().manual_seed(index))[0]
        assert torch.allclose(sample, x0, atol=1e-4)
        assert not scheduler.config.stochastic_sampling

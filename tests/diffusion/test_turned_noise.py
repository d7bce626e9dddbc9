"""Noise whose direction a search says, in place of what is drawn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor

from fk_steer import steer
from fk_steer.diffusion.solver import Solver
from fk_steer.search import Finish, Refine
from fk_steer.testing import pipelines


SCHEDULERS = {
    "ddim": lambda: DDIMScheduler(),
    "sde-dpmsolver++": lambda: DPMSolverMultistepScheduler(final_sigmas_type="zero"),
    "euler ancestral": lambda: EulerAncestralDiscreteScheduler(),
    "flow": lambda: FlowMatchEulerDiscreteScheduler(),
}
SHAPE = (4, 2, 3, 3)


def one_step(make: Any, directions: Tensor | None, quiet: Tensor | None = None, negated: bool = False) -> Tensor:
    """The samples after the fifth of ten steps, from the same state and generators."""
    torch.manual_seed(0)
    scheduler = make()
    scheduler.set_timesteps(10)
    solver = Solver(scheduler, lambda index: 1.0, revisits=False)
    generators = [torch.Generator().manual_seed(seed) for seed in range(SHAPE[0])]
    sample = torch.randn(SHAPE)
    for index, timestep in enumerate(scheduler.timesteps[:5]):
        last = index == 4
        output = solver.step(
            scheduler.step, index, quiet if last else None, generators, torch.randn(SHAPE), timestep, sample,
            directions=directions if last else None,
        )  # fmt: skip
        sample = output[0] if isinstance(output, tuple) else output.prev_sample
    return sample


@pytest.mark.parametrize("name", SCHEDULERS)
def test_it_has_the_direction_asked_for_and_the_length_of_what_is_drawn(name):
    """The mean is half-way between a direction and its opposite."""
    make, wanted = SCHEDULERS[name], torch.randn(SHAPE, generator=torch.Generator().manual_seed(9))
    drawn, there, back = one_step(make, None), one_step(make, wanted), one_step(make, -7.5 * wanted)
    mean = (there + back) / 2
    noise, turned = (drawn - mean).flatten(1), (there - mean).flatten(1)
    torch.testing.assert_close(turned.norm(dim=1), noise.norm(dim=1))
    torch.testing.assert_close(
        turned / turned.norm(dim=1, keepdim=True), torch.nn.functional.normalize(wanted.flatten(1))
    )
    assert noise.norm(dim=1).min() > 0.1, "there is noise to turn"


@pytest.mark.parametrize("name", SCHEDULERS)
def test_rows_without_a_direction_keep_their_noise(name):
    make = SCHEDULERS[name]
    directions = torch.zeros(SHAPE)
    directions[2] = 1.0
    drawn, turned = one_step(make, None), one_step(make, directions)
    assert torch.equal(turned[[0, 1, 3]], drawn[[0, 1, 3]]) and not torch.equal(turned[2], drawn[2])
    quiet = torch.tensor([True, False, False, False])
    both = one_step(make, directions, quiet)
    assert torch.equal(both[0], one_step(make, None, quiet)[0]) and torch.equal(both[1:], turned[1:])


def brightness(images: Tensor, prompts: list[str]) -> Tensor:
    return images.mean((1, 2, 3))


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = pipelines.sd()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_recombined_noise_is_a_direction_of_ascent(pipe):
    """The child with it is better than its siblings more often than the one in four that chance gives: at 40 looks
    three standard errors above are 18."""
    better = looks = 0

    def seen(event: Any) -> None:
        nonlocal better, looks
        if event.step > first:
            better += int((event.rewards.argmax(1) == event.rewards.shape[1] - 1).sum())
            looks += len(event.rewards)

    settings = Finish(4, schedule=(), greedy_from=0.5)
    first = settings.greedy(14)[0] + 1
    for seed in range(5):
        steer(pipe, brightness, settings)(
            ["a", "b"], num_inference_steps=14, generator=torch.Generator().manual_seed(seed), on_event=seen,
            output_type="pt",
        )  # fmt: skip
    assert looks >= 40 and better / looks > 0.25 + 3 * (0.25 * 0.75 / looks) ** 0.5


@pytest.mark.parametrize("steps", [5, 12])
def test_an_image_that_is_refined_is_kept_where_no_child_is_better(pipe, steps):
    """Also by a solver that remembers more of it than of its children."""
    own = pipe.scheduler
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(own.config, final_sigmas_type="zero")
    try:

        def run(rounds: int) -> Any:
            return steer(pipe, brightness, Refine(3, rounds=rounds, strengths=(0.4,)))(
                ["a", "b", "c"], num_inference_steps=steps, generator=torch.Generator().manual_seed(1), output_type="pt"
            )  # fmt: skip

        before, after = run(0), run(2)
    finally:
        pipe.scheduler = own
    # Brightness of an image is that of its x0 prediction, but for rounding.
    assert (after.rewards[:, 0] >= before.rewards[:, 0] - 1e-6).all()
    assert (after.rewards[:, 0] > before.rewards[:, 0] + 1e-6).any()


def test_prompts_that_end_earlier_make_no_difference(pipe):
    """Each prompt has its own rounds: together as alone."""
    settings = Refine(3, rounds=4, strengths=(0.6, 0.3), patience=1)
    prompts = ["a", "b", "c", "d"]

    def run(numbers: list[int]) -> Any:
        return steer(pipe, brightness, settings)(
            [prompts[number] for number in numbers],
            generator=[torch.Generator().manual_seed(number) for number in numbers],
            num_inference_steps=8,
            output_type="pt",
        )

    together, alone = run([0, 1, 2, 3]), [run([number]) for number in range(4)]
    assert len({one.trace.nfe for one in alone}) > 1, "they end at different rounds"
    for number, one in enumerate(alone):
        torch.testing.assert_close(together.images[number], one.images[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.rewards[number, 0], one.rewards[0, 0], atol=1e-5, rtol=1e-5)
    assert together.trace.nfe == sum(one.trace.nfe for one in alone)

"""What presets promise: that they are what they are named after."""

from __future__ import annotations

import pytest
import torch

from fk_steer import FKSteering, steer
from fk_steer.testing import PROMPTS, SIZE, redness, row_generators, sd, sdxl


CALL = {**SIZE, "num_inference_steps": 12, "guidance_scale": 5.0, "output_type": "pt"}


def best_of(pipe, prompt: str, seeds: range) -> tuple[torch.Tensor, float]:
    """The stock pipeline, once per seed, and the image with the highest reward."""
    images = torch.cat([pipe(prompt, generator=row_generators(seed), **CALL).images for seed in seeds])
    rewards = redness(images, [prompt] * len(images))
    return images[rewards.argmax()], rewards.max().item()


@pytest.mark.parametrize("make", [sd, sdxl])
def test_best_of_n_is_the_stock_pipeline_n_times(make):
    pipe = make()
    output = steer(pipe, redness, "best-of-n")(PROMPTS, generator=row_generators(*range(8)), **CALL)
    assert output.trace.nfe == 2 * 12 * 8
    for index, prompt in enumerate(PROMPTS):
        image, reward = best_of(pipe, prompt, range(4 * index, 4 * index + 4))
        torch.testing.assert_close(output.images[index], image, atol=1e-5, rtol=1e-5)
        assert output.rewards[index, 0].item() == pytest.approx(reward, abs=1e-4)


def test_psp_prunes_seeds_by_their_x0_predictions():
    """The eight best of 16 seeds at 25%, the four best of those at 50%; what is left is the stock pipeline's."""
    pipe = sd()
    steering = FKSteering.preset("psp", num_particles=16)
    output = steer(pipe, redness, steering)(PROMPTS[0], generator=row_generators(*range(16)), **CALL)
    first, second, final = output.trace.events
    assert [event.step for event in output.trace.events] == [2, 5, 12]
    for event, kept in ((first, 8), (second, 4)):
        ranked = sorted(zip(event.rewards[0], event.slots_before[0]), reverse=True)
        assert sorted(slot for _, slot in ranked[:kept]) == event.slots[0]
    assert output.trace.nfe == 2 * (3 * 16 + 3 * 8 + 6 * 4) == 2 * 12 * 8
    by_reward = sorted(zip(final.rewards[0], final.slots[0]), reverse=True)
    for image, (_, slot) in zip(output.particles[0], by_reward, strict=True):
        alone = pipe(PROMPTS[0], generator=row_generators(slot), **CALL).images[0]
        torch.testing.assert_close(image, alone, atol=1e-5, rtol=1e-5)


def test_hybrid_is_never_worse_than_its_best_seed():
    """The best seed at the middle of the loop goes on as the stock pipeline takes it."""
    pipe = sd()
    output = steer(pipe, redness, "hybrid")(PROMPTS, generator=row_generators(*range(16)), **CALL)
    middle = output.trace.events[1]
    for index, prompt in enumerate(PROMPTS):
        best = max(zip(middle.rewards[index], middle.slots_before[index]))[1]
        alone = pipe(prompt, generator=row_generators(8 * index + best), **CALL).images
        assert output.rewards[index, 0] >= redness(alone, [prompt]).item() - 1e-4


def test_svdd_goes_on_from_the_best():
    output = steer(sd(), redness, "svdd")(PROMPTS, generator=row_generators(0, 1), **CALL)
    for event in output.trace.events[:-1]:
        for rewards, slots, parents in zip(event.rewards, event.slots_before, event.parents):
            assert set(parents) == {max(zip(rewards, slots))[1]}


def test_adaptive_leaves_half_the_effective_sample_size():
    output = steer(sd(), redness, "adaptive")(PROMPTS, generator=row_generators(0, 1), **CALL)
    assert [event.step for event in output.trace.events] == [3, 5, 6, 7, 8, 9, 12]
    assert all(ess == pytest.approx(2.0, abs=1e-6) for ess in output.trace.events[0].ess)
    assert all(event.resampled == [True, True] for event in output.trace.events[:1])

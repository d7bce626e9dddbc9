from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY

from fk_steer import Execution, FKSteering, SteeredOutput, load_reward
from fk_steer.pipelines import FKStableDiffusionPipeline, FKStableDiffusionXLPipeline
from fk_steer.search import DEFAULT_PRESET
from fk_steer.testing import PROMPTS, SIZE, redness, row_generators, save_clip, sd, sd_scheduler, sdxl


STEERING = FKSteering(num_particles=3, lmbda=2.0)
CALL = {**SIZE, "num_inference_steps": 4, "output_type": "pt"}
KINDS = {
    "sd": (FKStableDiffusionPipeline, sd),
    "sdxl": (FKStableDiffusionXLPipeline, lambda: sdxl(sd_scheduler("epsilon"))),
}


def steered(pipe, **overrides) -> SteeredOutput:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(PROMPTS, **{"reward": redness, "steering": STEERING, "generator": generator, **CALL, **overrides})


@pytest.mark.parametrize(("fk_class", "make"), KINDS.values(), ids=KINDS)
def test_steers(fk_class, make):
    output = steered(fk_class.from_pipe(make()))
    assert output.images.shape == (2, 3, 16, 16)
    assert output.particles.shape == (2, 3, 3, 16, 16)
    assert output.rewards.shape == (2, 3)
    assert output[0] is output.images
    assert [event.step for event in output.trace.events] == [0, 1, 2, 4]


def test_preset_names_and_the_default():
    pipe = FKStableDiffusionPipeline.from_pipe(sd())
    pipe.set_progress_bar_config(disable=True)

    class Reward:
        name, default_lmbda = "redness", 2.0

        def __call__(self, images, prompts):
            return redness(images, prompts)

    default, named = (
        pipe(PROMPTS[0], reward=Reward(), generator=row_generators(0), **steering, **CALL)
        for steering in ({}, {"steering": DEFAULT_PRESET})
    )
    assert torch.equal(default.particles, named.particles)
    assert pipe(PROMPTS[0], reward=Reward(), steering="psp", **CALL).particles.shape[:2] == (1, 2)


class Counting(FKStableDiffusionPipeline):
    calls = 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return super().__call__(*args, **kwargs)


class Inheriting(Counting):
    pass


@pytest.mark.parametrize("kind", [Counting, Inheriting])
def test_a_subclass_keeps_its_own_call(kind):
    pipe = kind.from_pipe(sd())
    output = steered(pipe)
    assert pipe.calls >= 1
    assert torch.equal(output.particles, steered(FKStableDiffusionPipeline.from_pipe(sd())).particles)
    pipe.calls = 0
    assert type(pipe(PROMPTS, **CALL)).__name__ == "StableDiffusionPipelineOutput"
    assert pipe.calls == 1


def test_steering_without_a_reward_is_refused():
    with pytest.raises(ValueError, match="`steering` needs a `reward`"):
        FKStableDiffusionPipeline.from_pipe(sd())(PROMPTS, steering="fk", **CALL)


def test_everything_that_steer_takes_is_passed_on():
    pipe = FKStableDiffusionPipeline.from_pipe(sd())
    seen, sizes = [], []

    def reward(images, prompts):
        sizes.append(len(images))
        return redness(images, prompts)

    output = steered(
        pipe,
        reward=reward,
        execution=Execution(reward_batch_size=2),
        callback_on_scoring_event=seen.append,
        keep_predictions=True,
    )
    assert [event.step for event in seen] == [event.step for event in output.trace.events]
    assert max(sizes) == 2
    assert all(event.predictions for event in output.trace.events)
    for option in ({"execution": Execution()}, {"callback_on_scoring_event": print}, {"keep_predictions": True}):
        with pytest.raises(ValueError, match=f"`{next(iter(option))}` needs a `reward`"):
            pipe(PROMPTS, **option, **CALL)


def test_tuple_output_continues_the_stock_one():
    output = steered(FKStableDiffusionPipeline.from_pipe(sd()), return_dict=False)
    assert len(output) == 6
    assert output[1] is None


def test_with_clip_score(tmp_path):
    reward = load_reward("clip-score", path=save_clip(tmp_path))
    pipe = FKStableDiffusionPipeline.from_pipe(sd())
    pipe.set_progress_bar_config(disable=True)
    output = pipe(PROMPTS, reward=reward, steering=FKSteering.preset("fk", num_particles=3), **CALL)
    assert output.trace.reward == "clip-score"
    assert output.trace.events[-1].lmbda == [20.0, 20.0]
    torch.testing.assert_close(
        reward(output.particles.flatten(0, 1), [prompt for prompt in PROMPTS for _ in range(3)]).view(2, 3),
        output.rewards,
    )


def test_an_import_finds_what_lies_where_it_says():
    file = REPOSITORY / "fk_steer" / "pipelines" / "fk_stable_diffusion.py"
    assert Path(inspect.getfile(FKStableDiffusionPipeline)) == file
    assert FKStableDiffusionPipeline.__module__ == "fk_steer.pipelines.fk_stable_diffusion"

"""Calls whose steps, sampler and particles are chosen for a budget of denoiser calls, or fixed by the settings."""

from __future__ import annotations

import diffusers
import pytest
import torch

from fk_steer import FKSteering, Schedule, Stop, Strategy, steer
from fk_steer.diffusion.budgets import choose, loop_length
from fk_steer.diffusion.noise import adds_noise
from fk_steer.diffusion.samplers import SAMPLERS, sampler, sampler_at_call
from fk_steer.pipelines import FKStableDiffusionPipeline
from fk_steer.report.trace import Trace, told
from fk_steer.rewards.base import RewardError
from fk_steer.search import PRESETS, Evolution
from fk_steer.search.budget import steps_for
from fk_steer.testing import CALLS, PROMPTS, SIZE, flux, quiet, redness, sd, sd_scheduler
from fk_steer.testing.tiny import modular_of, picture, wan


CALL = {**SIZE, "output_type": "pt"}
RED = "a red circle"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def of_kind(kind, **options):
    return sd(sd_scheduler(kind=kind, **options))


@pytest.fixture(scope="module")
def pipe():
    return sd()


@pytest.mark.parametrize("name", PRESETS)
def test_a_run_costs_what_was_chosen(pipe, name):
    settings = PRESETS[name].settings.replace(steps=None)
    if hasattr(settings, "lmbda"):
        settings = settings.replace(lmbda=1.0)
    trace = steer(pipe, redness, settings.within(calls=110))(PROMPTS, generator=generator(), **CALL).trace
    chosen = trace.chosen
    assert (chosen["steps"], chosen["budget"]) == (steps_for(110), 110)
    assert len(trace.events[0].rewards[0]) == chosen["num_particles"] == trace.steering["num_particles"]
    assert chosen["calls"] <= 110
    # Rows under guidance are two for each call; copies that no noise has parted yet are computed once.
    assert 0.85 * chosen["calls"] < trace.nfe / (2 * len(PROMPTS)) <= chosen["calls"]


def test_the_number_of_steps_is_the_users(pipe):
    budget = FKSteering.within(calls=100)
    unsaid = steer(pipe, redness, budget)(RED, generator=generator(), **CALL).trace
    assert (unsaid.num_steps, unsaid.chosen["num_particles"]) == (steps_for(100), 100 // steps_for(100))
    said = steer(pipe, redness, budget)(RED, generator=generator(), num_inference_steps=20, **CALL).trace
    assert (said.num_steps, said.chosen["num_particles"], said.nfe) == (20, 5, 200)
    fixed = budget.replace(steps=25)
    assert steer(pipe, redness, fixed)(RED, generator=generator(), **CALL).trace.num_steps == 25
    said = steer(pipe, redness, fixed)(RED, generator=generator(), num_inference_steps=20, **CALL).trace
    assert (said.num_steps, said.chosen["steps"]) == (20, 20)
    listed = steer(pipe, redness, fixed)(RED, generator=generator(), timesteps=[900, 700, 500, 300, 100], **CALL).trace
    assert (listed.num_steps, listed.chosen["num_particles"], listed.chosen["steps"]) == (5, 20, None)


def test_settings_fix_steps_and_sampler_without_a_budget(pipe):
    own = pipe.scheduler
    settings = FKSteering(num_particles=3, steps=6, sampler="euler")
    output = steer(pipe, redness, settings)(PROMPTS, generator=generator(), **CALL)
    assert output.trace.chosen == {
        "steps": 6, "sampler": "euler", "num_particles": 3, "calls": None, "budget": None
    }  # fmt: skip
    assert pipe.scheduler is own
    euler = sd()
    euler.scheduler = diffusers.EulerDiscreteScheduler.from_config(own.config)
    plain = steer(euler, redness, FKSteering(num_particles=3))
    expected = plain(PROMPTS, generator=generator(), num_inference_steps=6, **CALL)
    torch.testing.assert_close(output.particles, expected.particles, rtol=0, atol=0)
    assert expected.trace.chosen == {}


def test_the_record_makes_the_run_again(pipe):
    first = steer(pipe, redness, FKSteering.within(calls=61))(RED, generator=generator(), **CALL)
    settings = Strategy.from_dict(first.trace.steering)
    assert (settings.calls, settings.steps, settings.sampler, settings.num_particles) == (None, 10, "dpmsolver++", 6)
    again = steer(pipe, redness, settings)(RED, generator=generator(), **CALL)
    torch.testing.assert_close(again.particles, first.particles, rtol=0, atol=0)
    assert Trace.from_dict(first.trace.to_dict()).chosen == first.trace.chosen


def test_a_scheduler_is_put_back(pipe):
    own, config = pipe.scheduler, dict(pipe.config)
    seen = []

    def look(event):
        seen.append(type(pipe.scheduler).__name__)

    steered = steer(pipe, redness, FKSteering.within(calls=60))
    steered(RED, generator=generator(), on_event=look, **CALL)
    assert set(seen) == {"DPMSolverMultistepScheduler"}
    assert pipe.scheduler is own

    def fail(images, prompts):
        raise RuntimeError("out of order")

    with pytest.raises(RewardError, match="out of order"):
        steer(pipe, fail, FKSteering.within(calls=60))(RED, generator=generator(), **CALL)
    assert pipe.scheduler is own
    assert dict(pipe.config) == config


def test_several_images_and_prompts(pipe):
    steered = steer(pipe, redness, FKSteering.within(calls=40))
    output = steered(PROMPTS, num_images_per_prompt=2, generator=generator(), **CALL)
    assert output.rewards.shape == (4, 4)
    assert output.trace.nfe == 2 * 4 * 40
    alone = steered(PROMPTS[:1], num_images_per_prompt=2, generator=generator(), **CALL)
    torch.testing.assert_close(alone.rewards, output.rewards[:2], rtol=1e-4, atol=1e-5)


def test_a_pass_for_what_is_left_over(pipe):
    """Rows that a prompt saves are spent on passes with the particles that were chosen."""
    settings = FKSteering(stop=Stop(target_reward=-1e6, rollover=True))
    trace = steer(pipe, redness, settings.within(calls=40))(PROMPTS, generator=generator(), **CALL).trace
    assert trace.nfe_saved > 0
    hard = FKSteering(stop=Stop(target_reward=0.5, rollover=True)).within(calls=40)
    trace = steer(pipe, redness, hard)(PROMPTS * 2, generator=generator(), **CALL).trace
    assert all(again.steering["num_particles"] == 4 for _, again in trace.retries)


def test_initial_latents_are_as_many_as_the_particles(pipe):
    latents = torch.randn(8, 4, 8, 8, generator=generator())
    steered = steer(pipe, redness, FKSteering.within(calls=40))
    shape = pipe.unet.config.in_channels, *[side // pipe.vae_scale_factor for side in (SIZE["height"], SIZE["width"])]
    latents = torch.randn(8, *shape, generator=generator())
    assert steered(PROMPTS, latents=latents, generator=generator(), **CALL).rewards.shape == (2, 4)
    with pytest.raises(ValueError, match="room for 4 particles over a loop of 10 steps, so `latents` have to be 4"):
        steered(RED, latents=latents, generator=generator(), **CALL)


def test_a_budget_too_small_is_said_before_the_loop(pipe):
    steered = steer(pipe, redness, FKSteering.within(calls=9))
    with pytest.raises(ValueError, match="A budget of 9 denoiser calls per image is too small: .* Allow at least 10"):
        steered(RED, **CALL)
    assert steered(RED, num_inference_steps=3, **CALL).trace.chosen["num_particles"] == 3


# Samplers.


@pytest.mark.parametrize(
    "kind",
    ["PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler", "LMSDiscreteScheduler"],
)
def test_an_open_sampler_is_dpmsolver(kind):
    own = sd_scheduler(kind=getattr(diffusers, kind))
    made = sampler_at_call(own, FKSteering.within(calls=100))
    assert isinstance(made, diffusers.DPMSolverMultistepScheduler)
    assert made.config.prediction_type == own.config.prediction_type
    assert adds_noise(made, 1.0)
    assert not adds_noise(made, 0.0)
    made.set_timesteps(10)
    assert made.timesteps[0] == 999  # starts at full noise


@pytest.mark.parametrize(
    "own",
    [
        diffusers.LCMScheduler(),
        diffusers.TCDScheduler(),
        diffusers.CogVideoXDDIMScheduler(),
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
        diffusers.EDMEulerScheduler(),
        diffusers.DDPMScheduler(clip_sample=True),
        diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True),
    ],
    ids=lambda own: type(own).__name__,
)
def test_others_keep_their_own(own):
    assert sampler_at_call(own, FKSteering.within(calls=100)) is own


def test_without_a_budget_the_pipelines_own_stays():
    own = sd_scheduler(kind=diffusers.PNDMScheduler)
    assert sampler_at_call(own, FKSteering()) is own
    assert sampler_at_call(own, FKSteering(steps=10)) is own


def test_defaults_of_schedulers_are_none_of_the_models():
    own = diffusers.DDIMScheduler()
    made = sampler(own, "heun")
    assert diffusers.HeunDiscreteScheduler().config.beta_end != own.config.beta_end == made.config.beta_end
    assert made.config.beta_schedule == own.config.beta_schedule


@pytest.mark.parametrize("name", ["ddim", "DDIMScheduler"])
def test_by_name_or_class(name):
    assert isinstance(sampler(sd_scheduler(kind=diffusers.PNDMScheduler), name), diffusers.DDIMScheduler)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_name_fits_its_kind_of_model(name):
    own = getattr(diffusers, SAMPLERS[name].scheduler)()
    assert type(sampler(own, name)) is type(own)


@pytest.mark.parametrize(
    ("own", "name", "message"),
    [
        (
            diffusers.FlowMatchEulerDiscreteScheduler(),
            "ddim",
            "of diffusion, not of flow matching.*: flow-euler",
        ),
        (
            diffusers.DDIMScheduler(),
            "flow-euler",
            "of flow matching, not of diffusion.*: ddim, euler, dpmsolver",
        ),
        (diffusers.EDMEulerScheduler(), "euler", "models of diffusion, not of EDM.*: edm-dpmsolver"),
        (diffusers.CogVideoXDDIMScheduler(), "ddim", "does not have the noise levels"),
        (diffusers.DDIMScheduler(), "dpmsolver", "Unknown scheduler 'dpmsolver'. Expected one of ddim, .*dpmsolver"),
        (diffusers.DDIMScheduler(), "DPMSolverSDEScheduler", "Brownian"),
    ],
)
def test_one_that_does_not_fit(own, name, message):
    with pytest.raises(ValueError, match=message):
        steer(_with(own), redness, FKSteering(sampler=name))


def _with(own):
    pipe = sd()
    pipe.scheduler = own
    return pipe


def test_a_scheduler_that_cannot_be_steered_is_replaced():
    pipe = _with(diffusers.EulerDiscreteScheduler.from_config(sd_scheduler().config))
    inverse = diffusers.DDIMInverseScheduler.from_config(sd_scheduler().config)
    pipe.scheduler = inverse
    output = steer(pipe, redness, FKSteering(num_particles=2, sampler="ddim", steps=5))(RED, **CALL)
    assert output.rewards.shape == (1, 2)
    assert pipe.scheduler is inverse


# Loops of other lengths than `num_inference_steps`.


@pytest.mark.parametrize("kind", ["PNDMScheduler", "HeunDiscreteScheduler"])
def test_loops_that_take_more_calls(kind):
    pipe = of_kind(getattr(diffusers, kind))
    settings = FKSteering(schedule=Schedule(at=(0.5,)), resampling="top-k", noise=0.0, sampler=kind)
    trace = steer(pipe, redness, settings.within(calls=40))(RED, generator=generator(), **CALL).trace
    assert trace.num_steps == {"PNDMScheduler": 11, "HeunDiscreteScheduler": 19}[kind]
    assert trace.chosen["calls"] == trace.chosen["num_particles"] * trace.num_steps <= 40
    assert trace.nfe == 2 * trace.chosen["calls"]


@pytest.mark.parametrize(("strength", "steps"), [(0.5, 20), (1.0, 10)])
def test_a_loop_that_starts_from_an_image(pipe, strength, steps):
    img2img = quiet(diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False))
    call = {"image": picture(SIZE["height"]), "strength": strength, "output_type": "pt", "generator": generator()}
    trace = steer(img2img, redness, FKSteering.within(calls=40))(RED, **call).trace
    assert trace.chosen == {
        "steps": steps, "sampler": "dpmsolver++", "num_particles": 4, "calls": 40, "budget": 40
    }  # fmt: skip
    assert (trace.num_steps, trace.nfe) == (10, 80)
    del call["strength"]  # of the pipeline's own, 0.8
    trace = steer(img2img, redness, FKSteering.within(calls=40))(RED, **call).trace
    assert trace.num_steps == loop_length(img2img, img2img.scheduler, {"num_inference_steps": 13}) == 10


@pytest.mark.parametrize("name", CALLS)
def test_the_length_of_a_loop_is_known_before(name):
    make, call = CALLS[name]
    pipe = make()
    for more in ({}, {"denoising_end": 0.7}) if name == "sdxl" else ({},):
        arguments = {**call, "num_inference_steps": 7, **more}
        trace = steer(pipe, redness, FKSteering(2))(RED, **arguments).trace
        assert loop_length(pipe, pipe.scheduler, arguments) == trace.num_steps


def test_a_loop_that_is_longer_than_could_be_known(pipe, monkeypatch):
    monkeypatch.setattr("fk_steer.diffusion.budgets.loop_length", lambda *args: 5)
    with pytest.raises(ValueError, match="takes a loop of 10 steps, more than could be known before"):
        steer(pipe, redness, FKSteering.within(calls=40))(RED, **CALL)


# Pipelines.


def test_steerable_pipelines(pipe):
    steerable = FKStableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    quiet(steerable)
    output = steerable(RED, reward=redness, steering=FKSteering.within(calls=60), generator=generator(), **CALL)
    assert output.trace.chosen["calls"] == 60
    expected = steer(pipe, redness, FKSteering.within(calls=60))(RED, generator=generator(), **CALL)
    torch.testing.assert_close(output.particles, expected.particles, rtol=0, atol=0)


def test_flow_matching_keeps_its_scheduler():
    pipe = flux()
    own = pipe.scheduler
    trace = steer(pipe, redness, Evolution.within(calls=64))(RED, **CALLS["flux"][1]).trace
    assert trace.chosen["sampler"] == "flow-euler"
    assert trace.steering["sampler"] is None
    assert trace.nfe <= trace.chosen["calls"] <= 64
    assert pipe.scheduler is own


def test_videos():
    def red(videos, prompts):
        return videos[:, :, 0].mean((1, 2, 3))

    red.takes_videos = True
    pipe = wan(diffusers.FlowMatchEulerDiscreteScheduler())
    call = {"height": 16, "width": 16, "num_frames": 5, "output_type": "pt", "generator": generator()}
    assert steer(pipe, red, FKSteering.within(calls=20))(RED, **call).trace.chosen["num_particles"] == 2


def test_modular_pipelines():
    pipe = modular_of(flux())
    own = pipe.scheduler
    steered = steer(pipe, redness, FKSteering(num_particles=2, steps=6, sampler="FlowMatchEulerDiscreteScheduler"))
    trace = steered(prompt=RED, generator=generator(), **CALL).trace
    assert trace.num_steps == 6
    trace = steer(pipe, redness, FKSteering.within(calls=30))(prompt=RED, generator=generator(), **CALL).trace
    assert (trace.num_steps, trace.chosen["num_particles"]) == (10, 3)
    assert pipe.scheduler is own


def test_choices_are_told_in_a_line(pipe):
    choice = choose(pipe, FKSteering.within(calls=65), {"prompt": RED})
    assert told(choice.chosen) == "10 steps, dpmsolver++, 6 particles: 60 of 65 denoiser calls per image"
    assert told(choose(pipe, FKSteering(1, steps=7), {"prompt": RED}).chosen) == "7 steps, ddim, 1 particle"
    assert told(choose(pipe, FKSteering(), {"prompt": RED}).chosen) == ""

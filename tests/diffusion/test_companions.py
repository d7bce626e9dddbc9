"""Pipelines that denoise something beside their images with a second scheduler."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from fk_steer import Noise, Strategy, preset, steer
from fk_steer.diffusion import UnsupportedSchedulerError
from fk_steer.search import DepthFirst, Plan
from fk_steer.testing import quiet, redness, row_generators


STEPS = 6


class Denoiser(torch.nn.Module):
    """Velocities of pictures and sounds, each of which depends on the other."""

    device, dtype = torch.device("cpu"), torch.float32

    def forward(self, sample, timestep, sound):
        level = timestep.view(-1, 1, 1, 1) / 1000
        loud = sound.mean((1, 2))[:, None, None, None]
        bright = sample.mean((1, 2, 3))[:, None, None]
        return sample - torch.tanh(3 * loud) * level, sound - torch.sin(5 * bright + sound)


class PicturesWithSound(DiffusionPipeline):
    """The sound takes its steps with `second(scheduler)`; it is kept as it was if `keeps`."""

    second, keeps, copies_only = staticmethod(copy.deepcopy), False, False

    def __init__(self, scheduler, transformer):
        super().__init__()
        self.register_modules(scheduler=scheduler, transformer=transformer)

    @torch.no_grad()
    def __call__(self, prompt, num_inference_steps=STEPS, generator=None, output_type="np", return_dict=True):
        prompt = [prompt] if isinstance(prompt, str) else prompt
        generators = generator if isinstance(generator, list) else [generator] * len(prompt)
        pictures, sounds = (
            torch.stack([torch.randn(shape, generator=one) for one in generators]) for shape in ((3, 4, 4), (2, 5))
        )
        second = self.second(self.scheduler)
        for scheduler in (self.scheduler, second):
            scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            of_pictures, of_sounds = self.transformer(pictures, t.expand(len(pictures)), sounds)
            if not self.copies_only:
                pictures = self.scheduler.step(of_pictures, t, pictures, return_dict=False)[0]
            louder = second.step(of_sounds, t, sounds, return_dict=False)[0]
            sounds = sounds if self.keeps else louder
            if self.copies_only:
                pictures = second.step(of_pictures, t, pictures, return_dict=False)[0]
        return (pictures / 8 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy(), sounds


@dataclass(frozen=True)
class FollowsTheSecond(Strategy):
    """At one step all go on as copies of the second particle."""

    after_noise: bool = False

    def events(self, num_steps):
        return [2]

    def step(self, look):
        return Plan(torch.full_like(look.everyone, 1), after_noise=self.after_noise)

    def copying(self, num_steps):
        return []


def pictures_with_sound(scheduler=None, **options):
    pipe = quiet(PicturesWithSound(scheduler or FlowMatchEulerDiscreteScheduler(), Denoiser()))
    for name, value in options.items():
        object.__setattr__(pipe, name, value)
    return pipe


def flow():
    return FlowMatchEulerDiscreteScheduler()


def multistep():
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("after_noise", [False, True])
@pytest.mark.parametrize("scheduler", [flow, multistep])
def test_what_is_denoised_beside_follows_the_particles(scheduler, after_noise, keeps):
    pipe = pictures_with_sound(scheduler(), keeps=keeps)
    pictures, sounds = pipe("", generator=row_generators(1))
    strategy = FollowsTheSecond(3, noise=Noise(0.0), after_noise=after_noise)
    output = steer(pipe, redness, strategy)("", generator=row_generators(0, 1, 2), output_type="np")
    for picture in output.particles[0]:
        assert abs(picture - pictures[0]).max() < 1e-5
    assert torch.allclose(output.others[0], sounds, atol=1e-5)
    assert output.nsfw_content_detected is None


def test_copies_with_the_same_noise_stay_equal():
    pipe = pictures_with_sound()
    generators = row_generators(0, 1, 2)

    def same_noise(event):
        for one in generators:
            one.set_state(generators[1].get_state())

    strategy = FollowsTheSecond(3, noise=Noise(1.0))
    output = steer(pipe, redness, strategy)("", generator=generators, on_event=same_noise, output_type="np")
    assert abs(output.particles[0] - output.particles[0][:1]).max() < 1e-5


def test_the_sound_of_the_best_is_given_back():
    pipe = pictures_with_sound()
    steering = preset("best-of-n", num_particles=3, noise=Noise(0.0))
    output = steer(pipe, redness, steering)("", generator=row_generators(0, 1, 2), output_type="pt")
    pictures, sounds = zip(*(pipe("", generator=one) for one in row_generators(0, 1, 2)))
    rewards = redness(torch.cat([torch.from_numpy(one).permute(0, 3, 1, 2) for one in pictures]), [])
    assert torch.allclose(output.others[0], sounds[rewards.argmax()], atol=1e-5)


def test_a_stopped_run_ends_with_the_x0_of_both():
    pipe = pictures_with_sound()
    seen = []

    def stop(event):
        if not event.final:
            seen.append(event.predictions())
            event.stop()

    output = steer(pipe, redness, FollowsTheSecond(3, noise=Noise(0.0)))(
        "", generator=row_generators(0, 1, 2), on_event=stop, output_type="pt"
    )
    assert torch.allclose(output.particles[0], seen[0][:, 1:2][0].expand(3, -1, -1, -1), atol=1e-5)
    assert output.others[0].isfinite().all()


def test_the_pipeline_is_as_before():
    copies = []

    def second(scheduler):
        copies.append(copy.deepcopy(scheduler))
        return copies[-1]

    pipe = pictures_with_sound(second=second)
    steer(pipe, redness, "best-of-n")("", generator=row_generators(0))
    assert copies and all("step" not in vars(one) for one in (pipe.scheduler, *copies))


@pytest.mark.parametrize(
    ("options", "steering", "message"),
    [
        ({"copies_only": True}, "best-of-n", "with several copies of its FlowMatchEulerDiscreteScheduler"),
        ({}, DepthFirst(target_reward=1.0), "goes back to earlier steps, but PicturesWithSound takes steps with a"),
    ],
)
def test_what_cannot_be_told_to_move_is_refused(options, steering, message):
    with pytest.raises(UnsupportedSchedulerError, match=message):
        steer(pictures_with_sound(**options), redness, steering)("", generator=row_generators(0))

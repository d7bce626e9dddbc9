"""A pipeline's call run again: what it makes of x0, where it has the rows, and what it leaves as it was."""

from __future__ import annotations

import copy
import functools
import io
import logging

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FluxControlNetModel,
    FluxControlNetPipeline,
    StableDiffusion3Img2ImgPipeline,
)

from benchmarks.pipelines.cases import modular_case, plain_case, recorded_steps
from benchmarks.pipelines.checks import Copying, Watching, generators, in_slots, reward, steered
from fk_steer import Execution, Noise, steer
from fk_steer.diffusion.components import denoisers_of, is_modular, loops_of, makes_videos
from fk_steer.diffusion.layout import Block, Entries
from fk_steer.diffusion.replay import Replay, step_output
from fk_steer.testing import PROMPTS, flux, quiet, sd3
from fk_steer.testing.tiny import FAMILIES, picture, wan
from fk_steer.testing.tiny.videos import wan_vae


STEPS = 3
WATCHING = Watching(3, noise=Noise(0.0))


def flux_controlnet():
    """Its images have the size of the control image, whatever size is asked for."""
    pipe = flux()
    config = {name: value for name, value in pipe.transformer.config.items() if not name.startswith("_")}
    controlnet = FluxControlNetModel(**{name: config[name] for name in config if name not in ("out_channels",)})
    return quiet(FluxControlNetPipeline(**pipe.components, controlnet=controlnet))


CASES = {
    **{name: FAMILIES[name] for name in FAMILIES if name not in ("sd", "sdxl", "sd3", "flux", "modular-sdxl")},
    "size of the image": (
        lambda: quiet(StableDiffusion3Img2ImgPipeline(**sd3().components)),
        {"image": picture(24), "strength": 1.0, "height": 16, "width": 24, "guidance_scale": 5.0},
    ),
    "size of the control image": (
        flux_controlnet,
        {"control_image": picture(32), "height": 16, "width": 16, "max_sequence_length": 16},
    ),
}


def case_of(family, prompts=PROMPTS, **more):
    make, call = CASES.get(family) or FAMILIES[family]
    pipe = make()
    reward.takes_videos = makes_videos(pipe)
    arguments = {"prompt": list(prompts), "num_inference_steps": STEPS, **call, **more}
    if "negative_prompt" in arguments:
        arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(prompts)
    return (modular_case if is_modular(pipe) else plain_case)(pipe, arguments)


@pytest.fixture
def replays(monkeypatch):
    """All replays that are made."""
    made = []
    inner = Replay.__init__

    @functools.wraps(inner)
    def init(self, *args, **kwargs):
        inner(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(Replay, "__init__", init)
    return made


def first_event(replays, look, found):
    def on_event(event):
        if not found and not event.final:
            found.append(look(replays[-1]))

    return on_event


@pytest.mark.parametrize("family", CASES)
def test_images_are_what_the_pipeline_makes_of_its_last_latents(family, replays):
    case, rows = case_of(family), generators(0, 1)
    with recorded_steps(case) as steps:
        images = in_slots(steered(case, WATCHING, rows)).flatten(0, 1)
    last, which, found = steps[-1].previous, torch.tensor([4, 0, 5]), []
    assert len(last) == 6
    on_event = first_event(replays, lambda replay: replay.images(last[which], which), found)
    again = in_slots(steered(case, WATCHING, generators(0, 1), on_event=on_event)).flatten(0, 1)
    torch.testing.assert_close(found[0], images[which], atol=2e-3, rtol=0.0)
    assert torch.equal(again, images)
    assert (images[4] - images[0]).abs().max() > 0.05

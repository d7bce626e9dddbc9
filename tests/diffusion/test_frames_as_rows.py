"""Frames of videos: those that a control network is given one after another, and those that condition a video."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fk_steer.diffusion.batches import run_on_live_rows
from fk_steer.diffusion.components import conditions_of_all
from fk_steer.diffusion.inputs import Way, ways_of
from fk_steer.diffusion.layout import learned_layout
from fk_steer.diffusion.ranks import Ranks
from fk_steer.diffusion.rows import Rows


FRAMES, SLOTS = 2, 3


def network(sample, controlnet_cond):
    return (sample + controlnet_cond, -sample)


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("size", [None, 1, 2])
def test_frames_stay_with_their_video_when_others_are_dropped(copies, size):
    rows = Rows(1, SLOTS)
    rows.move(torch.tensor([[1, 2]]), torch.tensor([[1, 2]]))
    sample = torch.arange(float(copies * SLOTS * FRAMES)).view(-1, 1)
    condition = 100 * sample

    def layout_of(arguments, copies):
        one = {name: value[: copies * FRAMES] for name, value in arguments.items()}
        return learned_layout(one, arguments, SLOTS, copies)

    (first, second), number, found = run_on_live_rows(
        network,
        rows,
        Ranks(False, torch.device("cpu")),
        ["sample", "controlnet_cond"],
        size,
        (sample,),
        {"controlnet_cond": condition},
        layout_of,
        size_of_row=FRAMES,
    )
    assert (number, found) == (2 * copies, copies)
    for output, expected in ((first, sample + condition), (second, -sample)):
        by_row = output.view(copies, SLOTS, FRAMES)
        assert torch.equal(by_row[:, 1:], expected.view(copies, SLOTS, FRAMES)[:, 1:])


def test_conditions_of_one_video_are_for_all():
    frames = torch.arange(2.0).view(2, 1)
    guided = torch.cat([frames, frames])
    assert conditions_of_all(guided, 3, 12).flatten().tolist() == [0.0, 1.0] * 6
    assert conditions_of_all(frames, 3, 6).flatten().tolist() == [0.0, 1.0] * 3
    several = conditions_of_all([frames, 2 * frames], 3, 6)
    assert [one.shape for one in several] == [(6, 1), (6, 1)]


@pytest.mark.parametrize(("rows", "size"), [(6, 6), (1, 4), (4, 8)])
def test_conditions_of_another_size_are_left_alone(rows, size):
    conditions = torch.zeros(rows, 1)
    assert conditions_of_all(conditions, 3, size) is conditions


class Pipeline:
    def __call__(self, prompt, conditioning_frames=None, video=None, image=None, images=None, num_videos_per_prompt=1):
        pass


@pytest.mark.parametrize("name", ["conditioning_frames", "video", "images"])
def test_as_many_frames_as_prompts_are_one_video(name):
    frames = [Image.fromarray(np.full((4, 4, 3), value, np.uint8)) for value in (0, 255)]
    arguments = {"prompt": ["a", "b"], name: frames}
    texts = Way("texts").arguments(Pipeline(), arguments, 2, [0, 0, 1, 1])
    assert texts == {"prompt": ["a", "a", "b", "b"], name: frames}
    everything = Way("everything").arguments(Pipeline(), arguments, 2, [0, 1])
    assert everything[name] == [frames, frames]
    assert ways_of(Pipeline(), arguments, 2)[0].repeats == "everything"


def test_an_image_per_prompt_goes_with_its_prompt():
    images = [Image.new("RGB", (4, 4), colour) for colour in ("black", "white")]
    asked = Way("texts").arguments(Pipeline(), {"prompt": ["a", "b"], "image": images}, 2, [0, 0, 1])
    assert asked["image"] == [images[0], images[0], images[1]]


def test_several_images_per_prompt_go_with_their_prompt():
    one, two = ([Image.new("RGB", (4, 4), colour)] * 2 for colour in ("black", "white"))
    asked = Way("everything").arguments(Pipeline(), {"prompt": ["a", "b"], "images": [one, two]}, 2, [0, 0, 1])
    assert asked["images"] == [one, one, two]

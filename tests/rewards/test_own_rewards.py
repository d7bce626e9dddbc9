"""Rewards of others: functions, classes, an installed package. docs/rewards.md shows the same."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Sequence

import pytest
import torch

from fk_steer import FKSteering, steer
from fk_steer.rewards import Cascade, Clipped, Reward, WeightedSum, as_pil
from fk_steer.shapes import load_pipeline


PROMPT = "a photo of a red star"


def brightness(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    return images.mean((1, 2, 3))


class Redness:
    name = "redness"
    default_lmbda = 10.0

    def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


class Rank(Reward):
    """The brightest particle of a prompt gets the highest reward."""

    default_lmbda = 2.0
    relative = True

    def encode(self, images, prompts):
        return images.mean((1, 2, 3)).tolist()

    def of_particles(self, encodings, members, prompts):
        shades = [torch.tensor([encodings[i] for i in group]) for group in members]
        return [values.argsort().argsort() / len(values) for values in shades]


def steered(reward, **settings):
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    call = steer(pipe, reward, FKSteering.preset("fk", num_particles=3, seed=0, **settings))
    return call(PROMPT, num_inference_steps=4, generator=generator, output_type="pt")


def test_a_function():
    output = steered(brightness, lmbda=20.0)
    expected = brightness(output.particles[0], [PROMPT] * 3)
    torch.testing.assert_close(output.rewards[0].float(), expected.float(), atol=2e-3, rtol=0)
    assert output.trace.reward == "brightness"


def test_a_class():
    output = steered(Redness())
    assert output.trace.reward == "redness"
    assert output.trace.events[-1].lmbda == [10.0]


def test_a_function_of_pil_images():
    def colours(pictures, prompts):
        return [len(picture.getcolors(10**6)) / 100 for picture in pictures]

    output = steered(as_pil(colours), lmbda=1.0)
    expected = as_pil(colours)(output.particles[0], [PROMPT] * 3)
    torch.testing.assert_close(output.rewards[0].float(), expected)
    assert output.trace.reward == "colours"


def test_a_class_that_sees_all_particles():
    output = steered(Rank())
    assert output.rewards[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0.0])
    means = output.particles[0].mean((1, 2, 3))
    assert (means.diff() <= 0).all()
    assert output.trace.events[-1].lmbda == [2.0]


def test_rewards_inside_rewards():
    """Each leaf on record, each scored once, a cascade switching where it stands."""
    nested = WeightedSum({Cascade(brightness, Rank()): 1.0, Clipped(Redness(), high=0.0): 3.0, brightness: 0.5})
    output = steered(nested, lmbda=1.0)
    first, last = output.trace.events[0], output.trace.events[-1]
    assert list(first.scores) == ["brightness", "redness"] and list(last.scores) == ["Rank", "redness", "brightness"]
    images = output.particles[0]
    torch.testing.assert_close(output.rewards[0].float(), nested(images, [PROMPT] * 3), atol=2e-3, rtol=0)


@pytest.fixture
def installed(tmp_path):
    """A folder as pip leaves it: a module and the metadata of the package it came from."""
    (tmp_path / "warm_colours.py").write_text(
        textwrap.dedent('''
            """A reward for warm colours."""
            import torch


            class WarmColours:
                """How much warmer than cold an image is.

                Args:
                    weight: of the blue channel.
                """

                name = "warm-colours"
                default_lmbda = 5.0

                def __init__(self, weight: float = 1.0) -> None:
                    self.weight = weight

                def __call__(self, images, prompts):
                    if not isinstance(images, torch.Tensor):
                        import numpy as np

                        arrays = [np.array(image.convert("RGB")) for image in images]
                        images = torch.stack([torch.from_numpy(array).permute(2, 0, 1) / 255 for array in arrays])
                    return (images[:, 0] - self.weight * images[:, 2]).mean((1, 2))
        ''')
    )
    info = tmp_path / "warm_colours-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: warm-colours\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fk_steer.rewards]\nwarm-colours = warm_colours:WarmColours\n")
    (info / "RECORD").write_text("")
    return tmp_path


def test_an_installed_package(installed, tmp_path, monkeypatch):
    """In a process of its own, through the command line: listed, described, scored with, with an option."""
    from PIL import Image

    Image.new("RGB", (8, 8), (255, 0, 51)).save(tmp_path / "warm.png")
    monkeypatch.setenv("PYTHONPATH", str(installed))
    scoring = [
        "score", str(tmp_path / "warm.png"), "--prompt", "", "--reward", "warm-colours",
        "--reward-option", "warm-colours:weight=0.5", "--json",
    ]  # fmt: skip
    code = f"""
from fk_steer.cli import app
app(["rewards", "show", "warm-colours"], standalone_mode=False)
app({scoring!r}, standalone_mode=False)
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "How much warmer than cold an image is." in output
    (result,) = json.loads(output[output.index("{") :])["results"]
    assert result["scores"]["warm-colours"] == pytest.approx(1.0 - 0.5 * 0.2)


def test_an_installed_package_in_python(installed, monkeypatch):
    monkeypatch.syspath_prepend(str(installed))
    from fk_steer import load_reward
    from fk_steer.rewards import available_rewards

    assert "warm-colours" in available_rewards()
    reward = load_reward("warm-colours", weight=2.0)
    assert reward(torch.ones(2, 3, 4, 4), ["", ""]).tolist() == [-1.0, -1.0]
    with pytest.raises(ValueError, match="'warm-colours' has no option 'wait'. It takes: weight"):
        load_reward("warm-colours", wait=1)
    assert steered(reward).trace.reward == "warm-colours"

"""`fk-steer generate` with a pipeline of videos, and what shows its results."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from typer.testing import CliRunner

from fk_steer import FrameReward, Trace, load_reward, steer
from fk_steer.cli import app
from fk_steer.files import webp
from fk_steer.report.results import Picture, Result
from fk_steer.report.sheet import contact_sheet
from fk_steer.search import preset
from fk_steer.testing import save_clip
from fk_steer.testing.tiny import wan


CALL = {"num_inference_steps": 2, "height": 32, "width": 48, "num_frames": 5, "output_type": "pil"}


def frames_of(content):
    with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    wan().save_pretrained(folder / "wan")
    save_clip(folder / "clip")
    return folder


def generate(folder, *arguments):
    given = ["generate", "a red circle", "--model", folder / "wan", "--reward-option", f"path={folder / 'clip'}"]
    options = {"steps": 2, "height": 32, "width": 48, "frames": 5, "particles": 2, "device": "cpu", "preset": "fk"}
    given += [part for name, value in options.items() for part in (f"--{name}", value)]
    return CliRunner().invoke(app, [str(part) for part in (*given, "--out", folder / "out", *arguments)])


def test_generate(folder):
    result = generate(folder, "--compare")
    assert result.exit_code == 0, result.output
    names = {path.name for path in (folder / "out" / "000").iterdir()}
    assert names == {"lineage.png", *(f"{run}{name}" for run in ("", "unsteered-") for name in FILES)}
    trace = Trace.load(folder / "out" / "000" / "trace.json")
    # The same as the Python call, every pixel of every frame.
    reward = FrameReward(load_reward("clip-score", path=str(folder / "clip")))
    steering = preset("fk", num_particles=2)
    output = steer(wan(), reward, steering)("a red circle", generator=torch.Generator().manual_seed(0), **CALL,
                                            guidance_scale=7.5)  # fmt: skip
    assert trace.events[-1].rewards[0] == pytest.approx(output.trace.events[-1].rewards[0], abs=1e-5)
    for rank, video in enumerate(output.particles[0]):
        saved = frames_of(folder / "out" / "000" / f"{rank:02d}.webp")
        assert np.array_equal(saved, [np.asarray(frame) for frame in video])
    page = (folder / "out" / "report.html").read_text()
    shown = re.findall(r'<a href="000/[^>]*><img src="data:image/webp;base64,([^"]+)"', page)
    assert [len(frames_of(base64.b64decode(content))) for content in shown] == [5] * 4
    sheet = Image.open(folder / "out" / "contact_sheet.png")
    assert sheet.width > 4 * 4 * 96

    again = generate(folder, "--compare")
    assert again.exit_code == 0
    assert "a red circle" not in again.output, "nothing is made again"
    broken = folder / "out" / "000" / "00.webp"
    broken.write_bytes(broken.read_bytes()[:-40])
    refused = generate(folder, "--compare")
    assert refused.exit_code == 1
    assert "no whole WebP image" in refused.output.replace("\n", " ")


FILES = ("00.webp", "01.webp", "trace.json")


def test_bench_refuses_videos(folder):
    prompts = folder / "prompts.txt"
    prompts.write_text("a red circle\n")
    given = ["bench", "run", "--prompts", prompts, "--model", folder / "wan", "--out", folder / "bench"]
    given += ["--reward", "clip-score", "--reward-option", f"path={folder / 'clip'}", "--device", "cpu"]
    result = CliRunner().invoke(app, [str(part) for part in given])
    assert result.exit_code == 1
    assert "WanPipeline gives videos" in result.output.replace("\n", " ")


def test_a_strip_of_frames_from_the_first_to_the_last():
    shades = [Image.new("RGB", (30, 20), (level, 0, 0)) for level in range(10, 80, 10)]
    video = Picture(shades[0], 0.5, frames=tuple(shades))
    still = Picture(Image.new("RGB", (30, 20), (0, 255, 0)), 0.5)
    trace = Trace(["a"], "r", {})
    sheet = contact_sheet([Result("a", [video], [], trace), Result("b", [still], [], trace)], 90)
    colours = {colour: count for count, colour in sheet.getcolors(1 << 20)}
    assert [colours.get((level, 0, 0), 0) for level in range(10, 80, 10)] == [2400, 0, 2400, 0, 2400, 0, 2400]
    assert colours[(0, 255, 0)] == 90 * 60


def test_every_pixel_of_every_frame_is_kept():
    frames = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3)).astype(np.uint8)
    assert np.array_equal(frames_of(webp([Image.fromarray(frame) for frame in frames], 8)), frames)

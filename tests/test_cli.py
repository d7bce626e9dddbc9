from __future__ import annotations

import json

import pytest
import torch
import typer
from diffusers import AutoencoderKL, UniPCMultistepScheduler
from PIL import Image
from typer.testing import CliRunner

from fk_steer import FKSteering, Trace, load_reward
from fk_steer.cli import app
from fk_steer.diffusion.generators import particle_generators
from fk_steer.pipelines import FKStableDiffusionPipeline
from fk_steer.testing import PROMPTS, save_clip, sd, sd_scheduler, sdxl
from llava_reward_guide.cli import app as llava_reward
from llava_reward_guide.data.__main__ import app as data
from llava_reward_guide.train import app as train


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    sd().save_pretrained(folder / "sd")
    sdxl().save_pretrained(folder / "sdxl")
    sdxl(sd_scheduler("epsilon", UniPCMultistepScheduler)).save_pretrained(folder / "sdxl-unipc")
    save_clip(folder / "clip")
    return folder


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def generate(models, out, *arguments, model="sd"):
    return invoke(
        "generate", *PROMPTS, "--model", models / model, "--reward-option", f"path={models / 'clip'}", "--out", out,
        "--steps", 6, "--particles", 3, "--device", "cpu", *arguments,
    )  # fmt: skip


def test_generate(models, tmp_path):
    result = generate(models, tmp_path, "--lmbda", 50, "--seed", 3)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "000").iterdir()) == [
        "00.png", "01.png", "02.png", "lineage.png", "trace.json",
    ]  # fmt: skip
    trace = Trace.load(tmp_path / "001" / "trace.json")
    assert trace.prompts == [PROMPTS[1]]
    assert trace.steering["lmbda"] == 50
    assert trace.num_steps == 6
    assert "ESS" in result.output
    assert "NFE" in result.output
    # The same as the Python call, best first.
    reward = load_reward("clip-score", path=str(models / "clip"))
    pipe = FKStableDiffusionPipeline.from_pretrained(models / "sd")
    output = pipe(
        PROMPTS[0],
        reward=reward,
        steering=FKSteering(num_particles=3, lmbda=50.0),
        num_inference_steps=6,
        guidance_scale=7.5,
        generator=torch.Generator().manual_seed(3),
    )
    for rank, image in enumerate(output.images):
        assert image.tobytes() == Image.open(tmp_path / "000" / f"{rank:02d}.png").tobytes()
    assert Image.open(tmp_path / "contact_sheet.png").size[0] > 3 * 144
    report = (tmp_path / "report.html").read_text()
    assert all(prompt in report for prompt in PROMPTS)
    assert report.count("<img") == 2 * (3 + 1)
    assert "http" not in report


def test_compare(models, tmp_path):
    result = generate(models, tmp_path, "--compare", "--seed", 1)
    assert result.exit_code == 0, result.output
    report = (tmp_path / "report.html").read_text()
    assert report.count("<img") == 2 * (3 + 3 + 1)
    assert "best image without steering" in report
    # The stock pipeline from the same noise, whatever the reward makes of it.
    trace = Trace.load(tmp_path / "000" / "unsteered-trace.json")
    assert [event.step for event in trace.events] == [6]
    pipe = FKStableDiffusionPipeline.from_pretrained(models / "sd")
    generators, _ = particle_generators(torch.Generator().manual_seed(1), None, PROMPTS[:1], 1, 3)
    stock = pipe(PROMPTS[0], num_images_per_prompt=3, generator=generators, num_inference_steps=6).images
    saved = {Image.open(tmp_path / "000" / f"unsteered-{rank:02d}.png").tobytes() for rank in range(3)}
    assert saved == {image.tobytes() for image in stock}


def test_running_again(models, tmp_path):
    assert generate(models, tmp_path).exit_code == 0
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*/*")}
    again = generate(models, tmp_path)
    assert again.exit_code == 0
    assert "ESS" not in again.output
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*/*")} == stamps
    # An interrupted prompt is done again, and nothing else.
    before = (tmp_path / "000" / "00.png").read_bytes()
    (tmp_path / "000" / "trace.json").unlink()
    resumed = generate(models, tmp_path)
    assert PROMPTS[0] in resumed.output
    assert PROMPTS[1] not in resumed.output
    assert (tmp_path / "000" / "00.png").read_bytes() == before
    refused = generate(models, tmp_path, "--guidance", 3)
    assert refused.exit_code == 1
    assert "another `guidance` (guidance: 7.5 -> 3.0)" in refused.stderr


def test_samplers(models, tmp_path):
    """Euler's noise is switched on; a sampler that has none is replaced, with a note, unless nothing needs it."""
    result = generate(models, tmp_path / "euler", model="sdxl")
    assert result.exit_code == 0, result.output
    assert "adds no noise" not in result.output
    result = generate(models, tmp_path / "unipc", model="sdxl-unipc")
    assert result.exit_code == 0, result.output
    assert "UniPCMultistepScheduler adds no noise" in result.output
    result = generate(models, tmp_path / "chosen", "--scheduler", "DPMSolverMultistepScheduler", model="sdxl-unipc")
    assert result.exit_code == 0, result.output
    assert "adds no noise" not in result.output
    result = generate(models, tmp_path / "psp", "--preset", "psp", "--particles", 4, model="sdxl-unipc")
    assert result.exit_code == 0, result.output
    assert "adds no noise" not in result.output
    assert not (tmp_path / "psp" / "000" / "01.png").exists()


def test_batch_size_is_no_setting_of_a_run(models, tmp_path, monkeypatch):
    sizes, decode = [], AutoencoderKL.decode

    def recorded(self, z, *args, **kwargs):
        sizes.append(len(z))
        return decode(self, z, *args, **kwargs)

    monkeypatch.setattr(AutoencoderKL, "decode", recorded)
    assert generate(models, tmp_path, "--batch-size", 2).exit_code == 0
    assert max(sizes) == 2
    assert not any("batch_size" in name for name in json.loads((tmp_path / "settings.json").read_text())["steering"])
    # Taken up again, after memory was short for instance, it makes what is missing.
    before = (tmp_path / "001" / "00.png").read_bytes()
    for name in ("trace.json", "00.png"):
        (tmp_path / "001" / name).unlink()
    sizes.clear()
    result = generate(models, tmp_path, "--batch-size", 1)
    assert result.exit_code == 0, result.stderr
    assert set(sizes) == {1}
    assert (tmp_path / "001" / "00.png").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "nope"], "Unknown preset 'nope'. Known: adaptive, "),
        (["--reward", "nope"], "Unknown reward 'nope'. Known: aesthetic, clip-score"),
        (["--particles", 0], "`num_particles` to be an integer of at least 1"),
        (["--reward-option", "base_url=http://user:secret@127.0.0.1/v1"], "`base_url` without a user and password"),
        (["--lmbda", "nan"], "`lmbda` to be None or finite"),
        (["--scheduler", "Nope"], "Unknown scheduler 'Nope'"),
        (["--reward-option", "path"], "KEY=VALUE, but got 'path'"),
        (["--reward-option", "variant=huge"], "Unknown variant 'huge'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_folder(models, tmp_path, arguments, message):
    result = generate(models, tmp_path / "out", *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_missing_model(models, tmp_path):
    result = generate(models, tmp_path / "out", model="nowhere")
    assert result.exit_code == 1
    assert "nowhere" in result.stderr


def test_rewards():
    result = invoke("rewards")
    assert result.exit_code == 0
    assert "clip-score" in result.output


def test_presets():
    result = invoke("presets")
    assert result.exit_code == 0
    assert all(name in result.output for name in ("fk-paper", "psp", "best-of-n"))
    paper = json.loads(invoke("presets", "fk-paper").output)
    assert FKSteering.from_dict(paper) == FKSteering.preset("fk-paper")
    assert "Unknown preset" in invoke("presets", "nope").stderr


def commands(command, names=()):
    """All commands below one, as the words that call them."""
    yield names
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*names, name))


PROGRAMS = {"fk-steer": app, "llava-reward": llava_reward, "train": train, "data": data}


@pytest.mark.parametrize(
    ("program", "words"),
    [(name, words) for name, program in PROGRAMS.items() for words in commands(typer.main.get_command(program))],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_every_command_explains_itself(program, words):
    # As on a terminal, where markup in a text is read.
    result = CliRunner().invoke(PROGRAMS[program], [*words, "--help"], color=True)
    assert result.exit_code == 0, result.exception
    assert "Usage:" in result.output

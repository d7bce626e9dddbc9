"""The trained models that ship with the package."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from typer.testing import CliRunner

from fk_steer import FKSteering, load_reward, steer
from fk_steer.benchmarks.speed import record
from fk_steer.cli import app
from fk_steer.loading import load_preview
from fk_steer.rewards.images import to_uint8
from fk_steer.shapes import BUNDLED, GUIDANCE_SCALE, WEIGHTS, load_pipeline, resolve
from fk_steer.shapes.artefacts import ON_PIXELS, spoil
from fk_steer.shapes.captions import detections_of, evaluation_prompts, is_true, parse, sample_pair
from fk_steer.shapes.oracle import judge
from fk_steer.shapes.train_clip import edit, pixels_of
from fk_steer.shapes.world import SHAPES, render


# Of 25, as few as images still come out right with.
STEPS = 10


@pytest.fixture(scope="module", params=BUNDLED)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def pipe(name):
    pipe = load_pipeline(name)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def invoke(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


def test_all_weights_are_small_safetensors_in_half_precision():
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40e6
    assert {path.suffix for path in files} <= {".safetensors", ".json"}


def test_loads_as_a_stock_pipeline_in_full_precision(name):
    pipe = DiffusionPipeline.from_pretrained(resolve(name))
    assert type(pipe) is (StableDiffusionXLPipeline if name == "shapes-xl" else StableDiffusionPipeline)
    modules = [module for module in pipe.components.values() if isinstance(module, torch.nn.Module)]
    assert {parameter.dtype for module in modules for parameter in module.parameters()} == {torch.float32}
    assert pipe.scheduler.config.prediction_type == ("epsilon" if name == "shapes-xl" else "v_prediction")
    assert pipe.scheduler.config.beta_schedule == "scaled_linear"


def test_draws_what_it_is_asked_for(pipe):
    """32 images of one object; far more than half are right when measured on more of them, see the README."""
    prompts = [f"a photo of a {shape}" for shape in SHAPES for _ in range(4)]
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    images = pipe(
        prompts,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
        generator=generators,
        output_type="pt",
    ).images
    right = [judge(image, prompt).correct for image, prompt in zip(to_uint8(images, "cpu"), prompts)]
    assert np.mean(right) > 0.5


def test_steering_raises_reward_and_correctness(pipe):
    prompts = [f"a photo of a {colour} {shape}" for shape in ("star", "moon") for colour in ("red", "green", "orange")]
    reward = load_reward("clip-score", path="shapes")

    def mean_best(steering: str, particles: int):
        output = pipe(
            prompts,
            reward=reward,
            steering=steering,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE_SCALE,
            generator=torch.Generator().manual_seed(0),
        )
        return output.rewards[:, :particles].mean().item()

    # The mean over four independent particles is that of one, over more draws.
    assert mean_best("fk", 1) > mean_best("best-of-n", 4)


@pytest.mark.parametrize("clip", ["shapes", "shapes-held-out"])
def test_clip_prefers_true_captions(clip):
    rng = np.random.default_rng(20_000_000)
    own, edited, images = [], [], []
    while len(images) < 200:
        scene, text = sample_pair(rng)
        line = edit(parse(text), rng)
        if not is_true(line, detections_of(scene)):
            own.append(text)
            edited.append(line["prompt"])
            images.append(render(scene))
    reward = load_reward("clip-score", path=clip)
    pixels = pixels_of(images)
    assert (reward(pixels, own) > reward(pixels, edited)).float().mean() > 0.8


def test_generate(name, tmp_path):
    arguments = (
        "generate",
        "a photo of three red stars",
        "--model",
        name,
        "--steps",
        6,
        "--compare",
        "--out",
        tmp_path,
    )
    assert "ESS" in invoke(*arguments).output
    assert "without steering" in (tmp_path / "report.html").read_text()
    stamp = (tmp_path / "000" / "00.png").stat().st_mtime_ns
    assert "ESS" not in invoke(*arguments).output
    assert (tmp_path / "000" / "00.png").stat().st_mtime_ns == stamp


# Processes of its own import everything first.
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_benchmark(name, tmp_path, processes):
    arguments = (
        "bench", "shapes", "--model", name, "--preset", "best-of-n:1", "--preset", "psp:4", "--steps", 4, "--seeds", 2,
        "--per-task", 1, "--processes", processes, "--out", tmp_path,
    )  # fmt: skip
    invoke(*arguments)
    table = json.loads((tmp_path / "table.json").read_text())
    assert list(table) == ["best-of-n, k = 1", "psp, k = 4"]
    assert table["best-of-n, k = 1"]["nfe"][0] == 2 * 4
    assert table["psp, k = 4"]["nfe"][0] == 2 * (4 * 1 + 2 * 1 + 1 * 2)
    records = [record for path in (tmp_path / "psp-4" / "records").iterdir() for record in json.loads(path.read_text())]
    assert len(records) == 12
    assert table["psp, k = 4"]["overall"][0] == pytest.approx(100 * np.mean([record["correct"] for record in records]))
    assert (tmp_path / "table.md").read_text().count("\n") == 4
    assert len(list(csv.reader((tmp_path / "table.csv").open()))) == 3
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    invoke(*arguments)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == before
    assert json.loads((tmp_path / "table.json").read_text()) == table


def test_compute(tmp_path):
    arguments = (
        "bench", "compute", "--preset", "best-of-n", "--preset", "psp", "--budget", 1, "--budget", 2, "--steps", 8,
        "--seeds", 1, "--per-task", 1, "--out", tmp_path,
    )  # fmt: skip
    invoke(*arguments)
    table = json.loads((tmp_path / "table.json").read_text())
    assert list(table) == ["best-of-n@1", "psp@1", "best-of-n@2", "psp@2"]
    assert [row["nfe"][0] / (2 * 8) for row in table.values()] == [1, 1, 2, 2]
    differences = json.loads((tmp_path / "differences.json").read_text())
    for measure in ("overall", "reward", "held out", "oracle"):
        expected = table["psp@2"][measure][0] - table["best-of-n@2"][measure][0]
        assert differences["psp@2"][f"{measure} - best-of-n"][0] == pytest.approx(expected)
    # One particle and nothing to choose from: the same run.
    assert differences["psp@1"]["reward - best-of-n"] == [0.0, 0.0]
    assert (tmp_path / "compute.png").stat().st_size > 10_000
    timing = tmp_path / "idle.json"
    timing.write_text(json.dumps({name: {"seconds": [0.125 * (1 + n), None]} for n, name in enumerate(table)}))
    invoke(*arguments, "--timing", timing)
    timed = json.loads((tmp_path / "table.json").read_text())
    assert [row["seconds"][0] for row in timed.values()] == [0.125, 0.25, 0.375, 0.5]
    assert timed["psp@2"]["reward"] == table["psp@2"]["reward"]


@pytest.mark.parametrize("previews", [False, True])
def test_the_floor_does_the_same_work(pipe, name, previews):
    reward = load_reward("clip-score", path="shapes")
    decoder = load_preview(name, pipe) if previews else None
    settings = FKSteering.preset("psp", lmbda=20.0, preview_decoder=decoder)
    call = {"num_inference_steps": 8, "guidance_scale": 3.0}
    prompts = ["a photo of two stars", "a photo of a red moon"]
    rows = {"denoiser": 0, "decode": 0, "reward": 0}
    for function, args, _ in record(pipe, reward, settings, prompts, **call).calls:
        owner = getattr(function, "__self__", None)
        decodes = owner is not None and owner in (pipe.vae, decoder)
        rows["denoiser" if owner is pipe.unet else "decode" if decodes else "reward"] += len(args[0])
    trace = steer(pipe, reward, settings)(prompts, **call).trace
    assert rows == {"denoiser": trace.nfe, "decode": trace.reward_calls, "reward": trace.reward_calls}


def test_previews_are_loaded_once(pipe, name):
    decoder = load_preview(name, pipe)
    assert load_preview(name, pipe) is decoder
    assert load_preview(name, load_pipeline(name)) is not decoder


def test_preview(tmp_path):
    arguments = ("--steps", 6, "--images", 3, "--prompt", "a photo of a red star", "--prompt", "a photo of two moons")
    invoke("bench", "preview", *arguments, "--out", tmp_path / "preview.json")
    rows = json.loads((tmp_path / "preview.json").read_text())["rows"]
    assert [row["progress"] for row in rows] == [0.25, 0.4, 0.55, 0.7, 0.85, 1.0]
    assert all(-1.0 <= row["within"] <= 1.0 and row["speed-up"] > 0 for row in rows)
    # Two prompts apart are told apart by previews too.
    assert rows[-1]["pooled"] > 0.3


# Peak memory takes a run with 64 particles.
@pytest.mark.parametrize("memory", ["--no-memory", pytest.param("--memory", marks=pytest.mark.slow)])
def test_speed(tmp_path, monkeypatch, memory):
    sizes, decode = set(), AutoencoderKL.decode

    def recorded(self, z, *args, **kwargs):
        sizes.add(len(z))
        return decode(self, z, *args, **kwargs)

    monkeypatch.setattr(AutoencoderKL, "decode", recorded)
    arguments = ("--steps", 4, "--repeats", 1, "--prompts", 2, "--decode-batch-size", 3, memory)
    assert "overhead" in invoke("bench", "speed", *arguments, "--out", tmp_path / "speed.json").output
    measured = json.loads((tmp_path / "speed.json").read_text())
    assert {way: len(seconds) for way, seconds in measured["seconds"].items()} == {
        "steered": 1, "floor": 1, "straight-through": 1,
    }  # fmt: skip
    assert -1.0 < measured["reward"]["straight-through"] < 1.0
    # Nothing else decodes three at a time.
    assert 3 in sizes
    assert bool(measured["peak bytes"]) == (memory == "--memory")


class TestImageReward:
    @pytest.fixture(scope="class")
    def reward(self):
        return load_reward("image-reward", path="shapes", device="cpu")

    def test_prefers_true_captions(self, reward):
        rng = np.random.default_rng(20_000_001)
        own, edited, images = [], [], []
        while len(images) < 100:
            scene, text = sample_pair(rng)
            line = edit(parse(text), rng)
            if not is_true(line, detections_of(scene)):
                own.append(text)
                edited.append(line["prompt"])
                images.append(render(scene))
        pixels = pixels_of(images)
        assert (reward(pixels, own) > reward(pixels, edited)).float().mean() > 0.8

    @pytest.mark.xfail(strict=True, reason="overall labels say little of artefacts: 56% on held-out fidelity pairs")
    def test_prefers_clean_images(self, reward):
        scenes = [sample_pair(np.random.default_rng([20_000_002, number])) for number in range(50)]
        texts = [text for _, text in scenes]
        originals = [render(scene) for scene, _ in scenes]
        for kind in ON_PIXELS:
            worse = [spoil(image, kind, 1.0, number) for number, image in enumerate(originals)]
            better = reward(pixels_of(originals), texts) > reward(pixels_of(worse), texts)
            assert better.float().mean() > 0.7, kind

    def test_batches_change_nothing(self, reward):
        pairs = [sample_pair(np.random.default_rng([20_000_003, number])) for number in range(12)]
        pixels, texts = pixels_of([render(scene) for scene, _ in pairs]), [text for _, text in pairs]
        alone = torch.cat([reward(pixels[i : i + 1], texts[i : i + 1]) for i in range(12)])
        torch.testing.assert_close(reward(pixels, texts), alone, atol=1e-5, rtol=1e-5)

    def test_unit_scale_on_samples(self, reward, pipe):
        prompts = [line["prompt"] for line in evaluation_prompts(4)]
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
        images = pipe(
            prompts,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE_SCALE,
            generator=generators,
            output_type="pt",
        ).images
        assert 0.5 < reward(images, prompts).std().item() < 2.0

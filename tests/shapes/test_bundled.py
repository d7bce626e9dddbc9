"""The trained models that ship with the package."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from typer.testing import CliRunner

from fk_steer import load_reward
from fk_steer.cli import app
from fk_steer.loading import load_preview
from fk_steer.rewards.images import to_uint8
from fk_steer.shapes import BUNDLED, GUIDANCE_SCALE, WEIGHTS, load_pipeline, resolve, shared_components
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
    pipe = DiffusionPipeline.from_pretrained(resolve(name), **shared_components(name))
    assert type(pipe) is (StableDiffusionXLPipeline if name == "shapes-xl" else StableDiffusionPipeline)
    modules = [module for module in pipe.components.values() if isinstance(module, torch.nn.Module)]
    assert {parameter.dtype for module in modules for parameter in module.parameters()} == {torch.float32}
    assert pipe.scheduler.config.prediction_type == ("epsilon" if name == "shapes-xl" else "v_prediction")
    assert pipe.scheduler.config.beta_schedule == "scaled_linear"


def test_nothing_is_stored_twice():
    large = [path for path in WEIGHTS.rglob("*") if path.is_file() and path.stat().st_size > 100_000]
    assert len({hashlib.sha256(path.read_bytes()).hexdigest() for path in large}) == len(large)


def test_as_a_custom_pipeline(name, pipe):
    file = {"shapes": "fk_stable_diffusion.py", "shapes-xl": "fk_stable_diffusion_xl.py"}[name]
    custom = str(REPOSITORY / "pipelines" / file)
    options = {"custom_pipeline": custom, "trust_remote_code": True}
    loaded = DiffusionPipeline.from_pretrained(resolve(name), **shared_components(name), **options)
    loaded.set_progress_bar_config(disable=True)
    call = {"prompt": "a photo of a red star", "num_inference_steps": 3, "output_type": "pt"}
    images = [one(**call, generator=torch.Generator().manual_seed(0)).images for one in (loaded, pipe)]
    assert torch.equal(*images)


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
    assert "best reward" in invoke(*arguments).output
    assert "without steering" in (tmp_path / "report.html").read_text()
    stamp = (tmp_path / "000" / "00.png").stat().st_mtime_ns
    assert "best reward" not in invoke(*arguments).output
    assert (tmp_path / "000" / "00.png").stat().st_mtime_ns == stamp


def test_previews_are_loaded_once(pipe, name):
    decoder = load_preview(name, pipe)
    assert load_preview(name, pipe) is decoder
    assert load_preview(name, load_pipeline(name)) is not decoder


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

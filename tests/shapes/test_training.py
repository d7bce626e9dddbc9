"""The training scripts from scratch for a few hundred small steps, and the loop they share."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file

from fk_steer import steer
from fk_steer.rewards import load_reward
from fk_steer.shapes import WEIGHTS, package, train_clip, train_tiny, train_unet, train_vae
from fk_steer.shapes.training import train, warmup_cosine


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_falls(folder: Path, name: str = "loss", by: float = 0.8) -> None:
    losses = [line[name] for line in log(folder)]
    assert losses[-1] < by * losses[0], losses


STEPS = {
    "one batch": {"clip": 60, "second clip": 2, "vae": 60, "preview": 60, "unet": 60, "sdxl": 60},
    "fresh batches": {"clip": 250, "second clip": 50, "vae": 200, "preview": 150, "unet": 200, "sdxl": 150},
}


@pytest.fixture(scope="module", params=["one batch", pytest.param("fresh batches", marks=pytest.mark.slow)])
def batches(request) -> Iterator[str]:
    """Whether each step has scenes of its own, or all the same few, which is learnt much faster."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "one batch":
            batch, scenes_at = train_clip.batch, train_vae.scenes_at
            patch.setattr(train_clip, "batch", lambda rng, *args: batch(np.random.default_rng(0), *args))
            for script in (train_vae, train_tiny):
                patch.setattr(script, "scenes_at", lambda seed, step, size: scenes_at(seed, 0, size))
        yield request.param


@pytest.fixture(scope="module")
def runs(batches, tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs")
    fresh, steps = batches == "fresh batches", STEPS[batches]
    train_clip.main(folder / "clip", steps=steps["clip"], batch_size=16 if fresh else 6)
    train_clip.main(folder / "clip2", steps=steps["second clip"], batch_size=8 if fresh else 2, second=True)
    train_vae.main(folder / "vae", steps=steps["vae"], batch_size=4 if fresh else 2)
    train_tiny.main(folder / "preview", folder / "vae" / "model", steps=steps["preview"], batch_size=4 if fresh else 2)
    return folder


def test_clip(runs, batches):
    one = batches == "one batch"
    assert_falls(runs / "clip", by=0.1 if one else 0.85)
    assert log(runs / "clip")[-1]["edits told apart"] > (0.95 if one else 0.55)
    reward = load_reward("clip-score", path=str(runs / "clip" / "model"))
    assert reward(torch.rand(2, 3, 64, 64), ["a photo of a red star", "a photo of two moons"]).shape == (2,)


def test_vae(runs):
    assert_falls(runs / "vae", "reconstruction", 0.6)


def test_preview_decoder(runs):
    assert_falls(runs / "preview", "decoding", 0.7)
    tiny = AutoencoderTiny.from_pretrained(runs / "preview" / "model")
    assert tiny.decode(torch.randn(2, 4, 8, 8)).sample.shape == (2, 3, 64, 64)
    assert tiny.encode(torch.rand(2, 3, 64, 64)).latents.shape == (2, 4, 8, 8)


@pytest.fixture(scope="module")
def unets(batches, runs) -> Path:
    """Both pipelines, next to what they are made of."""
    parts, steps = (runs / "clip" / "model", runs / "vae" / "model"), STEPS[batches]
    options = {"batch_size": 16, "scenes": 600, "ema": 0.98}
    if batches == "one batch":
        options = {"batch_size": 4, "scenes": 4, "ema": 0.98, "learning_rate": 2e-3}
    train_unet.main(runs / "sd", *parts, steps=steps["unet"], **options)
    (runs / "guide").symlink_to(runs / "clip")
    (runs / "judge").symlink_to(runs / "clip2")
    train_unet.main(runs / "sdxl", *parts, runs / "clip2" / "model", sdxl=True, steps=steps["sdxl"], **options)
    return runs


def test_unet(unets):
    assert_falls(unets / "sd")
    pipe = StableDiffusionPipeline.from_pretrained(unets / "sd" / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.float32}
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    steered = steer(pipe, lambda images, prompts: images.mean((1, 2, 3)), "adaptive")
    output = steered("a photo of a red star", num_inference_steps=6)
    assert output.images[0].size == (64, 64)


def test_unet_of_the_sdxl_twin(unets):
    assert_falls(unets / "sdxl")
    pipe = StableDiffusionXLPipeline.from_pretrained(unets / "sdxl" / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.scheduler.config.prediction_type == "epsilon"
    assert pipe("a photo of a red star", num_inference_steps=2).images[0].size == (64, 64)


def test_package(unets, tmp_path):
    # Their training is tested elsewhere.
    shipped = {"llava/backbone": "llava-reward/backbone", "image-reward/model": "image-reward"}
    shipped |= {f"llava-reward/{name}/final": f"llava-reward/{name}" for name in package.LLAVA_REWARDS}
    for run, folder in shipped.items():
        (unets / run).parent.mkdir(parents=True, exist_ok=True)
        (unets / run).symlink_to(WEIGHTS / folder)
    package.main(unets, tmp_path)
    layout = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert layout == {path.relative_to(WEIGHTS) for path in WEIGHTS.rglob("*") if path.is_file()}
    tensors = [load_file(path) for path in tmp_path.rglob("*.safetensors")]
    assert {tensor.dtype for some in tensors for tensor in some.values()} <= {torch.float16, torch.int64}
    assert not any(str(unets) in path.read_text() for path in tmp_path.rglob("*.json"))
    reward = load_reward("clip-score", path=str(tmp_path / "guide"), device="cpu")
    assert reward.model.dtype == torch.float32


def toy(out: Path, stop_at: int | None = None, stop=None) -> torch.nn.Module:
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 3)

    def loss_at(step):
        if step == stop_at:
            stop()
        x = torch.randn(8, 3)
        return (module(x) - x.flip(1)).square().mean(), {"at": float(step)}

    train(module, loss_at, steps=120, learning_rate=0.05, out=out, ema=0.9, warmup=10)
    return module


@pytest.mark.parametrize("how", ["error", "sigterm"])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path, how):
    def stop():
        if how == "error":
            raise RuntimeError("out of memory")
        os.kill(os.getpid(), signal.SIGTERM)

    expected = toy(tmp_path / "whole")
    with pytest.raises((RuntimeError, KeyboardInterrupt)):
        toy(tmp_path / "parts", 70, stop)
    resumed = toy(tmp_path / "parts")
    assert torch.equal(resumed.weight, expected.weight)
    assert [line["step"] for line in log(tmp_path / "parts")] == [50, 100, 120]


def test_a_finished_run_does_nothing(tmp_path):
    expected = toy(tmp_path)
    stamp = (tmp_path / "checkpoint.pt").stat().st_mtime_ns
    again = toy(tmp_path, 0, lambda: pytest.fail("a step was taken"))
    assert torch.equal(again.weight, expected.weight)
    assert (tmp_path / "checkpoint.pt").stat().st_mtime_ns == stamp


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    module = torch.nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match="nan at step 0"):
        train(module, lambda step: (module.weight.sum() * torch.nan, {}), steps=3, learning_rate=0.1, out=tmp_path)


def test_learning_rate():
    values = [warmup_cosine(step, 100, 10) for step in range(100)]
    assert values[0] == 0.1
    assert max(values) == values[9] == 1.0
    assert values[10:] == sorted(values[10:], reverse=True)
    assert values[-1] < 0.001

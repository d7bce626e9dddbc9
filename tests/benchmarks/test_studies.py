"""The studies behind our numbers, on the bundled models."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import typer
from diffusers import AutoencoderKL
from typer.testing import CliRunner

from benchmarks.compute import run as compute
from benchmarks.ensembles import run as ensembles
from benchmarks.preview import run as preview
from benchmarks.scaling import run as scaling
from benchmarks.shapes import run as shapes
from benchmarks.speed import run as speed
from fk_steer import Execution, FKSteering, load_reward, steer
from fk_steer.evaluation import world
from fk_steer.evaluation.half import in_half
from fk_steer.loading import load_preview
from fk_steer.rewards.composite import Ensemble, Finalists
from fk_steer.shapes import BUNDLED, load_pipeline


@pytest.fixture(scope="module", params=BUNDLED)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def pipe(name):
    pipe = load_pipeline(name)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def invoke(app, *arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


def test_guides_of_several_rewards(tmp_path, monkeypatch):
    votes = "majority, guidance_stop 0.5"
    small = {"clip": "finish@20/5/ddim", votes: "finish@24/5/ddim/.5"}
    monkeypatch.setattr(ensembles, "GUIDES", {label: (ensembles.GUIDES[label][0], run) for label, run in small.items()})
    app = typer.Typer()
    app.command()(ensembles.main)
    arguments = ("--out", tmp_path, "--per-task", 1, "--seeds", 1)
    invoke(app, *arguments)
    table = json.loads((tmp_path / "table.json").read_text())
    assert list(table) == ["clip", votes]
    assert table["clip"]["nfe"][0] == 2 * 2 * 5
    assert table[votes]["nfe"][0] == 3 * (2 * 3 + 2)
    # Each of three rewards sees each of three particles as often as the one sees its two.
    assert table[votes]["reward calls"][0] / table["clip"]["reward calls"][0] == 3 * 3 / 2
    assert 0.5 <= table[votes]["reward"][0] <= 1.0
    assert list(json.loads((tmp_path / "differences.json").read_text())) == [f"{votes} less clip"]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    invoke(app, *arguments)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == before
    assert "Unknown guide 'mean'" in CliRunner().invoke(app, ["--out", str(tmp_path), "--guide", "mean"]).output


# Processes of its own import everything first.
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_benchmark(name, tmp_path, processes):
    arguments = (
        shapes.app, "--model", name, "--preset", "best-of-n:1", "--preset", "psp:4", "--steps", 4, "--seeds", 2,
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
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    invoke(*arguments)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == before
    assert json.loads((tmp_path / "table.json").read_text()) == table


def test_compute(tmp_path):
    """Each method at its best on prompts for tuning, then these on held-out ones."""
    common = ("--seeds", 1, "--per-task", 1, "--out", tmp_path)
    tried = invoke(
        compute.app, "tune", "--method", "best-of-n", "--method", "finish", "--budget", 32, "--steps", 4, "--steps", 8,
        "--steps", 25, "--sampler", "dpmsolver++", *common,
    )  # fmt: skip
    assert "Settings tried: best-of-n 2, finish 2." in tried.output
    table = json.loads((tmp_path / "tuning-table.json").read_text())
    assert list(table) == [f"{method}@32/{steps}/dpmsolver++" for method in ("best-of-n", "finish") for steps in (4, 8)]
    assert [row["nfe"][0] for row in table.values()] == [32] * 4, "25 steps do not fit, and rows are all spent"
    chosen = json.loads((tmp_path / "chosen.json").read_text())
    for method, by_budget in chosen.items():
        of_it = {run: row["reward"][0] for run, row in table.items() if run.startswith(method)}
        assert of_it[by_budget["32"]] == max(of_it.values())
    rival = chosen["best-of-n"]["32"]
    arguments = ("held-out", "--also", "finish@32", "--run", rival, "--run", "adaptive@32/4/ddim", *common)
    invoke(compute.app, *arguments)
    table = json.loads((tmp_path / "held-out-table.json").read_text())
    assert list(table) == ["finish@32", rival, "adaptive@32/4/ddim"]
    differences = json.loads((tmp_path / "differences.json").read_text())
    assert list(differences) == [f"finish@32 less {other}" for other in list(table)[1:]]
    for measure in ("overall", "reward", "held out", "oracle"):
        expected = table["finish@32"][measure][0] - table[rival][measure][0]
        assert differences[f"finish@32 less {rival}"][measure][0] == pytest.approx(expected)
    assert (tmp_path / "compute.png").stat().st_size > 10_000
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("records/*.json")}
    invoke(compute.app, *arguments)
    assert written and written == {path: path.stat().st_mtime_ns for path in written}, "nothing is made twice"


def test_half_precision(pipe, name):
    """The same images to the eye, whatever the number of rows, and the same latents, scheduler and rewards."""
    call = {"num_inference_steps": 6, "output_type": "pt"}
    prompts = ["a photo of two stars", "a photo of a red moon", "a photo of a blue square"]

    def images(pipe):
        return pipe(prompts, generator=[torch.Generator().manual_seed(n) for n in range(3)], **call).images

    half = load_pipeline(name)
    half.set_progress_bar_config(disable=True)
    stock, ours = images(pipe), images(in_half(half, compile=False))
    assert not torch.equal(stock, ours) and (stock - ours).abs().mean() < 0.01
    assert half.unet.dtype == half.vae.dtype == ours.dtype == torch.float32


def test_guides_of_several():
    both = world._guide("clip-score+image-reward", "shapes")
    last = world._guide("clip-score>clip-score+image-reward", "shapes")
    assert isinstance(both, Ensemble) and both.name == "mean(z(clip-score), z(image-reward))"
    assert isinstance(last, Finalists) and [part.name for part in last.parts][0] == "clip-score"


@pytest.mark.parametrize("previews", [False, True])
def test_the_floor_does_the_same_work(pipe, name, previews):
    reward = load_reward("clip-score", path="shapes")
    decoder = load_preview(name, pipe) if previews else None
    settings = FKSteering.preset("psp", lmbda=20.0, preview=decoder)
    call = {"num_inference_steps": 8, "guidance_scale": 3.0}
    prompts = ["a photo of two stars", "a photo of a red moon"]
    rows = {"denoiser": 0, "decode": 0, "reward": 0}
    for function, args, _ in speed.record(pipe, reward, settings, Execution(), prompts, **call).calls:
        owner = getattr(function, "__self__", None)
        decodes = owner is not None and owner in (pipe.vae, decoder)
        rows["denoiser" if owner is pipe.unet else "decode" if decodes else "reward"] += len(args[0])
    trace = steer(pipe, reward, settings)(prompts, **call).trace
    assert rows == {"denoiser": trace.nfe, "decode": trace.reward_calls, "reward": trace.reward_calls}


def test_preview(tmp_path):
    arguments = ("--steps", 6, "--images", 3, "--prompt", "a photo of a red star", "--prompt", "a photo of two moons")
    invoke(preview.app, *arguments, "--out", tmp_path / "preview.json")
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
    assert "overhead" in invoke(speed.app, *arguments, "--out", tmp_path / "speed.json").output
    measured = json.loads((tmp_path / "speed.json").read_text())
    assert {way: len(seconds) for way, seconds in measured["seconds"].items()} == {
        "steered": 1, "floor": 1, "straight-through": 1,
    }  # fmt: skip
    assert -1.0 < measured["reward"]["straight-through"] < 1.0
    # Nothing else decodes three at a time.
    assert 3 in sizes
    assert bool(measured["peak bytes"]) == (memory == "--memory")


@pytest.mark.slow
def test_scaling(tmp_path):
    result = CliRunner().invoke(
        scaling.app, f"--out {tmp_path / 'scaling.json'} --limit 8 --steps 2 --repeats 2".split()
    )
    assert result.exit_code == 0, result.output
    measured = json.loads((tmp_path / "scaling.json").read_text())
    assert len(measured["one"]) == len(measured["several"]) == len(measured["load"]) == 2
    assert measured["ratios"] == [two / one for one, two in zip(measured["one"], measured["several"])]
    assert measured["ratio"] == pytest.approx(sum(measured["ratios"]) / 2)

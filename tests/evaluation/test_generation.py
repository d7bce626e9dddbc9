from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from chat_server import ChatServer
from generation_runs import SETTINGS, contents, kill_often
from PIL import Image
from typer.testing import CliRunner

from fk_steer import Finish, steer
from fk_steer.cli import app
from fk_steer.diffusion.generators import particle_generators
from fk_steer.evaluation.generation import sampling as generation_sampling
from fk_steer.evaluation.generation.folder import Progress, RunFolder
from fk_steer.evaluation.generation.plan import GenerationSettings, Plan
from fk_steer.evaluation.generation.run import SampleRecord, generate, is_complete, read_records
from fk_steer.evaluation.generation.workers import run_processes
from fk_steer.evaluation.geneval.evaluator import samples
from fk_steer.loading import load_guide, load_pipeline
from fk_steer.report.trace import Trace
from fk_steer.search import DEFAULT_PRESET
from fk_steer.shapes import GUIDANCE_SCALE
from fk_steer.shapes.captions import evaluation_prompts
from fk_steer.testing import save_clip, sd_scheduler, sdxl


DATA = Path(os.environ.get("FK_STEER_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not there; set FK_STEER_DATA")


def make(out, settings=SETTINGS, **options):
    generate(settings, out, device="cpu", **options)
    return contents(out)


def change(**changes):
    return dataclasses.replace(SETTINGS, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    make(folder)
    return folder


@pytest.fixture
def no_model(monkeypatch):
    def refuse(*args):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(generation_sampling, "Sampler", refuse)


def test_layout(whole):
    names = {"metadata.jsonl", "grid.png"} | {
        f"{part}/{number:05d}.{kind}"
        for part, kind in (("samples", "png"), ("records", "json"), ("traces", "json"))
        for number in (0, 1)
    }
    # The first prompt of each of the first four tasks, by its number in the whole list.
    assert set(contents(whole)) == {"settings.json"} | {f"{n:05d}/{name}" for n in (0, 40, 80, 120) for name in names}
    entry = evaluation_prompts()[40]
    assert json.loads((whole / "00040" / "metadata.jsonl").read_text()) == entry
    images = [Image.open(whole / "00040" / "samples" / f"{number:05d}.png") for number in (0, 1)]
    width, height = images[0].size
    grid = Image.open(whole / "00040" / "grid.png")
    assert grid.size == (2 * width, height)
    assert grid.crop((width, 0, 2 * width, height)).tobytes() == images[1].tobytes()
    # Our own evaluator takes it.
    assert [sample.path.name for sample in samples(whole)] == ["00000.png", "00001.png"] * 4


def test_a_sample_is_the_best_of_one_steered_call(whole):
    """Made by hand: the calls of three samples, the noise from seed, prompt and repeat, the image with the highest
    reward."""
    pipe, guide = load_pipeline("shapes"), load_guide("clip-score", "cpu", path="shapes")
    pipe.set_progress_bar_config(disable=True)
    generators = []
    for repeat in (0, 1):
        number = np.random.SeedSequence([0, 80, repeat]).generate_state(1, np.uint64)[0] >> 1
        generators.append(torch.Generator().manual_seed(int(number)))
    prompt = evaluation_prompts()[80]["prompt"]
    output = steer(pipe, guide, Finish(num_particles=2))(
        [prompt, prompt],
        generator=particle_generators(generators, None, [prompt] * 2, 1, 2)[0],
        num_inference_steps=3,
        guidance_scale=GUIDANCE_SCALE,
    )
    records = [record for record in read_records(whole) if record.prompt_index == 80]
    for number, record in enumerate(records):
        assert (
            Image.open(whole / "00080" / "samples" / f"{number:05d}.png").tobytes() == output.images[number].tobytes()
        )
        assert record.rewards == output.rewards[number].tolist()
        assert record.rewards == pytest.approx(record.scores["clip-score"])
        assert record.reward == max(record.rewards)
        assert (record.sample, record.seed, record.prompt, record.preset) == (number, 0, prompt, DEFAULT_PRESET)
        assert record.nfe == output.trace.nfe / 2
        assert record.reward_calls == output.trace.reward_calls / 2
        trace = Trace.load(whole / "00080" / "traces" / f"{number:05d}.json")
        assert trace.to_dict() == dataclasses.replace(output.trace.of(number), seconds={}).to_dict()
    assert records[0].rewards != records[1].rewards


def test_a_budget(tmp_path):
    """It chooses steps, sampler and particles, and is told at the end."""
    arguments = "bench run --prompts shapes --model shapes --limit 1 --samples-per-prompt 2 --budget 24 --device cpu"
    result = CliRunner().invoke(app, [*arguments.split(), "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "10 steps, dpmsolver++, 2 particles: 20 of 24 denoiser calls per image" in " ".join(result.output.split())
    records = read_records(tmp_path)
    assert [(len(record.rewards), record.nfe) for record in records] == [(2, 40), (2, 40)]
    trace = Trace.load(tmp_path / "00000" / "traces" / "00001.json")
    assert (trace.num_steps, trace.chosen["budget"]) == (10, 24)
    settings = GenerationSettings("shapes", "shapes", limit=1, samples_per_prompt=2, budget=24)
    assert is_complete(settings, tmp_path)
    with pytest.raises(ValueError, match="made with another `budget`"):
        is_complete(dataclasses.replace(settings, budget=25), tmp_path)


def test_without_steering(whole, tmp_path):
    """Images of the stock pipeline, from the noise of the first particle."""
    settings = change(reward=None, particles=None, limit=1, batch_size=2)
    make(tmp_path, settings)
    pipe = load_pipeline("shapes")
    pipe.set_progress_bar_config(disable=True)
    samples = Plan.of(settings).samples(Plan.of(settings).prompts[0])
    generators = [generation_sampling.noise(sample) for sample in samples]
    prompt = evaluation_prompts()[0]["prompt"]
    first_of_four = particle_generators(generators, None, [prompt] * 2, 1, 4)[0][::4]
    images = pipe(
        [prompt] * 2, generator=first_of_four, num_inference_steps=3, guidance_scale=GUIDANCE_SCALE
    ).images  # fmt: skip
    for number, (image, record) in enumerate(zip(images, read_records(tmp_path))):
        assert Image.open(tmp_path / "00000" / "samples" / f"{number:05d}.png").tobytes() == image.tobytes()
        assert (record.reward, record.rewards, record.scores, record.preset) == (None, [], {}, None)
        # Two rows a step under classifier-free guidance.
        assert (record.nfe, record.reward_calls) == (2 * 3, 0)


def test_noise_does_not_depend_on_what_else_is_made(whole, tmp_path):
    """Another seed before it, other samples and other batches: the same up to rounding."""
    make(tmp_path, change(limit=2, seeds=(5, 0), batch_size=1))
    expected = {(record.prompt_index, record.sample): record for record in read_records(whole)}
    records = [record for record in read_records(tmp_path) if record.seed == 0]
    assert [record.sample for record in records] == [2, 3, 2, 3]
    for record in records:
        assert record.rewards == pytest.approx(expected[record.prompt_index, record.sample - 2].rewards, abs=1e-4)


def test_what_is_missing_is_made_again(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    for name in ("00000/records/00001.json", "00000/grid.png", "00080/samples/00000.png", "00120/metadata.jsonl"):
        (tmp_path / name).unlink()
    # What a killed process leaves behind.
    (tmp_path / "00000" / "samples" / ".00001.png.123.tmp").write_bytes(b"half")
    shutil.rmtree(tmp_path / "00040")
    kept = tmp_path / "00000" / "samples" / "00000.png"
    stamp = kept.stat().st_mtime_ns
    assert not is_complete(SETTINGS, tmp_path)
    seen = []
    assert make(tmp_path, progress=lambda done, total: seen.append((done, total))) == contents(whole)
    assert is_complete(SETTINGS, tmp_path)
    assert kept.stat().st_mtime_ns == stamp
    assert seen[0] == (4, 8)
    assert seen[-1] == (8, 8)


def test_a_complete_run_needs_no_model(whole, tmp_path, no_model):
    stamps = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    seen = []
    generate(SETTINGS, whole, processes=2, progress=lambda *numbers: seen.append(numbers))
    assert seen == [(8, 8)]
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == stamps
    # Nor does a grid.
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (tmp_path / "00040" / "grid.png").unlink()
    assert make(tmp_path) == contents(whole)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"particles": 3}, "particles"),
        ({"preset": "best-of-n"}, "preset"),
        ({"lmbda": 2.0}, "lmbda"),
        ({"steps": 4}, "steps"),
        ({"guidance": 4.0}, "guidance"),
        ({"seeds": (1,)}, "seeds"),
        ({"samples_per_prompt": 4}, "samples_per_prompt"),
        ({"batch_size": 2}, "batch_size"),
        ({"limit": 5}, "limit"),
        ({"model": "shapes-xl"}, "model"),
        ({"reward_options": {"path": "shapes-held-out"}}, "reward_options"),
        ({"reward": None, "particles": None}, "reward"),
    ],
)
def test_other_settings_are_refused(whole, no_model, changes, name):
    with pytest.raises(ValueError, match=f"made with another `{name}`"):
        generate(change(**changes), whole)
    with pytest.raises(ValueError, match=f"made with another `{name}`"):
        is_complete(change(**changes), whole)


def test_other_prompts_are_refused(tmp_path, no_model):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a photo of a heart\n")
    settings = change(prompts=str(prompts), limit=None)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "settings.json").write_text(json.dumps(Plan.of(settings).to_dict()))
    assert not is_complete(settings, tmp_path / "out")
    prompts.write_text("a photo of a star\n")
    with pytest.raises(ValueError, match="another `prompts_sha256`"):
        generate(settings, tmp_path / "out")


def test_images_of_unknown_settings_are_refused(tmp_path, no_model):
    (tmp_path / "00000" / "samples").mkdir(parents=True)
    (tmp_path / "00000" / "samples" / "00000.png").touch()
    with pytest.raises(ValueError, match="holds images, but not the settings"):
        generate(SETTINGS, tmp_path)
    assert not (tmp_path / "settings.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples_per_prompt": 0}, "`samples_per_prompt` to be an integer of at least 1"),
        ({"batch_size": 0}, "`batch_size` to be an integer of at least 1"),
        ({"seeds": ()}, "`seeds`"),
        ({"seeds": (1, 1)}, "`seeds`"),
        ({"preset": "nope"}, "Unknown preset 'nope'"),
        ({"reward": None}, "`particles` needs a `reward`"),
        ({"reward": None, "particles": None, "budget": 40}, "`budget` needs a `reward`"),
        ({"budget": 40}, "`particles` cannot be 2 beside it"),
        ({"reward_options": {"base_url": "http://user:secret@x/v1"}}, "without a user and password"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        change(**changes)


def test_calls_and_shares():
    """Shares hold whole prompts, calls no more than the batch size, and every sample is made once."""
    for batch_size, share_sizes, call_sizes in ((3, {1}, {3, 1}), (4, {1}, {4}), (9, {2}, {8}), (100, {4}, {16})):
        plan = Plan.of(change(batch_size=batch_size, seeds=(0, 1)))
        assert {len(share) for share in plan.shares} == share_sizes
        calls = [call for share in plan.shares for call in plan.calls(share)]
        assert {len(call) for call in calls} == call_sizes
        made = [(sample.prompt.index, sample.number) for call in calls for sample in call]
        assert made == [(index, number) for index in (0, 40, 80, 120) for number in range(4)]
    assert [(s.seed, s.repeat) for s in plan.samples(plan.prompts[0])] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_infinite_rewards_are_recorded():
    record = SampleRecord(0, 1, 2, "inf", "fk", -math.inf, [-math.inf, -math.inf], {"a": [math.inf, 1.0]}, 1, 2, 3)
    assert SampleRecord.from_dict(json.loads(json.dumps(record.to_dict(), allow_nan=False))) == record


def test_processes_share_the_work_and_outlive_one_another(whole, tmp_path):
    folder = RunFolder(tmp_path, Plan.of(SETTINGS))
    folder.open()
    killed = []
    with contextlib.ExitStack() as held:
        # Until one of the workers is dead, so that both are there to be killed, however fast they are.
        assert held.enter_context(folder.share(3))

        def kill_one(done, total):
            if done and not killed:
                workers = [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
                killed.append(workers[0].pid)
                workers[0].send_signal(signal.SIGKILL)
                held.close()

        with pytest.warns(UserWarning, match=r"Workers were lost \(killed by SIGKILL\)"):
            assert make(tmp_path, processes=2, progress=kill_one) == contents(whole)
    assert killed


def test_launched_processes_share_the_work(whole, tmp_path):
    """`accelerate launch`, whose `--multi_gpu` is about several processes, with GPUs or not."""
    launch = (
        "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0"
    )
    run = (
        "bench run --prompts shapes --model shapes --limit 4 --samples-per-prompt 2 --steps 3 --particles 2 "
        "--batch-size 3 --device cpu"
    )
    result = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *launch.split(), "-m", "fk_steer", *run.split()]
        + ["--out", str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path) == contents(whole)
    # One of them speaks.
    assert result.stdout.count("8 images in") == 1


@pytest.mark.slow
def test_an_error_of_a_worker_is_raised(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        generate(change(model="nowhere", reward_options={"path": "shapes"}), tmp_path, processes=2, device="cpu")


def test_a_long_error_of_a_worker_is_raised(tmp_path):
    """One longer than a pipe holds."""
    folder = RunFolder(tmp_path, Plan.of(change(reward="x" * 100_000)))
    folder.open()

    def give_up(number, frame):
        raise TimeoutError("the worker is never heard")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(120)
    try:
        with pytest.raises(ValueError, match="Unknown reward 'xxx"):
            run_processes(folder, 1, "cpu", Progress(folder, lambda done, total: None))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_killed(whole, tmp_path):
    kill_often(SETTINGS, tmp_path, 2, seed=0)
    assert make(tmp_path) == contents(whole)


@pytest.mark.slow
def test_killed_20_times(tmp_path):
    settings = change(limit=24)
    numbers = kill_often(settings, tmp_path / "killed", 20, seed=1)
    # What was finished is never lost.
    assert numbers == sorted(numbers)
    assert numbers[-1] > numbers[0]
    expected = make(tmp_path / "whole", settings)
    assert make(tmp_path / "killed", settings) == expected


@pytest.mark.slow
def test_ray(whole, tmp_path, monkeypatch):
    """Workers on a Ray cluster of this machine; one that is killed is replaced, and its call made again."""
    pytest.importorskip("ray")
    # Ray's own default lets its workers starve on a busy machine.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    killed = []

    def kill_one(done, total):
        workers = [one for one in psutil.Process().children(recursive=True) if "RayWorker" in one.name()]
        if done and not killed and workers:
            killed.append(workers[0].pid)
            workers[0].kill()

    assert make(tmp_path, engine="ray", processes=1, progress=kill_one) == contents(whole)
    assert killed


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        mount = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", disk], capture_output=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if mount.returncode:
        pytest.skip("mounting a small file system is not permitted")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_full_disk(whole, tmp_path, small_disk):
    with pytest.raises(OSError, match="No space left"):
        make(small_disk)
    expected = contents(whole)
    left = {name: content for name, content in contents(small_disk).items() if not name.startswith(".locks")}
    assert 0 < len(left) < len(expected)
    assert all(expected[name] == content for name, content in left.items())
    shutil.copytree(small_disk, tmp_path / "larger")
    assert make(tmp_path / "larger") == expected


@needs_data
def test_geneval_with_a_random_sdxl(tmp_path):
    """The official metadata, from the command line, in the official layout."""
    sdxl(sd_scheduler("epsilon")).save_pretrained(tmp_path / "sdxl")
    lines = (DATA / "geneval_evaluation_metadata.jsonl").read_text().splitlines()
    prompts = tmp_path / "geneval.jsonl"
    prompts.write_text("\n".join(lines[::28]) + "\n")
    arguments = [
        "bench", "geneval", "--prompts-file", prompts, "--model", tmp_path / "sdxl", "--reward-option",
        f"path={save_clip(tmp_path / 'clip')}", "--particles", 2, "--steps", 2, "--batch-size", 40, "--device", "cpu",
        "--out", tmp_path / "out",
    ]  # fmt: skip
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert "80 images" in result.output
    folders = sorted(path for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert [path.name for path in folders] == [f"{number:05d}" for number in range(20)]
    for folder, line in zip(folders, lines[::28], strict=True):
        assert json.loads((folder / "metadata.jsonl").read_text()) == json.loads(line)
        assert sorted(path.name for path in (folder / "samples").iterdir()) == [f"{n:05d}.png" for n in range(4)]
        assert (folder / "grid.png").exists()
    assert len(samples(tmp_path / "out")) == 80
    assert len({tuple(record.rewards) for record in read_records(tmp_path / "out")}) == 80


@needs_data
def test_drawbench(whole, tmp_path):
    prompts = DATA / "drawbench_prompts.txt"
    arguments = f"bench drawbench --prompts-file {prompts} --model shapes --limit 2 --samples-per-prompt 1 --steps 2"
    result = CliRunner().invoke(
        app, [*arguments.split(), "--reward", "none", "--device", "cpu", "--out", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    entries = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*/metadata.jsonl"))]
    # The first prompt of each of the first two categories.
    assert [entry["category"] for entry in entries] == ["Colors", "Conflicting"]
    assert entries[0]["prompt"] == prompts.read_text().splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts", "nope"], "Unknown list of prompts 'nope'"),
        (["--prompts", "shapes", "--prompts-file", "x"], "'shapes'"),
        (["--prompts", "shapes", "--preset", "nope"], "Unknown preset"),
        (["--prompts", "shapes", "--engine", "ray"], 'pip install -e ".[ray]"'),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.setitem(sys.modules, "ray", None)
    result = CliRunner().invoke(app, ["bench", "run", "--model", "shapes", "--out", str(tmp_path / "out"), *arguments])
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.glob("out/0*"))


@pytest.mark.parametrize(
    ("reward", "given", "planned"),
    [
        ("clip-score", {}, {"path": "shapes"}),
        ("image-reward", {}, {"path": "shapes"}),
        ("llava-reward", {"perspective": "fidelity"}, {"path": "shapes", "perspective": "fidelity"}),
        ("image-reward", {"path": "mine"}, {"path": "mine"}),
        ("hps", {}, {}),
        (None, {}, {}),
    ],
)
def test_a_bundled_model_is_steered_by_bundled_weights(reward, given, planned):
    """The same for every reward that has some, as `fk-steer generate` does."""
    plan = Plan.of(change(model="shapes", reward=reward, reward_options=given, particles=None, lmbda=None))
    assert plan.settings.reward_options == planned


def test_rows_at_a_time_are_no_setting_of_a_run():
    plain, chunked = (Plan.of(GenerationSettings("shapes", "shapes", max_rows=rows)).to_dict() for rows in (None, 3))
    assert plain == chunked
    assert not any("rows" in name or name.endswith("_batch_size") for name in {**plain, **plain["steering"]})


def test_what_a_chat_judge_asks_is_recorded(tmp_path):
    with ChatServer() as server:
        settings = change(
            reward="unified-reward", reward_options={"base_url": server.url}, limit=1, samples_per_prompt=1
        )
        make(tmp_path, settings)
        asked = json.loads((tmp_path / "asked.json").read_text())
        assert asked["unified-reward"]["template"] == "fk_steer"
        digest = asked["unified-reward"]["template sha256"]
        (tmp_path / "asked.json").write_text(json.dumps(asked).replace(digest, "0" * 64))
        (record,) = tmp_path.glob("*/records/00000.json")
        record.unlink()
        with pytest.raises(ValueError, match=r"was made with other questions \(unified-reward.template sha256: '0000"):
            make(tmp_path, settings)
    assert not record.exists()

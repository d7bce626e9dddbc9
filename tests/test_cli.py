from __future__ import annotations

import json
import warnings
from importlib.metadata import version

import numpy as np
import pytest
import torch
import typer
from browser import CHROMIUM, Browser
from diffusers import AutoencoderKL, UniPCMultistepScheduler
from huggingface_hub import HfApi
from PIL import Image
from typer.testing import CliRunner

from fk_steer import Finish, FKSteering, Trace, load_reward
from fk_steer.cli import app
from fk_steer.diffusion.generators import particle_generators
from fk_steer.pipelines import FKStableDiffusionPipeline
from fk_steer.testing import PROMPTS, save_clip, sd, sd_scheduler, sdxl
from llava_reward_guide import hub
from llava_reward_guide.cli import app as llava_reward
from llava_reward_guide.data.__main__ import app as data
from llava_reward_guide.terminal import errors_as_lines, usable_device
from llava_reward_guide.train import app as train


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    sd().save_pretrained(folder / "sd")
    sdxl().save_pretrained(folder / "sdxl")
    sdxl(sd_scheduler("epsilon", UniPCMultistepScheduler)).save_pretrained(folder / "sdxl-unipc")
    save_clip(folder / "clip")
    return folder


@pytest.fixture
def no_hub(monkeypatch):
    """Whether there is a network or not."""

    def refuse(*args, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(HfApi, "model_info", refuse)
    monkeypatch.setattr(hub, "_silent_since", None)
    monkeypatch.setattr(hub, "_found", set())


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
    assert "best reward" in result.output
    assert "denoiser rows" in result.output
    # The same as the Python call, best first.
    reward = load_reward("clip-score", path=str(models / "clip"))
    pipe = FKStableDiffusionPipeline.from_pretrained(models / "sd")
    output = pipe(
        PROMPTS[0],
        reward=reward,
        steering=Finish(num_particles=3, lmbda=50.0),
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
    # Family trees with pictures of the predictions, and what the run was.
    assert report.count('class="fk-tree"') == 2
    assert report.count("<image href=") == 2 * sum(len(event.rewards[0]) for event in trace.events)
    assert all(f"<dt>{what}</dt>" in report for what in ("preset", "particles", "lambda", "steps", "scheduler", "time"))
    assert "<dd>finish</dd>" in report and "<dd>DDIMScheduler</dd>" in report
    assert all(f'<a href="00{index}/0{rank}.png"' in report for index in range(2) for rank in range(3))


@pytest.mark.parametrize(("name", "images"), [("screen", 2), ("allocation", 2), ("finish", 2)])
def test_what_several_passes_and_greedy_searches_leave(models, tmp_path, name, images):
    """The images kept are of any pass, and each has its own reward on the page."""
    result = generate(models, tmp_path, "--preset", name, "--particles", 2 if name != "screen" else 5)
    assert result.exit_code == 0, result.output
    report = (tmp_path / "report.html").read_text()
    reward = load_reward("clip-score", path=str(models / "clip"))
    for index, prompt in enumerate(PROMPTS):
        names = sorted(path.name for path in (tmp_path / f"00{index}").glob("0*.png"))
        assert names == [f"{rank:02d}.png" for rank in range(images)]
        files = [Image.open(tmp_path / f"00{index}" / file).convert("RGB") for file in names]
        pixels = torch.stack([torch.from_numpy(np.array(file)).permute(2, 0, 1) / 255 for file in files])
        scores = reward(pixels, [prompt] * images)
        trace = Trace.load(tmp_path / f"00{index}" / "trace.json")
        assert trace.rewards[0] == pytest.approx(scores.tolist(), abs=2e-2)
        assert all(f"{value:.3f}</figcaption>" in report for value in trace.rewards[0])
    assert "nan" not in result.output.lower()
    stamp = (tmp_path / "000" / "00.png").stat().st_mtime_ns
    again = generate(models, tmp_path, "--preset", name, "--particles", 2 if name != "screen" else 5)
    assert again.exit_code == 0 and PROMPTS[0] not in again.output
    assert (tmp_path / "000" / "00.png").stat().st_mtime_ns == stamp


def test_the_page_of_a_run_in_a_browser(models, tmp_path):
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    assert generate(models, tmp_path / "out", "--compare").exit_code == 0
    with Browser(tmp_path / "out" / "report.html", tmp_path / "profile") as browser:
        for width in (390, 1280):
            browser.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 500
            )
            browser.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate("[...document.images].every(e => e.hidden || e.naturalWidth > 0)")
        # Whole images lie where the small ones lead.
        links = browser.evaluate("[...document.querySelectorAll('.pictures a')].map(e => e.getAttribute('href'))")
        assert len(links) == 2 * (3 + 3)
        assert all((tmp_path / "out" / link).exists() for link in links)
        assert browser.evaluate("document.querySelectorAll('.fk-tree .fk-slider').length") == 2
        assert browser.problems == []
        assert browser.requests == []


def budgeted(models, out, *arguments, model="sd"):
    return invoke(
        "generate", PROMPTS[0], "--model", models / model, "--reward-option", f"path={models / 'clip'}", "--out", out,
        "--device", "cpu", *arguments,
    )  # fmt: skip


def test_a_budget(models, tmp_path):
    result = budgeted(models, tmp_path, "--budget", 45, "--compare")
    assert result.exit_code == 0, result.output
    assert "10 steps, dpmsolver++, 4 particles: 40 of 45 denoiser calls per image." in result.output
    trace = Trace.load(tmp_path / "000" / "trace.json")
    assert trace.chosen == {
        "steps": 10, "sampler": "dpmsolver++", "num_particles": 4, "calls": 40, "budget": 45
    }  # fmt: skip
    assert (trace.num_steps, trace.nfe) == (10, 80)
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert (settings["steps"], settings["steering"]["calls"]) == (None, 45)
    # As many without steering, by the same sampler.
    unsteered = Trace.load(tmp_path / "000" / "unsteered-trace.json")
    assert (unsteered.num_steps, unsteered.nfe, unsteered.chosen["sampler"]) == (10, 80, "dpmsolver++")
    report = (tmp_path / "report.html").read_text()
    assert "a budget of 45 denoiser calls per image" in report
    assert report.count("<img") == 4 + 4 + 1
    # It belongs to what the images are.
    result = budgeted(models, tmp_path, "--budget", 46, "--compare")
    assert result.exit_code == 1
    assert "made with another `steering`" in result.stderr


def test_a_budget_with_steps_and_a_sampler(models, tmp_path):
    result = budgeted(models, tmp_path, "--budget", 45, "--steps", 6, "--scheduler", "ddim")
    assert result.exit_code == 0, result.output
    assert "6 steps, ddim, 7 particles: 42 of 45 denoiser calls per image." in result.output
    assert Trace.load(tmp_path / "000" / "trace.json").nfe == 84


def test_a_budget_makes_up_for_a_sampler_without_noise(models, tmp_path):
    result = budgeted(models, tmp_path, "--budget", 20, model="sdxl-unipc")
    assert result.exit_code == 0, result.output
    assert "adds no noise" not in result.output
    assert "10 steps, dpmsolver++, 2 particles" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", 40, "--particles", 4], "`particles` cannot be 4 beside it"),
        (["--budget", 9], "A budget of 9 denoiser calls per image is too small"),
        (["--budget", 40, "--scheduler", "flow-euler"], "The sampler 'flow-euler' does not fit"),
    ],
)
def test_a_bad_budget_is_one_line_and_leaves_no_folder(models, tmp_path, arguments, message):
    result = budgeted(models, tmp_path / "out", *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


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
    assert "best reward" not in again.output
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
        (["--reward", "nope"], "Unknown reward 'nope'. Known: aesthetic, checklist"),
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
    assert (paper["steps"], paper["sampler"], paper["calls"]) == (100, None, None)
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


@pytest.mark.parametrize(("program", "name"), [(app, "fk-steer"), (llava_reward, "llava-reward")])
def test_versions(program, name):
    result = CliRunner().invoke(program, ["--version"])
    assert result.exit_code == 0
    assert result.output == f"{name} {version('fk-steer')}\n"


def test_a_prompt_alone_runs_on_the_bundled_model(tmp_path, monkeypatch):
    """In folders of their own for other prompts, or the same under other settings."""
    monkeypatch.chdir(tmp_path)
    few = ("--steps", 3, "--device", "cpu")
    result = invoke("generate", "a red circle", *few)
    assert result.exit_code == 0, result.output
    assert result.output.startswith("No --model is given: using the bundled 'shapes' and its 'clip-score'.\n")
    (first,) = (tmp_path / "out").iterdir()
    assert first.name.startswith("a-red-circle-")
    assert f"out/{first.name}/report.html" in result.output
    assert json.loads((first / "settings.json").read_text())["model"] == "shapes"
    assert invoke("generate", "a blue square", *few).exit_code == 0
    assert invoke("generate", "a red circle", *few, "--seed", 1).exit_code == 0
    assert len(list((tmp_path / "out").iterdir())) == 3
    again = invoke("generate", "a red circle", *few)
    assert again.exit_code == 0
    assert "best reward" not in again.output
    assert len(list((tmp_path / "out").iterdir())) == 3


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("generate", ["x"]),
        ("bench", ["run", "--model", "shapes", "--prompts", "shapes", "--out", "out"]),
        ("score", ["x.png", "--prompt", "x", "--reward", "clip-score"]),
        ("judge", ["x.json", "--out", "out"]),
        ("compare", ["x.yaml"]),
        ("eval", ["geneval", "x"]),
        ("eval", ["panel", "x"]),
    ],
)
@pytest.mark.parametrize("device", ["cuda:7", "mps", "xla", "nonsense", "cpu:cpu", ""])
def test_devices_that_are_not_there(command, arguments, device):
    result = invoke(command, *arguments, "--device", device)
    assert result.exit_code == 2
    assert "cannot be used here" in result.stderr
    assert "cpu" in result.stderr


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("score", ["x", "-c", "x", "-p", "x"]),
        ("compare", ["x", "x", "-c", "x", "-p", "x"]),
        ("crops", ["x", "-c", "x", "-p", "x"]),
        ("evaluate-json", ["x", "-c", "x"]),
        ("bench", []),
    ],
)
def test_devices_of_llava_reward(command, arguments):
    result = CliRunner().invoke(llava_reward, [command, *arguments, "--device", "nonsense"])
    assert result.exit_code == 2
    assert "cannot be used here" in result.stderr


def test_the_device_that_is_always_there():
    assert usable_device("cpu") == "cpu"
    assert usable_device("cpu:0") == "cpu:0"
    assert usable_device(None) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "shapez"], "Did you mean 'shapes'?"),
        (["--model", "Shapes_XL"], "Did you mean 'shapes-xl'?"),
        (["--model", "./missing_dir"], "'./missing_dir'"),
        (["--model", "typo/typo"], "'typo/typo'"),
        (["--model", "shapes", "--pipeline", "sdxl"], "'shapes' is a StableDiffusionPipeline"),
        (["--model", "shapes-xl", "--pipeline", "sd"], "'shapes-xl' is a StableDiffusionXLPipeline"),
        (["--reward", "clip_scor"], "Did you mean 'clip-score'?"),
        (["--reward-option", "path=shapez"], "Did you mean 'shapes'?"),
        (["--reward", "pickscore", "--reward-option", "path=./missing_dir"], "'./missing_dir'"),
        (["--guidance", "nan"], "`guidance`"),
        (["--height", "0"], "`height`"),
        (["--scheduler", "DDIMSchedulr"], "Did you mean 'DDIMScheduler'?"),
    ],
)
def test_mistakes_in_generate_are_one_line(tmp_path, no_hub, arguments, message):
    result = invoke("generate", "x", "--out", tmp_path / "out", "--device", "cpu", *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "run", "--model", "shapez", "--prompts", "shapes"], "Did you mean 'shapes'?"),
        (["bench", "run", "--model", "shapes", "--prompts", "shapez"], "Did you mean 'shapes'?"),
        (["bench", "geneval", "--model", "./missing"], "'./missing'"),
        (["bench", "run", "--model", "shapes", "--prompts", "shapes", "--dtype", "float99"], "Did you mean 'float32'?"),
    ],
)
def test_mistakes_in_bench_leave_no_folder(tmp_path, no_hub, arguments, message):
    result = invoke(*arguments, "--out", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_the_results(tmp_path):
    (tmp_path / "file").touch()
    for arguments in (["generate", "x"], ["bench", "run", "--prompts", "shapes"]):
        result = invoke(*arguments, "--model", "shapes", "--out", tmp_path / "file", "--device", "cpu")
        assert result.exit_code == 1
        assert "to be a folder for the results, but it is a file" in result.stderr


STUDY = "models: [shapes]\nprompts: [shapes]\nrewards: [clip-score]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [a\n b: {", "to be YAML, but it is not"),
        ("\ta: 1", "to be YAML, but it is not"),
        ("a: !!python/object:os.system {}", "to be YAML, but it is not"),
        ("- a\n- b", "to hold a mapping"),
        ("", "to hold a mapping"),
        ("just words", "to hold a mapping"),
        ("modells: [shapes]", "Did you mean 'models'?"),
        ("models: 5\nprompts: shapes\nrewards: clip-score", "Expected 'models' of a study as a list"),
        ("models: [[shapes]]\nprompts: shapes\nrewards: clip-score", "Expected 'models' of a study as a list"),
        ("models: {shapes: [1, 2]}\nprompts: shapes\nrewards: clip-score", "options of 'shapes' as a mapping"),
        (f"{STUDY}generation: 4", "Expected 'generation' of a study as a mapping"),
        (f"{STUDY}detector: [a]", "Expected 'detector' of a study as a mapping"),
        (f"{STUDY}baseline: [1]", "Expected the baseline to be one of the guides"),
        (f"{STUDY}out: [1]", "Expected 'out' of a study to be a folder"),
        (f"{STUDY}metrics: 5", "Expected metrics as a list of names or a mapping"),
        (f"{STUDY}metrics: {{a: 3}}", "options of the metric 'a' as a mapping"),
        (f"{STUDY}generation: {{steps: many}}", "`steps`"),
        (f"{STUDY}generation: {{steps: 2.5}}", "`steps`"),
        (f"{STUDY}generation: {{stepz: 2}}", "Did you mean 'steps'?"),
        (f"{STUDY}generation: {{seeds: 3}}", "`seeds`"),
        (f"{STUDY}generation: {{samples_per_prompt: [1]}}", "`samples_per_prompt`"),
        (f"{STUDY}generation: {{guidance: high}}", "`guidance`"),
        (f"{STUDY}generation: {{dtype: float99}}", "Did you mean 'float32'?"),
        (f"{STUDY}generation: {{scheduler: 5}}", "`scheduler`"),
        (f"{STUDY}generation: {{particles: many}}", "`num_particles`"),
    ],
)
def test_studies_of_another_shape_are_one_line(tmp_path, text, message):
    study = tmp_path / "study.yaml"
    study.write_text(text)
    result = invoke("compare", study, "--device", "cpu")
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


@pytest.mark.parametrize(
    ("text", "message"), [("", "Expected metrics as a list"), ("5", "Expected metrics as a list"), ("a: [", "YAML")]
)
def test_lists_of_metrics_of_another_shape(tmp_path, text, message):
    metrics = tmp_path / "metrics.yaml"
    metrics.write_text(text)
    result = invoke("eval", "panel", tmp_path, "--metrics", metrics, "--device", "cpu")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_errors_of_other_kinds_are_a_line_unless_asked_for_whole(monkeypatch, capsys):
    def fail():
        raise RuntimeError("first\nsecond")

    with pytest.raises(typer.Exit), errors_as_lines("error:"):
        fail()
    text = capsys.readouterr().err
    assert text.startswith("error: RuntimeError: first second ")
    assert text.count("\n") == 1
    monkeypatch.setenv("FK_STEER_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="first"), errors_as_lines("error:"):
        fail()


def test_what_the_system_says_is_told_without_its_number(tmp_path, capsys):
    with pytest.raises(typer.Exit), errors_as_lines("error:"):
        (tmp_path / "nowhere.json").read_text()
    assert capsys.readouterr().err == f"error: No such file or directory: '{tmp_path / 'nowhere.json'}'\n"


def test_warnings_are_a_line(capsys):
    with errors_as_lines("error:"):
        assert warnings.formatwarning("first\nsecond", UserWarning, "file.py", 3) == "warning: first second\n"
    assert "file.py:3" in warnings.formatwarning("first", UserWarning, "file.py", 3)

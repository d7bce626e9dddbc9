"""Prompts from files, single settings, combined rewards, and what commands say while they run."""

from __future__ import annotations

import json
import re
import types
import warnings

import pytest
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

from fk_steer import FKSteering, Schedule, Trace, preset
from fk_steer import console as consoles
from fk_steer.cli import app
from fk_steer.cli.options import warn_of_lmbda
from fk_steer.console import Bar, duration, show
from fk_steer.running import Watched, costs, looks_of, needs_download
from fk_steer.search import DEFAULT_PRESET
from fk_steer.steps import steps_told


FEW = ("--steps", 4, "--particles", 2, "--preset", "adaptive", "--set", "schedule.at=0.5", "--device", "cpu")


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle\n\n  a photo of three hearts  \n")
    return file


# Prompts from files.


def test_prompts_from_a_file_after_those_given(tmp_path, prompts):
    out = tmp_path / "out"
    result = invoke("generate", "a moon", "--prompts-file", prompts, *FEW, "--out", out)
    assert result.exit_code == 0, result.output
    settings = json.loads((out / "settings.json").read_text())
    assert settings["prompts"] == ["a moon", "a red circle", "a photo of three hearts"]
    assert Trace.load(out / "002" / "trace.json").prompts == ["a photo of three hearts"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"prompt": "a, b", "id": 3}\n\n{"prompt": "c"}\n'),
        ("a.csv", 'id,Prompt\n1,"a, b"\n2,c\n'),
        ("a.tsv", "prompt\tid\na, b\t1\nc\t2\n"),
        ("a.csv", "\ufeffprompts;id\na, b;1\nc;2\n"),
        ("a.txt", "a, b\r\nc\r\n"),
        ("a", "a, b\nc"),
    ],
)
def test_forms_of_files(tmp_path, name, content):
    from fk_steer.evaluation.prompts import prompt_list, prompts_in_file

    file = tmp_path / name
    file.write_bytes(content.encode())
    assert prompts_in_file(file) == ["a, b", "c"]
    assert [entry["prompt"] for entry in prompt_list(str(file))] == ["a, b", "c"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "Expected a file of prompts at"),
        ("geneval", None, "Expected a file of prompts at"),
        ("a.txt", "\n\n", "There are no prompts in"),
        ("a.csv", "prompt\n", "There are no prompts in"),
        ("a.csv", "text,id\nx,1\n", "Expected a column 'prompt'"),
        ("a.csv", "id,prompt\n1,a, b\n", "Row 1 of"),
        ("a.csv", "id,prompt\n1,\n", "Row 1 of"),
        ("a.jsonl", '{"text": "x"}\n', "line 1 of"),
        ("a.jsonl", '{"prompt": " "}\n', "line 1 of"),
        ("a.jsonl", "x\n", "line 1 of"),
    ],
)
def test_files_without_prompts(tmp_path, name, content, message):
    file = tmp_path / name
    if content is not None:
        file.write_text(content)
    result = invoke("generate", "--prompts-file", file, "--out", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_no_prompts_at_all(tmp_path):
    result = invoke("generate", "--out", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 1
    assert "Expected a prompt, in quotes, or a file of prompts by --prompts-file." in result.stderr
    result = invoke("bench", "run", "--model", "shapes", "--out", tmp_path / "out", "--device", "cpu")
    assert "Expected a list of prompts by --prompts, or a file of them by --prompts-file." in result.stderr


# Single settings, which belong to what a folder is.


def test_settings_are_recorded_and_others_refused(tmp_path):
    out = tmp_path / "out"
    arguments = ("generate", "a red circle", *FEW, "--out", out)
    assert invoke(*arguments, "--set", "noise.eta=0.5").exit_code == 0
    steering = json.loads((out / "settings.json").read_text())["steering"]
    assert (steering["schedule"]["at"], steering["noise"]["eta"]) == ([0.5], 0.5)
    assert Trace.load(out / "000" / "trace.json").steering["noise"]["eta"] == 0.5
    assert invoke(*arguments, "--set", "noise={eta: 0.5}").exit_code == 0
    refused = invoke(*arguments, "--set", "noise.eta=0.6")
    assert refused.exit_code == 1
    assert "steering.noise.eta: 0.5 -> 0.6" in refused.stderr


def test_runs_over_lists_take_files_settings_and_combinations(tmp_path, prompts):
    out = tmp_path / "out"
    arguments = (
        "bench", "run", "--prompts-file", prompts, "--model", "shapes", "--out", out, "--samples-per-prompt", 1,
        "--reward", "clip-score+image-reward", *FEW,
    )  # fmt: skip
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    settings = json.loads((out / "settings.json").read_text())
    assert settings["reward"] == "clip-score+image-reward"
    assert settings["reward_options"] == {"clip-score": {"path": "shapes"}, "image-reward": {"path": "shapes"}}
    assert settings["steering"]["schedule"]["at"] == [0.5]
    assert "changes" not in settings
    record = json.loads((out / "00001" / "records" / "00000.json").read_text())
    assert record["prompt"] == "a photo of three hearts"
    assert set(record["scores"]) == {"clip-score", "image-reward"}
    assert "what it costs" in result.output
    assert "2 particles x 4 steps = 8 denoiser passes" in result.output
    refused = invoke(*arguments, "--set", "lmbda=3")
    assert refused.exit_code == 1
    assert "another `lmbda`, `steering`" in refused.stderr


@pytest.mark.parametrize("command", [("generate", "x"), ("bench", "run", "--prompts", "shapes", "--model", "shapes")])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "schedul.at=0.4"], "Did you mean 'schedule'?"),
        (["--set", "noise.eta=2"], "`eta` to be between 0.0 and 1.0"),
        (["--set", "num_particles=2", "--particles", "3"], "but got both"),
        (["--set", "steps=9", "--steps", "3"], "by --steps or by --set steps"),
        (["--set", "seed=1"], "give --seed"),
        (["--reward", "clip-score+"], "a reward is missing"),
        (["--reward", "clip-score>nope"], "Unknown reward 'nope'"),
        (["--reward", "clip-score+image-reward", "--reward-option", "hps:path=x"], "a reward that is not scored by"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_folder(tmp_path, command, arguments, message):
    result = invoke(*command, "--out", tmp_path / "out", "--device", "cpu", *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


# Combined rewards.


def test_a_chooser_decides_among_the_final_images(tmp_path):
    out = tmp_path / "out"
    result = invoke("generate", "a red circle", "--reward", "clip-score>image-reward", *FEW, "--out", out)
    assert result.exit_code == 0, result.output
    assert "using the bundled 'shapes' and its 'clip-score' and 'image-reward'" in result.output
    events = Trace.load(out / "000" / "trace.json").events
    assert [set(event.scores) for event in events] == [{"clip-score"}, {"clip-score", "image-reward"}]


def test_score_by_a_combination(tmp_path):
    from PIL import Image

    for name in ("red", "blue"):
        Image.new("RGB", (64, 64), name).save(tmp_path / f"{name}.png")
    images = [tmp_path / "red.png", tmp_path / "blue.png"]
    options = ["--reward-option", "clip-score:path=shapes", "--reward-option", "image-reward:path=shapes"]
    result = invoke(
        "score", *images, "--prompt", "a red circle", "--reward", "clip-score,clip-score+image-reward", *options,
        "--json", "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    # JSON alone: nothing about what is loaded.
    scores = [one["scores"] for one in json.loads(result.stdout)["results"]]
    assert list(scores[0]) == ["clip-score", "clip-score+image-reward"]
    assert sum(one["clip-score+image-reward"] for one in scores) == pytest.approx(0.0, abs=1e-5)


# What is said.


@pytest.mark.parametrize("name", ["adaptive", "sparing", "finish", "refine"])
def test_a_lambda_where_it_is_solved_for_is_warned_of(name):
    with pytest.warns(UserWarning, match=f"The preset '{name}' solves for lambda, so --lmbda 20 is an upper limit"):
        warn_of_lmbda(name, 20.0)


@pytest.mark.parametrize(("name", "lmbda"), [("fk", 20.0), ("bfs", 3.0), ("das", 1.0), ("adaptive", None)])
def test_a_lambda_that_counts_is_not(name, lmbda):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_lmbda(name, lmbda)


def test_without_a_terminal_there_is_a_line_per_prompt(tmp_path, prompts):
    result = invoke("generate", "--prompts-file", prompts, *FEW, "--compare", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    number = r"-?\d+\.\d{3}"
    for index, prompt in enumerate(("a red circle", "a photo of three hearts")):
        (line,) = (line for line in lines if line.startswith(f"{index:03d} "))
        assert re.fullmatch(
            rf"{index:03d} {prompt}: best reward {number} \({number} without steering\), [12] of 2 first particles "
            r"live on, 16 denoiser rows, \d+\.\d s",
            line,
        ), line
    assert "Loading PyTorch and Diffusers ..." in lines[1]
    assert any(re.match(r"By the first \d steps a loop takes .*, all 2 prompts ", line) for line in lines)
    assert "it/s" not in result.stderr
    assert "\r" not in result.output
    assert len(lines) < 25


class Event:
    def __init__(self, *rewards):
        import torch

        self.rewards = torch.tensor([rewards])


class Pipe:
    """Of Diffusers as far as its bar goes."""

    _progress_bar_config = {}

    def loop(self, number):
        with self.progress_bar(total=number) as bar:
            for _ in range(number):
                bar.update()

    def progress_bar(self, iterable=None, total=None):
        raise AssertionError


@pytest.fixture
def terminal(monkeypatch):
    def of(is_terminal, width=80):
        made = Console(force_terminal=is_terminal, width=width, record=True, file=None, legacy_windows=False)
        for place in (consoles, __import__("fk_steer.running", fromlist=["console"])):
            monkeypatch.setattr(place, "console", made)
        return made

    return of


def test_the_bar_has_the_best_reward_and_the_steps(terminal):
    terminal(True)
    pipe = Pipe()
    with Watched(3, 1, True) as watched, watched.steps_of(pipe):
        prompts, steps = watched._bar.tasks
        watched.see(Event(0.25, 0.5))
        assert prompts.fields["note"] == "best reward 0.500"
        watched.see(Event(0.25, 0.4))
        assert prompts.fields["note"] == "best reward 0.500"
        pipe.loop(5)
        assert (steps.completed, steps.total) == (5, 5)
        watched.done("000 done")
        assert (prompts.completed, prompts.total) == (1, 3)
    # The pipeline's own bar is back.
    with pytest.raises(AssertionError):
        pipe.loop(5)


def run_steps(watched, seconds, looked):
    """A loop whose steps take so many seconds, with looks at the particles in some of them and at its end."""
    elapsed = 0.0
    for number, step in enumerate(seconds):
        elapsed += step
        if number in looked:
            watched.see(Event(0.5))
        watched._step(number + 1, len(seconds), elapsed)
    watched.see(Event(0.5))


@pytest.mark.parametrize(
    ("looks", "looked", "lines"),
    [
        # 10 steps of 2 s, and 3 looks of 5 s each: two in the loop, and one at its end.
        (
            3,
            (4, 7),
            [
                "By the first 3 steps a loop takes 20 s, all 4 prompts 80 s, without decoding and scoring.",
                "With the first look at the particles a loop takes 35 s, all 4 prompts 2 min, decoding and scoring "
                "included.",
            ],
        ),
        (
            3,
            (1, 7),
            ["By the first 3 steps a loop takes 35 s, all 4 prompts 2 min, decoding and scoring included."],
        ),
        # How often a search looks is not known before.
        (None, (4, 7), ["By the first 3 steps a loop takes 20 s, all 4 prompts 80 s, without decoding and scoring."]),
        (1, (), ["By the first 3 steps a loop takes 20 s, all 4 prompts 80 s, without decoding and scoring."]),
    ],
)
def test_the_estimate_says_whether_scoring_is_in_it(terminal, looks, looked, lines):
    made = terminal(False)
    with Watched(4, 1, True, looks) as watched:
        for _ in range(2):
            run_steps(watched, [2.0 + 5.0 * (number in looked) for number in range(10)], looked)
    assert made.export_text().splitlines() == lines


def test_what_is_looked_at_is_known_before():
    steering = FKSteering(num_particles=4, schedule=Schedule(at=(0.3, 0.6)))
    assert looks_of(steering, 10) == 3
    assert looks_of(preset("best-of-n"), 10) == 1
    assert looks_of(preset("refine"), 10) is None
    assert looks_of(FKSteering(calls=100), 10) is None


def test_a_pipeline_whose_bar_is_off_tells_no_steps(terminal):
    terminal(True)
    pipe = Pipe()
    pipe._progress_bar_config = {"disable": True}
    with Watched(1, 1, True) as watched, watched.steps_of(pipe):
        pipe.loop(5)
        assert watched._bar.tasks[1].completed == 0


def test_steps_are_told_of_what_is_gone_through():
    """By the bars that pipelines make: of an iterable, with options for drawing, or counted by hand."""
    pipe, seen = types.SimpleNamespace(progress_bar=None), []
    pipe.progress_bar = lambda *_: None
    with steps_told(pipe, lambda done, total, seconds: seen.append((done, total, seconds >= 0.0))):
        assert list(pipe.progress_bar("abc", leave=False, desc="steps")) == ["a", "b", "c"]
        with pipe.progress_bar(total=2) as bar:
            bar.set_description("now")
            bar.update(2)
    assert seen == [(1, 3, True), (2, 3, True), (3, 3, True), (2, 2, True)]


def test_lines_of_a_bar_come_now_and_then(terminal, monkeypatch):
    made = terminal(False)
    bar, now = Bar(), [0.0]
    monkeypatch.setattr(bar, "get_time", lambda: now[0])
    task = bar.add_task("samples", total=100, note="reward: mean 0.5")
    for done in range(1, 100):
        now[0] += 1.0
        bar.update(task, completed=done)
    lines = made.export_text().splitlines()
    assert 8 <= len(lines) <= 10
    assert lines[0].startswith("samples: 11 of 100, reward: mean 0.5")
    assert "to go" in lines[0]
    # Short work says nothing.
    task = bar.add_task("images", total=3)
    for _ in range(3):
        bar.advance(task)
    assert made.export_text() == ""


def test_a_table_that_does_not_fit_is_folded(terminal):
    made = terminal(False, width=40)
    table = Table("measure", *(f"run number {index}" for index in range(6)), box=None)
    table.add_row("reward", *(f"0.12{index} ± 0.004" for index in range(6)))
    table.add_row("overall", *(f"45.{index} ± 2.5" for index in range(6)))
    show(table)
    lines = made.export_text().splitlines()
    assert max(map(len, lines)) <= 40
    text = "\n".join(lines)
    for index in range(6):
        assert text.count(f"0.12{index} ± 0.004") == 1
        assert text.count(f"45.{index} ± 2.5") == 1
        assert text.count(f"run number {index}") == 1
    assert text.count("measure") == text.count("overall") == text.count("reward") == 3
    made = terminal(False, width=200)
    show(table)
    assert made.export_text().count("measure") == 1


@pytest.mark.parametrize(
    ("settings", "options", "expected"),
    [
        (
            FKSteering(4),
            {"guided": True},
            [
                "an image: 4 particles x 20 steps = 80 denoiser passes, 2 rows each",
                "          4 x (6 events + 1) = 28 decoded and scored",
                "memory:   8 denoiser rows at a time",
                "in all:   5 images, 400 denoiser passes",
            ],
        ),
        (
            preset("best-of-n", num_particles=2, guidance_stop=0.52),
            {"images": 1, "guided": True},
            [
                "an image: 2 particles x 20 steps = 40 denoiser passes, 2 rows each up to step 11, then 1",
                "          2 x (0 events + 1) = 2 decoded and scored",
                "memory:   4 denoiser rows at a time",
            ],
        ),
        (
            preset("best-of-n", num_particles=1),
            {"images": 1, "at_a_time": 1},
            [
                "an image: 1 particle x 20 steps = 20 denoiser passes",
                "          1 x (0 events + 1) = 1 decoded and scored",
                "memory:   1 denoiser row at a time",
            ],
        ),
        (
            FKSteering(8, schedule=Schedule(at=(0.5,), alive=(0.5,))),
            {"images": 1, "together": 2},
            [
                "an image: 120 denoiser passes at most (8 particles, 20 steps)",
                "          8 x (1 events + 1) = 16 decoded and scored",
                "memory:   16 denoiser rows at a time",
            ],
        ),
        (
            FKSteering(calls=100),
            {"images": 3},
            [
                "an image: 100 denoiser passes at most, as the budget says",
                "in all:   3 images, 300 denoiser passes",
            ],
        ),
    ],
)
def test_what_a_run_costs(settings, options, expected):
    given = {"guided": False, "images": 5, "at_a_time": None, **options}
    assert costs(settings, 20, **given) == expected


@pytest.mark.parametrize("name", ["refine", "allocation", "screen", "evolution", "lookahead", DEFAULT_PRESET])
def test_costs_of_every_kind_of_search_are_four_lines_at_most(name):
    lines = costs(preset(name), 20, True, 2, None)
    assert len(lines) <= 4
    assert f"{preset(name).cost(20)} denoiser passes" in lines[0]


def test_downloads_are_what_is_neither_here_nor_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert needs_download("org/model")
    assert needs_download("org/model/folder")
    assert not needs_download(str(tmp_path))
    (tmp_path / "models--org--model" / "snapshots").mkdir(parents=True)
    assert not needs_download("org/model")
    assert not needs_download("org/model/folder")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.44, "0.4 s"), (12.4, "12 s"), (89, "89 s"), (150, "2 min"), (9000, "2.5 h")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


# What is refused because it would say nothing.

STUDY = "models: [shapes]\nprompts: [shapes]\nrewards: [clip-score]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{STUDY}generation: {{reward: hps}}", "`reward` of 'generation' would say nothing in a study"),
        (f"{STUDY}generation: {{reward_options: {{}}}}", "`reward_options` of 'generation' would say nothing"),
        (f"{STUDY}generation: {{model: sdxl}}", "`model` of 'generation' would say nothing"),
        (f"{STUDY}generation: {{prompts: geneval}}", "`prompts` of 'generation' would say nothing"),
        (STUDY.replace("[shapes]\np", "{shapes: {reward: hps}}\np"), "`reward` of 'shapes' would say nothing"),
        (STUDY.replace("[shapes]\np", "{shapes: {prompts: x}}\np"), "`prompts` of 'shapes' would say nothing"),
        (STUDY.replace("[shapes]\nr", "{shapes: {model: sdxl}}\nr"), "`model` of 'shapes' would say nothing"),
        (f"{STUDY}detector: {{threshold: 0.5}}", "`detector` would say nothing in this study"),
        (f"{STUDY}detector: {{treshold: 0.5}}", "Did you mean 'threshold'?"),
        (STUDY.replace("[clip-score]", "[none]") + "generation: {lmbda: 3}", "`lmbda` of 'generation' would say"),
        (STUDY.replace("[clip-score]", "{clip-score: {pth: x}}"), "Reward 'clip-score' has no option 'pth'"),
        (STUDY.replace("[clip-score]", "{clip-score: {preset: fk, partcles: 3}}"), "has no option 'partcles'"),
        (STUDY.replace("[clip-score]", "{mix: {reward: clip-score+nope}}"), "Unknown reward 'nope'"),
        (STUDY.replace("[clip-score]", "{mix: {reward: clip-score+hps, path: x}}"), "by reward"),
        (STUDY.replace("[clip-score]", "{none: {lmbda: 3}}"), "Expected no settings of 'none'"),
    ],
)
def test_keys_of_a_study_that_would_say_nothing(tmp_path, text, message):
    study = tmp_path / "study.yaml"
    study.write_text(text)
    result = invoke("compare", study, "--device", "cpu")
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


def test_a_combination_as_a_guide_in_a_study(tmp_path):
    from fk_steer.evaluation.comparison.study import read_study

    study = read_study(
        {
            "models": ["shapes"],
            "prompts": ["shapes"],
            "rewards": {"none": {}, "mix": {"reward": "2*clip-score+image-reward", "lmbda": 3, "clip-score": {}}},
        }
    )
    guide = study.guides[1]
    assert guide.rewards == {"clip-score": {}, "image-reward": {}}
    (cell,) = (cell for cell in study.cells() if cell.guide == "mix")
    assert cell.settings.reward == "2*clip-score+image-reward"
    assert cell.settings.reward_options == {"clip-score": {"path": "shapes"}, "image-reward": {"path": "shapes"}}
    # Each of its rewards is a metric, which guided.
    assert [metric.label for metric in study.metrics if metric.of_guide] == ["clip-score", "image-reward"]


def test_a_list_that_names_missing_images_says_what_to_do(tmp_path):
    (tmp_path / "images.csv").write_text("path,prompt\na/1.png,x\na/2.png,y\n")
    result = invoke("eval", "panel", tmp_path / "images.csv", "--metric", "clip-score=shapes", "--device", "cpu")
    assert result.exit_code == 1
    assert "2 of the 2 images listed in" in result.stderr
    assert f"Paths are relative to {tmp_path}: correct them" in result.stderr

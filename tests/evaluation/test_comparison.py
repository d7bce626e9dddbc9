from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import yaml
from browser import CHROMIUM, Browser
from conftest import REPOSITORY
from PIL import Image
from typer.testing import CliRunner

from fk_steer.cli import app
from fk_steer.defaults import DEFAULT_PRESET
from fk_steer.evaluation.comparison.report import _headlines, page
from fk_steer.evaluation.comparison.results import (
    OVERALL,
    CellResults,
    Picture,
    Value,
    _compare,
    paired_difference,
    ranked,
    score_of,
    verdict,
)
from fk_steer.evaluation.comparison.study import Cell, read_study
from fk_steer.evaluation.comparison.tables import clear, latex, tables
from fk_steer.evaluation.folders import Item
from fk_steer.evaluation.generation.run import GenerationSettings
from fk_steer.evaluation.panel.metrics import LazyScorer, Metric, read_metrics
from fk_steer.testing import save_clip, sd


# The statistics


def picture(group, value=None, prompt=None, correct=None, tag="colors", sample=0):
    item = Item(f"{group}/samples/{sample:05d}.png", Path(f"{sample:05d}.png"), prompt or group, group, tag)
    return Picture(item, {} if value is None else {"hps": value}, correct, "", None)


def test_paired_difference():
    own = [
        picture(group, value) for group, values in {"0": [1.0, 3.0], "1": [4.0], "2": [6.0]}.items() for value in values
    ]
    others = [picture(group, value) for group, value in {"0": 1.0, "1": 1.0, "2": 1.0, "3": 100.0}.items()]
    # The means of the prompts differ by 1, 3 and 5; the fourth prompt has no counterpart.
    mean, error = paired_difference(own, others, score_of("hps"))
    assert mean == pytest.approx(3.0)
    assert error == pytest.approx(2.0 / math.sqrt(3))
    # Noise that both share does not count.
    shared = np.random.default_rng(0).normal(size=50)
    mean, error = paired_difference(
        [picture(str(i), value + 1) for i, value in enumerate(shared)],
        [picture(str(i), value) for i, value in enumerate(shared)],
        score_of("hps"),
    )
    assert (mean, error) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-9))
    assert paired_difference(own, [picture("9", 1.0)], score_of("hps")) is None


def test_entries_of_one_text_are_one_cluster():
    """Four entries of two texts: the standard error is that of two clusters of two."""
    differences = [1.0, 2.0, 5.0, 8.0]
    own = [picture(str(i), value, prompt="ab"[i // 2]) for i, value in enumerate(differences)]
    others = [picture(str(i), 0.0, prompt="ab"[i // 2]) for i in range(4)]
    mean, error = paired_difference(own, others, score_of("hps"))
    assert mean == pytest.approx(4.0)
    # Sums of the residuals: 3 - 8 = -5 and 13 - 8 = 5; sqrt(2 / 1 * (25 + 25)) / 4.
    assert error == pytest.approx(10.0 / 4)


def test_ranked():
    assert ranked([0.3, 0.5, 0.4]) == [3, 1, 2]
    assert ranked([0.5, 0.5, 0.4]) == [1, 1, 2]
    assert ranked([0.1 + 0.2, 0.3]) == [1, 1]
    assert ranked([]) == []


def cell_results(guide, values, accuracy=None, self_scored=False, pictures=()):
    settings = GenerationSettings(model="m", reward=None if guide == "none" else "hps")
    metrics = {
        label: Value(mean, 0.01, 4, 2, "f", self_scored=self_scored and label == "hps")
        for label, mean in values.items()
    }
    return CellResults(Cell("geneval", "m", guide, settings, False), list(pictures), accuracy or {}, metrics, {})


def test_best_and_second_best():
    results = [
        cell_results("none", {"hps": 0.2, "aesthetic": 5.0}),
        cell_results("clip-score", {"hps": 0.28, "aesthetic": 5.5}),
        cell_results("hps", {"hps": 0.3, "aesthetic": 5.5}, self_scored=True),
    ]
    _compare(results, "none")
    assert [one.metrics["hps"].rank for one in results] == [3, 2, 1]
    assert [one.metrics["hps"].fair_rank for one in results] == [2, 1, None]
    assert [one.metrics["aesthetic"].rank for one in results] == [2, 1, 1]
    (table,) = [table for table in tables(results, None) if table.name == "metrics"]
    text = latex(table)
    assert r"\textbf{0.300}$^\dagger$" in text
    assert r"\underline{0.280}" in text
    assert text.count(r"\textbf{5.500}") == 2
    assert "0.200 {" in text
    # Of two, the worse one is not called second best; a single one not the best.
    _compare(results[:2], "none")
    (table,) = [table for table in tables(results[:2], None) if table.name == "metrics"]
    assert "underline" not in latex(table)
    alone = [cell_results("none", {"hps": 0.2})]
    _compare(alone, "none")
    assert alone[0].metrics["hps"].rank is None
    # Other models are of no concern.
    other = [replace(one.cell, model="other") for one in results]
    both = results + [CellResults(cell, [], {}, {"hps": Value(1.0, None, 1, 1, "f")}, {}) for cell in other[:1]]
    _compare(both, "none")
    assert both[2].metrics["hps"].rank == 1


@pytest.mark.parametrize(
    ("accuracies", "text"),
    [
        ((0.5, 0.81, 0.84), "0.840 overall accuracy by three, +0.340 ± 0.020 over none"),
        (
            (0.5, 0.8401, 0.8399),
            "0.840 overall accuracy by two, +0.340 ± 0.020 over none and three, +0.340 ± 0.020 over none",
        ),
        (
            (0.84, 0.84, 0.84),
            "0.840 overall accuracy by none, two, +0.000 ± 0.020 over none and three, +0.000 ± 0.020 over none",
        ),
        (None, "2 metrics that did not guide are best by two and three"),
    ],
)
def test_the_headline_names_all_guides_that_tie(tmp_path, accuracies, text):
    guides = {"none": (0.1, 0.2), "two": (0.3, 0.4), "three": (0.3, 0.4)}
    results = [cell_results(guide, {"a": values[0], "b": values[1]}) for guide, values in guides.items()]
    _compare(results, "none")
    for one, mean in zip(results, accuracies or ()):
        difference = None if one.cell.guide == "none" else (round(mean - accuracies[0], 3), 0.02)
        one.accuracy[OVERALL] = Value(mean, 0.01, 4, 2, "f", difference=difference)
    plain = {"baseline": "none", "failures": {}, "study": {"cells": {one.cell.name: {} for one in results}}}
    content = page(results, plain, tmp_path, 0, "a study")
    found = re.search(r'<div class="headline".*?</div>(.*?)</section>', content, re.S)[1]
    assert re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", found)).strip() == text


def test_metrics_in_which_nobody_is_best_make_no_headline():
    assert _headlines([cell_results("none", {"hps": 0.2})]) == []


def test_overall_difference_of_unequal_tasks():
    """Three prompts of one task and two of another: the tasks weigh alike, and so do their differences."""
    own = [picture(f"{i}", correct=True, tag="colors") for i in range(3)]
    own += [picture(f"{i}", correct=i == 3, tag="position") for i in (3, 4)]
    none = [picture(f"{i}", correct=i == 0, tag="colors") for i in range(3)]
    none += [picture(f"{i}", correct=False, tag="position") for i in (3, 4)]

    def judged(guide, pictures):
        accuracy = {task: Value(0.0, None, 1, 1, "f") for task in ("colors", "position", OVERALL)}
        return cell_results(guide, {}, accuracy, pictures=pictures)

    results = [judged("none", none), judged("hps", own)]
    _compare(results, "none")
    accuracy = results[1].accuracy
    assert accuracy["colors"].difference[0] == pytest.approx(2 / 3)
    assert accuracy["position"].difference[0] == pytest.approx(1 / 2)
    mean, error = accuracy[OVERALL].difference
    assert mean == pytest.approx((2 / 3 + 1 / 2) / 2)
    # Differences 0, 1, 1 and 1, 0.
    errors = np.std([0, 1, 1], ddof=1) / math.sqrt(3), np.std([1, 0], ddof=1) / math.sqrt(2)
    assert error == pytest.approx(math.hypot(*errors) / 2)
    assert results[0].accuracy[OVERALL].difference is None
    assert paired_difference(own, none, verdict)[0] == pytest.approx(3 / 5)
    # The other way round.
    results = [judged("none", none), judged("hps", own)]
    _compare(results, "hps")
    assert results[0].accuracy[OVERALL].difference == (pytest.approx(-mean), pytest.approx(error))
    assert results[1].accuracy[OVERALL].difference is None
    titles = [table.title for table in tables(results, "hps") if table.differences and table.rows]
    assert titles == ["GenEval accuracy by task: difference to hps"]


# The study


def test_reading_a_study():
    study = read_study(
        {
            "models": ["shapes", "sdxl"],
            "rewards": {
                "none": None,
                "clip-score": {"lmbda": 20.0},
                "strong": {"reward": "clip-score", "particles": 16, "preset": "fk", "path": "mine"},
            },
            "prompts": {"shapes": None, "mine": "folder/list.txt"},
            "generation": {"limit": 6, "max_rows": 8},
        }
    )
    cells = {cell.name: cell.settings for cell in study.cells()}
    assert len(cells) == 2 * 2 * 3
    assert cells["shapes/shapes/none"] == GenerationSettings("shapes", "shapes", reward=None, limit=6)
    expected = {"prompts": "folder/list.txt", "limit": 6, "max_rows": 8}
    assert cells["mine/sdxl/strong"] == GenerationSettings(
        "stabilityai/stable-diffusion-xl-base-1.0",
        reward="clip-score", reward_options={"path": "mine"}, particles=16, preset="fk", **expected,
    )  # fmt: skip
    assert cells["mine/shapes/clip-score"] == GenerationSettings(
        "shapes", reward="clip-score", reward_options={"path": "shapes"}, particles=4, lmbda=20.0, **expected
    )
    # The panel of the paper, and the guide that is not in it as it is.
    assert [metric.label for metric in study.metrics] == [
        "hps", "clip-score", "vqa-score", "llava-reward", "image-reward", "diversity", "strong",
    ]  # fmt: skip
    assert study.metrics[-1] == Metric("strong", "clip-score", {"path": "mine"})
    assert study.baseline == "none"
    of_world = study.metrics_of(study.cells()[0])
    assert of_world[1].options == {"path": "shapes"}


def test_the_folder_of_results(tmp_path, monkeypatch):
    """The current one is a folder like any other."""
    monkeypatch.chdir(tmp_path)
    study = ("--rewards", "nope", "--model", "shapes", "--prompts", "shapes")
    command = CliRunner().invoke(app, ["compare", *study])
    assert "Expected a folder for the results by --out." in command.stderr
    command = CliRunner().invoke(app, ["compare", *study, "--out", "."])
    assert "Unknown reward 'nope'" in command.stderr


def test_labels_with_dots_are_labels():
    lists = {f"db-0.{number}": {"prompts": "drawbench", "limit": number} for number in (1, 2)}
    study = read_study({"models": ["shapes"], "rewards": ["none"], "prompts": {**lists, "folder/mine.txt": None}})
    assert list(study.prompts) == ["db-0.1", "db-0.2", "mine"]


def test_a_guide_that_only_compares_is_no_default_metric():
    options = {"variant": "pair", "base_url": "http://127.0.0.1:1"}
    config = {"models": ["shapes"], "rewards": {"unified-reward": options}, "prompts": ["shapes"]}
    study = read_study(config)
    (cell,) = study.cells()
    metric = next(metric for metric in study.metrics_of(cell) if metric.reward == "unified-reward")
    assert LazyScorer(metric, "cpu")([Image.new("RGB", (8, 8))], ["a star"]) == [None]
    asked = read_study({**config, "metrics": {"unified-reward": options}})
    with pytest.raises(ValueError, match="so it is no metric"):
        LazyScorer(asked.metrics[0], "cpu")([Image.new("RGB", (8, 8))], ["a star"])


def test_the_documented_studies():
    text = (REPOSITORY / "docs" / "compare.md").read_text()
    panel, config = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL))
    assert [metric.label for metric in read_metrics(panel)] == [
        "clip-score",
        "held-out-clip",
        "llava-reward",
        "diversity",
    ]
    config.pop("out")
    study = read_study(config)
    assert len(study.cells()) == 2 * 5 * 3
    cell = next(cell for cell in study.cells() if cell.name == "mine/mine/clip-score-16")
    assert (cell.settings.prompts, cell.settings.model) == ("LISTS/prompts.txt", "MODELS/fine-tuned")
    assert (cell.settings.particles, cell.settings.reward, cell.settings.seeds) == (16, "clip-score", (0, 1))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"models": ["shapes"], "rewards": ["none"]}, "at least one entry of 'prompts'"),
        ({"model": ["shapes"]}, "Unknown entry 'model' of a study. Known: models"),
        ({"models": ["shapes"], "rewards": ["hsp"], "prompts": ["shapes"]}, "Unknown reward 'hsp'"),
        ({"models": ["shapes"], "rewards": {"a/b": "hps"}, "prompts": ["shapes"]}, "label of a guide"),
        (
            {"models": {"shapes": {"step": 3}}, "rewards": ["none"], "prompts": ["shapes"]},
            "Unknown setting 'step' of 'shapes'. Known: batch_size",
        ),
        (
            {"models": ["shapes"], "rewards": ["none", "hps"], "prompts": ["shapes"], "baseline": "clip-score"},
            "one of the guides none, hps, but got 'clip-score'",
        ),
        (
            {"models": ["shapes"], "rewards": ["none"], "prompts": ["a/list.txt", "b/list.txt"]},
            "'a/list.txt' and 'b/list.txt' of 'prompts' would share the folder 'list'. Give one of them a label",
        ),
        (
            {"models": ["a/b", "a--b"], "rewards": ["none"], "prompts": ["shapes"]},
            "'a/b' and 'a--b' of 'models' would share the folder 'a--b'",
        ),
        ({"models": ["shapes"], "rewards": {"..": "hps"}, "prompts": ["shapes"]}, "label of a guide"),
        (
            {"models": ["shapes"], "rewards": {"none": {"particles": 8}}, "prompts": ["shapes"]},
            "no settings of 'none', which is no steering, but got 'particles'",
        ),
    ],
    ids=["no prompts", "key", "reward", "label", "setting", "baseline", "stems", "models", "dots", "none"],
)
def test_studies_that_cannot_be(config, message):
    with pytest.raises(ValueError, match=message):
        read_study(config)


def compare(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments), "--device", "cpu"])


WORLD = (
    "--rewards", "none,clip-score", "--model", "shapes", "--prompts", "shapes",
    "--limit", 6, "--samples", 2, "--steps", 3, "--report-prompts", 4,
)  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    result = compare(*WORLD, "--out", out)
    assert result.exit_code == 0, result.output
    return out, result.output


def contents(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_world(study):
    out, output = study
    cells = {cell["guide"]: cell["values"] for cell in json.loads((out / "results.json").read_text())["cells"]}
    assert list(cells) == ["none", "clip-score"]
    none, steered = cells.values()
    tasks = ["color_attr", "counting", "position", "colors", "two_object", "single_object", "overall"]
    metrics = ["clip-score", "held-out-clip", "shapes-oracle", "diversity"]
    costs = ["nfe", "reward_calls", "seconds"]
    expected = [f"accuracy/{task}" for task in tasks] + metrics + [f"cost/{name}" for name in costs]
    assert list(none) == list(steered) == expected
    assert steered["clip-score"]["self_scored"]
    assert not steered["held-out-clip"]["self_scored"]
    assert none["clip-score"]["rank"] == 2
    # Four particles, and no reward without steering; three steps, guided.
    assert none["cost/nfe"]["mean"] == 2 * 3
    assert none["cost/reward_calls"]["mean"] == 0
    assert steered["cost/reward_calls"]["mean"] > 0
    assert steered["clip-score"]["difference"][0] == pytest.approx(
        steered["clip-score"]["mean"] - none["clip-score"]["mean"]
    )
    assert "GenEval accuracy by task" in output
    assert f"{steered['clip-score']['mean']:.3f}".lstrip("0") in output
    assert "†" in output


def test_every_number_comes_from_its_file(study):
    out, _ = study
    cells = json.loads((out / "results.json").read_text())["cells"]
    for folder, (name, value) in [(cell["folder"], item) for cell in cells for item in cell["values"].items()]:
        kind, _, column = name.rpartition("/")
        files = list(out.glob(value["file"]))
        assert files, value
        assert all(file.is_relative_to(out / folder) for file in files)
        if kind == "cost":
            numbers = [json.loads(file.read_text())[column] for file in files]
        elif kind == "accuracy":
            rows = [json.loads(line) for line in files[0].read_text().splitlines()]
            by_task: dict[str, list[bool]] = {}
            for row in rows:
                by_task.setdefault(row["tag"], []).append(row["correct"])
            # One prompt and so equally many images of each task.
            numbers = by_task.get(column, [row["correct"] for row in rows])
        else:
            numbers = [row["score"] for row in json.loads(files[0].read_text())["scores"].values()]
        assert value["mean"] == pytest.approx(np.mean(numbers)), name
        assert value["images"] == len(numbers)


def test_tables_and_csv(study):
    out, _ = study
    plain = json.loads((out / "results.json").read_text())["cells"]
    values = {(cell["guide"], name): value for cell in plain for name, value in cell["values"].items()}
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(values)
    for row in rows:
        assert float(row["mean"]) == values[row["guide"], row["measure"]]["mean"]
    text = (out / "tables" / "metrics.tex").read_text()
    assert text.count("&") == 3 * 4
    assert r"\begin{tabular}{lrrrr}" in text
    assert f"{values['clip-score', 'clip-score']['mean']:.3f}" in text


# Three processes that import everything; that launched ones share a generation is tested in any case.
@pytest.mark.slow
def test_launched_processes_share_the_generation(study, tmp_path):
    """Under `accelerate launch` one of them judges, scores and prints."""
    launch = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    command = [*launch.split(), "--main_process_port", "0", "-m", "fk_steer", "compare", *map(str, WORLD)]
    result = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *command, "--device", "cpu", "--out", str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path) == contents(study[0])
    assert result.stdout.count("Results in") == 1


def test_a_finished_study_is_left_alone(study):
    out, output = study
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    again = compare(*WORLD, "--out", out)
    assert again.exit_code == 0
    # Of what is done there is no progress.
    assert again.output.partition("GenEval accuracy")[1:] == output.partition("GenEval accuracy")[1:]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


def test_stopped_and_resumed(study, tmp_path):
    """What was lost is made again, with the same result."""
    out, output = study
    copied = tmp_path / "study"
    shutil.copytree(out, copied)
    cell = copied / "shapes" / "shapes" / "clip-score"
    for lost in ("00040/samples/00001.png", "00040/records/00001.json", "00040/grid.png", "panel/shapes-oracle.json"):
        (cell / lost).unlink()
    lines = (cell / "evaluation" / "results.jsonl").read_text().splitlines(keepends=True)
    (cell / "evaluation" / "results.jsonl").write_text("".join(lines[:5]))
    scores = json.loads((cell / "panel" / "clip-score.json").read_text())
    scores["scores"] = dict(list(scores["scores"].items())[:5])
    (cell / "panel" / "clip-score.json").write_text(json.dumps(scores))
    shutil.rmtree(copied / "tables")
    (copied / "report.html").unlink()
    again = compare(*WORLD, "--out", copied)
    assert again.exit_code == 0, again.output

    def measured(folder):
        cells = json.loads((folder / "results.json").read_text())["cells"]
        return {
            (cell["folder"], name): value["mean"]
            for cell in cells
            for name, value in cell["values"].items()
            if name != "cost/seconds"
        }

    # Scores depend on the batch that an image is in by rounding alone; the images not at all.
    assert measured(copied) == pytest.approx(measured(out), rel=1e-5)
    lost = "shapes/shapes/clip-score/00040/samples/00001.png"
    assert (copied / lost).read_bytes() == (out / lost).read_bytes()
    assert contents(copied) == contents(out)


def test_failures_do_not_spoil_the_rest(study, tmp_path):
    """A guide and a metric whose weights are not there."""
    out = tmp_path / "study"
    shutil.copytree(study[0], out)
    nowhere = tmp_path / "nowhere"
    nowhere.mkdir()
    result = compare(
        *WORLD, "--out", out, "--rewards", "image-reward", "--reward-option", f"image-reward:path={nowhere}",
        "--metric", f"clip-score,image-reward={nowhere}",
    )  # fmt: skip
    assert result.exit_code == 1
    plain = json.loads((out / "results.json").read_text())
    assert set(plain["failures"]) == {"shapes/shapes/image-reward", "image-reward"}
    assert [cell["guide"] for cell in plain["cells"]] == ["none", "clip-score"]
    assert "clip-score" in plain["cells"][0]["values"]
    assert "nowhere" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts", "shapess", "--model", "shapes", "--rewards", "none", "--out", "OUT"], "Did you mean 'shapes'?"),
        (["nowhere.yaml", "--out", "OUT"], "Expected a study at nowhere.yaml, a YAML file, but there is none."),
    ],
)
def test_what_is_not_there_is_said_before_anything_is_made(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = compare(*arguments)
    assert result.exit_code == 1
    assert result.stderr.count("error: ") == 1 and message in result.stderr
    assert not any(tmp_path.iterdir())


def test_where_nothing_could_be_made_there_is_nothing_to_open(tmp_path):
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    result = compare("--model", tmp_path / "empty", "--rewards", "none", "--prompts", "shapes", "--out", out)
    assert result.exit_code == 1
    assert "is no pipeline: it holds no model_index.json" in result.output
    assert result.output.endswith("No images were made, so there is nothing to compare.\n")
    assert not (out / "report.html").exists()


def test_other_models_and_prompts(tmp_path):
    """A study of a file, on models that are not bundled, with prompts that are not GenEval's."""
    sd().save_pretrained(tmp_path / "tiny")
    save_clip(tmp_path / "clip")
    (tmp_path / "mine.csv").write_text("Prompts,Category\na red cat,Colors\ntwo dogs,Counting\n")
    (tmp_path / "study.yaml").write_text(
        f"""
models: {{tiny: {{model: {tmp_path / "tiny"}}}}}
rewards:
  none:
  clip-score: {{path: {tmp_path / "clip"}, lmbda: 5.0, particles: 2, preset: fk}}
prompts: {{mine: {tmp_path / "mine.csv"}}}
metrics:
  clip-score: {{path: {tmp_path / "clip"}}}
  diversity:
generation: {{steps: 4, samples_per_prompt: 2}}
"""
    )
    result = compare(tmp_path / "study.yaml")
    assert result.exit_code == 0, result.output
    plain = json.loads((tmp_path / "study" / "results.json").read_text())
    none, steered = (cell["values"] for cell in plain["cells"])
    assert list(none) == ["clip-score", "diversity", "cost/nfe", "cost/reward_calls", "cost/seconds"]
    assert steered["clip-score"]["self_scored"]
    settings = plain["study"]["cells"]["mine/tiny/clip-score"]
    assert (settings["lmbda"], settings["particles"], settings["preset"]) == (5.0, 2, "fk")
    assert "Counting" in (tmp_path / "study" / "report.html").read_text()
    assert "GenEval" not in result.output
    other = compare("--rewards", "none", "--model", "shapes", "--prompts", "shapes")
    assert other.exit_code == 1
    assert "--out" in other.stderr


# The page


@pytest.fixture(scope="module")
def browser(study, tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with Browser(study[0] / "report.html", tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def column(browser, table, number):
    return browser.texts(f"#{table} tbody tr :nth-child({number}) .mean")


def test_page_opens(browser, study):
    """It renders all values, puts nothing on the console and asks for nothing."""
    plain = json.loads((study[0] / "results.json").read_text())["cells"]
    overall = [f"{cell['values']['accuracy/overall']['mean']:.3f}" for cell in plain]
    assert column(browser, "table-accuracy", 8) == overall
    assert browser.texts("h1") == ["Rewards as guides"]
    assert len(browser.texts(".card")) == 4
    # The first six of the twelve steered samples.
    assert browser.evaluate("document.querySelectorAll('details .fk-tree svg').length") == 6
    assert browser.evaluate("[...document.images].filter(e => e.checkVisibility()).every(e => e.naturalWidth > 0)")
    assert browser.evaluate("document.querySelectorAll('.large').length") == 4 * 2
    assert len(browser.texts("#rows tbody tr")) == 6 * 2
    file = browser.evaluate("document.querySelector('#table-metrics td[data-file]').dataset.file")
    assert (study[0] / file).exists()
    # Nothing hangs over the edge of the page.
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert browser.problems == []
    assert browser.requests == []


def test_sorting(browser):
    guides = "#table-metrics tbody th"
    assert browser.texts(guides) == ["none", "clip-score"]
    # The last one is diversity. Largest first, then smallest first, then as it was.
    header = "#table-metrics thead th:last-child button"
    shown = [float(text) for text in column(browser, "table-metrics", 5)]
    for order in (sorted(shown, reverse=True), sorted(shown), shown):
        browser.click(header)
        assert [float(text) for text in column(browser, "table-metrics", 5)] == order
    browser.click("#table-metrics thead th:first-child button")
    assert browser.texts(guides) == ["clip-score", "none"]
    browser.click("#rows thead th:last-child button")
    values = [float(text) for text in browser.texts("#rows tbody td:last-child")]
    assert values == sorted(values, reverse=True)
    assert browser.problems == []


def test_filtering(browser):
    browser.click(".chip[data-value='none']")
    assert browser.texts("#table-metrics tbody th") == ["clip-score"]
    assert set(browser.texts(".column .guide")) == {"clip-score"}
    assert len(browser.texts("#rows tbody tr")) == 6
    browser.click(".chip[data-value='none']")
    assert sorted(browser.texts("#table-metrics tbody th")) == ["clip-score", "none"]
    browser.type("#find", "TRIANGLE")
    found = browser.texts(".card h3")
    assert found and all("triangle" in text for text in found)
    assert len(found) < 4
    assert all("triangle" in text for text in browser.texts("#rows tbody td.prompt"))
    browser.evaluate("(e => { e.value = ''; e.dispatchEvent(new Event('input')); })(document.querySelector('#find'))")
    assert len(browser.texts(".card")) == 4
    assert browser.problems == []


def test_choosing_samples_and_ranks(browser, study):
    scores = json.loads((study[0] / "shapes/shapes/none/panel/clip-score.json").read_text())["scores"]
    for sample in (1, 2):
        browser.click(f".card .column .sample:nth-child({sample})")
        expected = scores[f"00000/samples/{sample - 1:05d}.png"]["score"]
        assert browser.texts(".card .column .scores tr td")[:2] == ["clip-score", f"{expected:.3f}"]
        title = browser.evaluate("document.querySelector('.card .large').title")
        assert title == f"shapes/shapes/none/00000/samples/{sample - 1:05d}.png"
    assert not browser.evaluate("document.body.classList.contains('fair')")
    weight = "getComputedStyle(document.querySelector('#table-metrics td.self .mean')).fontWeight"
    before = browser.evaluate(weight)
    browser.click("#fair")
    assert (before, browser.evaluate(weight)) == ("700", "400")
    browser.click("#fair")
    colour = "getComputedStyle(document.body).backgroundColor"
    light = browser.evaluate(colour)
    browser.click("#theme")
    assert browser.evaluate(colour) != light
    browser.click("#theme")
    assert browser.evaluate(colour) == light
    assert browser.problems == []
    assert browser.requests == []


def test_the_page_says_what_it_is_about(browser):
    lead = " ".join(" ".join(browser.texts("header .lead")).split())
    assert "2 guides, model shapes, prompts of shapes: 24 images." in lead
    assert "A guide is a reward that steers generation" in lead
    assert "none is the pipeline without steering" in lead
    assert f"Steered with the preset '{DEFAULT_PRESET}', 4 particles, 3 steps and 2 images of each prompt." in lead
    notes = " ".join(" ".join(browser.texts(".note")).split())
    for term in ("A denoiser row is", "particles", "effective sample size (ESS)", "± is one standard error"):
        assert term in notes
    # Every metric that there are numbers of, by what its reward says of itself.
    said = " ".join(browser.texts(".notes li"))
    cosine = ": Cosine similarity"
    for words in (f"clip-score{cosine}", f"held-out-clip{cosine}", "shapes-oracle: ", "Diversity is"):
        assert words in said
    # Tasks by what they are called, not by their keys.
    options = browser.evaluate("[...document.querySelectorAll('#tag option')].map((e) => e.textContent)")
    shown = [*options, *browser.texts(".card h3, #rows td.task")]
    assert any("attribute binding" in text for text in shown)
    assert not [text for text in shown if "color_attr" in text]


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_on_a_phone(browser, dark):
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.evaluate("delete document.documentElement.dataset.theme")
    browser.call("Emulation.setEmulatedMedia", features=[scheme])
    browser.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
    try:
        assert browser.evaluate("document.documentElement.scrollWidth") == 390
        # The images of two guides side by side, whole.
        right = "Math.max(...[...document.querySelectorAll('.large')].map((e) => e.getBoundingClientRect().right))"
        assert browser.evaluate(right) <= 390
        # Tables scroll within themselves, with the guides staying in sight.
        table = "document.querySelector('#table-accuracy')"
        browser.evaluate(f"{table}.parentElement.scrollLeft = 200")
        assert browser.evaluate(f"{table}.parentElement.scrollLeft") > 0
        assert browser.evaluate(f"{table}.querySelector('tbody th').getBoundingClientRect().left") >= 0
        ink = "getComputedStyle(document.querySelector('.fk-tree')).color"
        page = "getComputedStyle(document.body).color"
        luminance = "(color => color.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0))"
        assert (browser.evaluate(f"{luminance}({ink})") > 384) == dark
        # And as the page is when its button has been pressed.
        browser.evaluate("document.getElementById('theme').click()")
        assert (browser.evaluate(f"{luminance}({ink})") > 384) != dark
        assert (browser.evaluate(f"{luminance}({page})") > 384) != dark
    finally:
        browser.evaluate("delete document.documentElement.dataset.theme")
        browser.call("Emulation.clearDeviceMetricsOverride")
        browser.call("Emulation.setEmulatedMedia", features=[])
    assert browser.problems == []


@pytest.mark.parametrize(
    ("estimate", "expected"),
    [((0.3, 0.1), True), ((-0.3, 0.1), True), ((0.2, 0.1), False), ((0.3, None), False), ((0.5, 0.0), False)],
)
def test_a_difference_is_clear_beyond_two_standard_errors_which_few_prompts_alike_do_not_give(estimate, expected):
    assert clear(estimate) == expected


def test_page_is_one_file(study):
    text = (study[0] / "report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert not re.search(r"https?://(?!www\.w3\.org)", text)
    for name, guide in product(("00000.png", "00001.png"), ("none", "clip-score")):
        image = Image.open(study[0] / f"shapes/shapes/{guide}/00000/samples/{name}")
        assert image.size == (64, 64)
        assert f"shapes/shapes/{guide}/00000/samples/{name}" in text

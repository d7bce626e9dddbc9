from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from chat_server import ChatServer, failing, judge, redness
from PIL import Image
from typer.testing import CliRunner

from fk_steer.cli import app
from fk_steer.evaluation.folders import read_items
from fk_steer.evaluation.panel import metrics as metrics_module
from fk_steer.evaluation.panel.metrics import LazyScorer, Metric, pairwise_distances, parse_metrics, read_metrics
from fk_steer.evaluation.panel.scores import panel_mean, read_scores, score_images
from fk_steer.loading import load_guide
from fk_steer.rewards import RewardError
from fk_steer.shapes.captions import parse, sample_pair
from fk_steer.shapes.world import render


PROMPTS = 3
SAMPLES = 3


@pytest.fixture
def folder(tmp_path):
    """Scenes in GenEval's layout, the first sample of each prompt true to it."""
    rng = np.random.default_rng(0)
    scenes = [sample_pair(rng) for _ in range(PROMPTS + SAMPLES)]
    for index, (scene, text) in enumerate(scenes[:PROMPTS]):
        samples = tmp_path / f"{index:05d}" / "samples"
        samples.mkdir(parents=True)
        (samples.parent / "metadata.jsonl").write_text(json.dumps(parse(text)))
        for sample in range(SAMPLES):
            render(scene if sample == 0 else scenes[PROMPTS + sample][0]).save(samples / f"{sample:05d}.png")
    return tmp_path


def panel(*arguments):
    return CliRunner().invoke(app, ["eval", "panel", *map(str, arguments), "--device", "cpu"])


def scores(folder, label):
    return {name: row.score for name, row in read_scores(folder / "panel", label).items()}


def test_panel_of_the_world(folder):
    result = panel(folder, "--detector", "shapes")
    assert result.exit_code == 0, result.output
    summary = json.loads((folder / "panel" / "summary.json").read_text())
    assert summary["failures"] == {}
    rows = summary["metrics"]
    assert list(rows) == ["clip-score", "held-out-clip", "shapes-oracle", "diversity", "geneval"]
    # The scores are the rewards themselves.
    items = read_items(folder)
    assert len(items) == PROMPTS * SAMPLES
    for label, options in {"clip-score": {"path": "shapes"}, "held-out-clip": {"path": "shapes-held-out"}}.items():
        reward = load_guide("clip-score", "cpu", **options)
        expected = reward([Image.open(item.path) for item in items], [item.prompt for item in items]).tolist()
        assert list(scores(folder, label).values()) == pytest.approx(expected, abs=1e-6)
        assert rows[label]["mean"] == pytest.approx(np.mean(expected), abs=1e-6)
        # Clusters of one size: the standard error is that of the prompts' means.
        means = np.reshape(expected, (PROMPTS, SAMPLES)).mean(1)
        assert rows[label]["standard_error"] == pytest.approx(means.std(ddof=1) / PROMPTS**0.5, rel=1e-5)
        assert (rows[label]["images"], rows[label]["prompts"]) == (9, 3)
    # The oracle says more than 0.9 of what GenEval's rules call correct.
    oracle = scores(folder, "shapes-oracle")
    correct = [json.loads(line) for line in (folder / "evaluation" / "results.jsonl").read_text().splitlines()]
    assert [one["correct"] for one in correct] == [value > 0.9 for value in oracle.values()]
    assert sum(one["correct"] for one in correct) >= PROMPTS
    with (folder / "panel" / "summary.csv").open() as file:
        assert [row["metric"] for row in csv.DictReader(file)] == list(rows)
    assert "clip-score" in result.output


def test_diversity(folder):
    result = panel(folder, "--metric", "clip-score=shapes,diversity")
    assert result.exit_code == 0, result.output
    file = json.loads((folder / "panel" / "diversity.json").read_text())
    # It looks at the CLIP that is a metric too.
    assert file["settings"] == {"reward": "diversity", "options": {"path": "shapes"}}
    clip = load_guide("clip-score", "cpu", path="shapes")
    for index in range(PROMPTS):
        images = [Image.open(folder / f"{index:05d}" / "samples" / f"{sample:05d}.png") for sample in range(SAMPLES)]
        features = clip.model.get_image_features(pixel_values=clip.preprocess(images)).pooler_output
        features = (features / features.norm(dim=1, keepdim=True)).numpy()
        distances = ((features[:, None] - features[None]) ** 2).sum(2)
        own = [value for name, value in scores(folder, "diversity").items() if name.startswith(f"{index:05d}/")]
        assert own == pytest.approx(distances.sum(1) / (SAMPLES - 1), abs=1e-5)

    # A sample less: only its group is measured again.
    before = scores(folder, "diversity")
    (folder / "00001" / "samples" / "00002.png").unlink()
    assert panel(folder, "--metric", "clip-score=shapes,diversity").exit_code == 0
    after = scores(folder, "diversity")
    assert len(after) == PROMPTS * SAMPLES - 1
    assert {name for name in after if after[name] != before[name]} <= {
        "00001/samples/00000.png",
        "00001/samples/00001.png",
    }
    assert after["00001/samples/00000.png"] == after["00001/samples/00001.png"]


def test_pairwise_distances():
    features = torch.eye(3)[[0, 0, 1]]
    assert pairwise_distances(features) == pytest.approx([1.0, 1.0, 2.0])
    assert pairwise_distances(features[:1]) == [None]


class Counting:
    """A reward that notes what it is asked, and may fail."""

    def __init__(self, fail_at=None):
        self.calls, self.fail_at, self.default_lmbda, self.name = [], fail_at, None, "counting"

    def __call__(self, images, prompts):
        if self.fail_at is not None and len(self.calls) >= self.fail_at:
            raise RuntimeError("out of memory")
        self.calls.append(len(prompts))
        return torch.tensor([float(np.asarray(image).mean()) for image in images])


@pytest.fixture
def rewards(monkeypatch):
    """Stand-ins by name, in place of loading."""
    made: dict[str, Counting] = {}
    monkeypatch.setattr(metrics_module, "load_guide", lambda name, device, **options: made[name])
    return made


def test_resuming(folder, rewards):
    """What is scored is kept when a metric fails; the others go on; only what is missing or new is scored then."""
    rewards |= {"hps": Counting(fail_at=2), "aesthetic": Counting()}
    result = panel(folder, "--metric", "hps,aesthetic", "--batch-size", 2)
    assert result.exit_code == 1
    assert "out of memory" in result.output
    assert len(scores(folder, "hps")) == 4
    assert len(scores(folder, "aesthetic")) == 9
    summary = json.loads((folder / "panel" / "summary.json").read_text())
    assert summary["failures"] == {"hps": "RuntimeError: out of memory"}
    assert summary["metrics"]["aesthetic"]["images"] == 9

    rewards |= {"hps": Counting(), "aesthetic": Counting()}
    assert panel(folder, "--metric", "hps,aesthetic", "--batch-size", 2).exit_code == 0
    assert rewards["hps"].calls == [2, 2, 1]
    assert rewards["aesthetic"].calls == []
    expected = {item.name: float(np.asarray(Image.open(item.path)).mean()) for item in read_items(folder)}
    assert scores(folder, "hps") == pytest.approx(expected)
    assert list(scores(folder, "hps")) == list(expected)

    # Another time stamp alone changes nothing; another image does, and another prompt.
    rewards |= {"hps": Counting()}
    os.utime(folder / "00000" / "samples" / "00000.png", (1, 1))
    Image.new("RGB", (64, 64), "white").save(folder / "00000" / "samples" / "00001.png")
    metadata = folder / "00001" / "metadata.jsonl"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"prompt": "another"}))
    assert panel(folder, "--metric", "hps").exit_code == 0
    assert rewards["hps"].calls == [1 + SAMPLES]
    assert scores(folder, "hps")["00000/samples/00001.png"] == 255.0


def test_nan_is_a_failure(folder, rewards):
    rewards["hps"] = lambda images, prompts: torch.full((len(prompts),), torch.nan)
    result = panel(folder, "--metric", "hps")
    assert result.exit_code == 1
    assert "returned NaN" in result.output
    assert not (folder / "panel" / "hps.json").exists()


def test_other_options_are_refused(folder):
    assert panel(folder, "--metric", "clip-score=shapes").exit_code == 0
    result = panel(folder, "--metric", "clip-score=shapes-held-out")
    assert result.exit_code == 1
    assert "another label" in result.stderr
    yaml = folder / "panel.yaml"
    yaml.write_text("held-out: {metric: clip-score, path: shapes-held-out}\n")
    assert panel(folder, "--metrics", yaml).exit_code == 0
    assert scores(folder, "held-out") != scores(folder, "clip-score")


def test_broken_and_listed_images(folder):
    image = folder / "00000" / "samples" / "00001.png"
    (folder / "list.csv").write_text(
        "path,prompt\n00000/samples/00000.png,a photo of a red star\n00000/samples/00001.png,a photo of a red star\n"
    )
    image.write_bytes(image.read_bytes()[:200])
    result = panel(folder / "list.csv", "--metric", "clip-score=shapes", "--out", folder / "listed")
    assert result.exit_code == 0, result.output
    assert "skipped" in result.output
    rows = read_scores(folder / "listed", "clip-score")
    assert list(rows) == ["00000/samples/00000.png"]
    items = read_items(folder / "list.csv")
    assert panel_mean(items, rows)[1:] == (1, 1)
    (folder / "list.jsonl").write_text('{"path": "nowhere.png", "prompt": "a"}\n')
    assert "nowhere.png" in panel(folder / "list.jsonl", "--metric", "clip-score=shapes").stderr


def test_lists_of_odd_prompts(folder):
    path = "00000/samples/00000.png"
    (folder / "list.csv").write_text(f'path,prompt\n{path},"two\nlines\u2028"\n', encoding="utf-8")
    assert [item.prompt for item in read_items(folder / "list.csv")] == ["two\nlines\u2028"]
    (folder / "list.jsonl").write_text(f'{{"path": "{path}", "prompt": "a\u2028b"}}\n', encoding="utf-8")
    assert [item.prompt for item in read_items(folder / "list.jsonl")] == ["a\u2028b"]
    (folder / "list.jsonl").write_text('\n{"path"\n')
    with pytest.raises(ValueError, match=r"line 2 of .*list\.jsonl to be JSON"):
        read_items(folder / "list.jsonl")


def test_copies_beside_samples_are_none(folder):
    (folder / "00000" / "samples" / "00000.png.bak").write_bytes(b"")
    assert len(read_items(folder)) == PROMPTS * SAMPLES


def test_scores_without_a_value(folder):
    """A judge that has no score for an image does not get another's."""
    items = read_items(folder)[:3]
    scorer = LazyScorer(Metric("grader", "llm-grader"), "cpu")
    scorer._scorer = lambda images, prompts: [None, 4.0, 6.0]
    score_images(items, scorer, folder / "panel")
    estimate, images, prompts = panel_mean(items, read_scores(folder / "panel", "grader"))
    assert (estimate[0], images, prompts) == (5.0, 2, 1)


@pytest.mark.parametrize("name", ["llm-grader", "unified-reward"])
def test_grades_that_could_not_be_had(name):
    """By themselves or beside others, and not for want of a server."""
    black, red = Image.new("RGB", (30, 30)), Image.new("RGB", (30, 30), "red")

    def reply(text, images):
        return "I would rather not say." if redness(images[0]) == 0.5 else judge(text, images)

    with ChatServer(reply) as server:
        scorer = LazyScorer(Metric(name, name, {"model": "x", "base_url": server.url, "max_retries": 0}), "cpu")
        alone, (first, second) = scorer([black], ["a"]), scorer([black, red], ["a", "a"])
        assert (alone, first) == ([None], None)
        assert second in (5.0, 10.0)
        server.fault = lambda number: failing(500)
        with pytest.raises(RewardError, match="got no answer in a panel: InternalServerError"):
            scorer([red], ["a"])


def test_naming_metrics():
    some = parse_metrics(["hps,clip-score:hessel=folder", "diversity"], ["clip-score:dtype=float32"])
    assert some == [
        Metric("hps", "hps", {}),
        Metric("clip-score-hessel", "clip-score", {"variant": "hessel", "path": "folder", "dtype": "float32"}),
        Metric("diversity", "diversity", {"variant": "hessel", "path": "folder", "dtype": "float32"}),
    ]
    assert read_metrics({"mine": {"metric": "hps", "path": "x"}}) == [Metric("mine", "hps", {"path": "x"})]
    with pytest.raises(ValueError, match="Unknown reward 'hsp'. Known: .*hps"):
        parse_metrics(["hsp"])
    with pytest.raises(ValueError, match="no option 'size'"):
        parse_metrics(["hps"], ["size=3"])
    with pytest.raises(ValueError, match="'hps' twice"):
        parse_metrics(["hps,hps"])
    with pytest.raises(ValueError, match="name of a file, but got '..'"):
        read_metrics({"..": {"metric": "hps"}})
    with pytest.raises(ValueError, match="without a user and password"):
        parse_metrics(["llm-grader"], ["model=x", "base_url=http://user:secret@x/v1"])
    with pytest.raises(ValueError, match="Expected the options of the metric"):
        read_metrics({"hps": 3})


def test_metrics_that_only_compare():
    scorer = LazyScorer(
        Metric("pair", "unified-reward", {"model": "x", "variant": "pair", "base_url": "http://127.0.0.1:1"}), "cpu"
    )
    with pytest.raises(ValueError, match="compare with one another"):
        scorer([Image.new("RGB", (8, 8))], ["a"])


def test_nothing_to_score(tmp_path):
    result = panel(tmp_path, "--metric", "hps")
    assert result.exit_code == 1
    assert str(Path("00000") / "samples") in result.stderr

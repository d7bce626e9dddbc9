from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from tiny_checkpoints import checkpoints
from typer.testing import CliRunner

from llava_reward_guide import LlavaReward
from llava_reward_guide.cli import app
from llava_reward_guide.scoring import labelled_metrics, pairwise_metrics


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def on(folder):
    return ("--checkpoint", folder, "--num-crops", 1, "--device", "cpu")


@pytest.fixture(scope="module")
def root():
    return checkpoints()[0]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for index, size in enumerate([(80, 80), (120, 60), (60, 120)]):
        Image.effect_noise(size, 30 + 30 * index).convert("RGB").save(folder / f"{index}.png")
    (folder / "corrupt.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    return folder


@pytest.fixture(scope="module")
def expected(root, images):
    reward = LlavaReward.from_pretrained(root / "alignment", device="cpu", num_crops=1)
    pictures = [Image.open(images / f"{index}.png") for index in range(3)]
    return reward.score(pictures, ["a red cube"] * 3)


def test_score(root, images, expected, tmp_path):
    files = [images / "0.png", images / "corrupt.png", images / "2.png"]
    result = invoke("score", *files, *on(root / "alignment"), "-p", "a red cube", "--out", tmp_path / "scores.json")
    # The corrupt one is reported, the others are scored.
    assert result.exit_code == 2
    assert "corrupt.png" in result.output
    found = json.loads((tmp_path / "scores.json").read_text())
    assert [item["reward"] is None for item in found] == [False, True, False]
    assert "corrupt" in found[1]["error"]
    assert found[0]["reward"] == pytest.approx([expected[0].item()], abs=1e-5)
    assert found[2]["reward"] == pytest.approx([expected[2].item()], abs=1e-5)
    result = invoke("score", images / "0.png", *on(root / "alignment"), "-p", "a red cube")
    assert result.exit_code == 0, result.output
    assert f"{expected[0].item():.4f}" in result.output


def test_too_elongated(root, images, tmp_path):
    Image.new("RGB", (400, 1)).save(images / "strip.png")
    files = [images / "0.png", images / "strip.png"]
    result = invoke("score", *files, *on(root / "alignment"), "-p", "x", "--out", tmp_path / "scores.json")
    assert result.exit_code == 2
    assert "strip.png" in result.output
    assert [item["reward"] is None for item in json.loads((tmp_path / "scores.json").read_text())] == [False, True]


def test_compare(root, images, expected):
    result = invoke("compare", images / "0.png", images / "1.png", *on(root / "alignment"), "-p", "a red cube")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["probability"] == pytest.approx(torch.sigmoid((expected[0] - expected[1]) / 0.1).item(), abs=1e-4)
    gpm = [invoke("compare", images / a, images / b, *on(root / "preference"), "-p", "x") for a, b in
           (("0.png", "1.png"), ("1.png", "0.png"))]  # fmt: skip
    first, second = (json.loads(result.stdout)["probability"] for result in gpm)
    assert first + second == pytest.approx(1.0)
    result = invoke("compare", images / "0.png", images / "corrupt.png", *on(root / "alignment"), "-p", "x")
    assert result.exit_code == 1
    assert "corrupt.png" in result.output


def test_evaluate_pairs(root, images, expected, tmp_path):
    rate = {"prompt_id": 0, "c_rate": 2, "r_rate": 1}
    items = [
        {"prompt": "a red cube", "chosen_path": "0.png", "reject_path": "1.png", **rate},
        {"prompt": ["a red cube", "a red cube"], "chosen_path": "1.png", "reject_path": "2.png", **rate},
        {"prompt": "a red cube", "chosen_path": "0.png", "reject_path": "corrupt.png", **rate},
    ]
    (images / "pairs.json").write_text(json.dumps(items))
    result = invoke(
        "evaluate-json",
        images / "pairs.json",
        *on(root / "alignment"),
        "--out",
        tmp_path / "out.json",
        "--report",
        tmp_path,
    )
    assert result.exit_code == 2
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert sum(report["reliability"]["count"]) == 4
    assert report["rewards"]["prompts"]["a red cube"]["n"] == 3
    assert (tmp_path / "reliability.png").is_file()
    found = json.loads((tmp_path / "out.json").read_text())
    assert "corrupt.png" in found["items"][2]["error"]
    assert found["items"][1]["chosen_reward"] == pytest.approx(expected[1].item(), abs=1e-5)
    right = [expected[0] > expected[1], expected[1] > expected[2]]
    assert found["summary"]["accuracy"] == sum(map(bool, right)) / 2
    assert (found["summary"]["items"], found["summary"]["errors"]) == (3, 1)


def test_evaluate_labels(root, images, tmp_path):
    items = [{"path": f"{index}.png", "label": index % 2, "prompt": ""} for index in range(3)]
    (images / "labels.json").write_text(json.dumps(items))
    objective = ("--objective", "classification")
    result = invoke("evaluate-json", images / "labels.json", *on(root / "safety"), *objective)
    assert result.exit_code == 0, result.output
    assert {"accuracy", "f1", "f1_unsafe", "recall", "auc"} < json.loads(result.stdout).keys()
    # Of one class there is no AUC; nor has JSON a NaN. Prompts stay as they are.
    (images / "one.json").write_text(json.dumps([{**items[1], "prompt": "x: NaN"}]))
    arguments = ("--out", tmp_path / "one.json", "--report", tmp_path)
    result = invoke("evaluate-json", images / "one.json", *on(root / "safety"), *objective, *arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["auc"] is None
    assert json.loads((tmp_path / "one.json").read_text())["summary"]["auc"] is None
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert (report["summary"]["auc"], list(report["rewards"]["prompts"])) == (None, ["x: NaN"])
    result = invoke("evaluate-json", images / "labels.json", *on(root / "preference"))
    assert result.exit_code == 1
    assert "Expected pairs" in result.output


def test_bad_data(root, images, tmp_path):
    (tmp_path / "bad.json").write_text('[{"prompt": "x", "chosen_path": "a"}]')
    (tmp_path / "no.json").write_text("{")
    for name, message in (("bad.json", "reject_path"), ("no.json", "to be JSON"), ("none.json", "no such file")):
        result = invoke("evaluate-json", tmp_path / name, *on(root / "alignment"))
        assert result.exit_code == 1
        assert message in result.output
    result = invoke("score", images / "0.png", images / "1.png", *on(tmp_path), *("-p", "a") * 3)
    assert result.exit_code == 1
    assert "one prompt, or one for each of 2" in result.output


def test_bench_and_crops(root, images):
    result = invoke("bench", "--size", "tiny", "--num-crops", 1, "--batch-size", 1, "--side", 64)
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["rows"]) == 1
    files = [images / "0.png", images / "1.png"]
    result = invoke("crops", *files, "-c", root / "alignment", "-p", "x", "--num-crops", 2, "--num-crops", 1)
    assert result.exit_code == 0, result.output
    assert [row["num_crops"] for row in json.loads(result.stdout)] == [2, 1]


def test_metrics():
    chosen, rejected = torch.tensor([[0.5], [0.1], [0.2], [-0.1]]), torch.tensor([[0.1], [0.5], [0.2], [-0.3]])
    found = pairwise_metrics(chosen, rejected, 0.1)
    assert found["accuracy"] == 0.5
    assert found["accuracy_without_ties"] == pytest.approx(2 / 3)
    # Both of every pair have the same sign.
    assert (found["accuracy_hard_labels"], found["accuracy_without_ties_hard_labels"]) == (0.0, 0.0)
    close = pairwise_metrics(chosen, chosen - 1e-5, 0.1)
    assert (close["accuracy"], close["accuracy_bf16"]) == (1.0, 0.0)
    found = labelled_metrics(torch.tensor([2.0, 1.0, -1.0, 0.5]), torch.tensor([1, 1, 0, 0]))
    assert found["accuracy"] == 0.75
    assert found["f1"] == pytest.approx(2 * 2 / (3 + 2))
    assert found["f1_unsafe"] == pytest.approx(2 * 1 / (1 + 2))
    assert (found["recall"], found["recall_unsafe"], found["auc"]) == (1.0, 0.5, 1.0)

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.rewards.run import FULL_SIZE, QWEN2_5_VL, SMALL, app, measure
from fk_steer.rewards import available_rewards
from fk_steer.testing.full_size import WordTokenizer


def test_names():
    assert set(SMALL) <= set(FULL_SIZE)
    assert {name.split(":")[0] for name in FULL_SIZE} - {"shapes"} <= set(available_rewards())


def test_measure():
    row = measure("shapes", "cpu", "float32", batch_size=3, size=64, repeats=1)
    assert row["ratio"] == pytest.approx(row["batched"] / row["one by one"])
    assert row["parameters"] == sum(parameter.numel() for parameter in reward_parameters())
    assert row["peak memory"] >= 0


def reward_parameters():
    return FULL_SIZE["shapes"](torch.device("cpu"), torch.float32).model.parameters()


def test_word_tokenizer():
    tokens = WordTokenizer(1000)(["a red star", "star"], padding="max_length", max_length=5)
    assert tokens.attention_mask.sum(1).tolist() == [4, 2]
    assert tokens.input_ids[0, 3] == tokens.input_ids.max() == 999
    assert tokens.input_ids[0, 2] == tokens.input_ids[1, 0]


@pytest.mark.parametrize(("size", "billions"), [("3b", 3.75), ("7b", 8.29)])
def test_size_of_qwen(size, billions):
    """As the hub's model cards of Qwen2.5-VL state it."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**QWEN2_5_VL[size]))
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e9, 2) == billions


def test_unknown_reward(tmp_path):
    result = CliRunner().invoke(app, ["--out", str(tmp_path), "--reward", "nope"])
    assert result.exit_code == 1
    assert "Unknown reward 'nope'. Known: shapes, clip-score" in result.stderr


@pytest.mark.slow
def test_command(tmp_path):
    arguments = ["--out", str(tmp_path), "--reward", "shapes", "--reward", "image-reward"]
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu", "--batch-size", "2", "--repeats", "1"])
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "rewards.json").read_text())["rewards"]
    assert set(rows) == {"shapes", "image-reward"}
    assert rows["image-reward"]["parameters"] == pytest.approx(446e6, rel=0.01)

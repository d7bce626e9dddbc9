"""Rewards against scores of the originals' own code on the same small random weights; benchmarks/parity made them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import shipped_golden
from PIL import Image
from safetensors.torch import save_file

from fk_steer import load_reward
from fk_steer.testing import checkpoints as published


GOLDEN = shipped_golden()
IMAGES = GOLDEN / "hpsv2_openclip_a" / "images"


def expected(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / name / "expected.json").read_text())


def scores_of(reward: Any, cases: list[dict[str, Any]]) -> torch.Tensor:
    return reward([Image.open(IMAGES / case["image"]) for case in cases], [case["prompt"] for case in cases])


@pytest.fixture(scope="module")
def hpsv3_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hpsv3")
    config = copied_config("hpsv3", folder)
    save_file(published.random_weights(published.hpsv3(config)), folder / "HPSv3.safetensors")
    return folder


def copied_config(name: str, folder: Path) -> dict[str, Any]:
    """The configuration of a golden model on Qwen-VL, whose files are copied, with the size of the vocabulary."""
    for file in (GOLDEN / name).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    tokens = json.loads((folder / "tokenizer.json").read_text())
    # With the token of the reward, which the original adds.
    config["text_config"]["vocab_size"] = len(tokens["model"]["vocab"]) + len(tokens["added_tokens"]) + 1
    return config


class TestHPSv3:
    def test_scores(self, hpsv3_folder):
        """Together, so that rows are padded, as the original was asked."""
        cases = expected("hpsv3")["scores"]
        means = torch.tensor([case["mean"] for case in cases])
        assert means.std() > 0.01
        scores = scores_of(
            load_reward("hpsv3", path=str(hpsv3_folder), template=hpsv3_folder / "rubric.txt", device="cpu"), cases
        )
        torch.testing.assert_close(scores, means, rtol=1e-5, atol=0)


class TestHPSv3Plus:
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def folder(cls, tmp_path_factory) -> Path:
        folder = tmp_path_factory.mktemp("hpsv3_plus")
        config = copied_config("hpsv3_plus", folder)
        torch.save(published.random_weights(published.hpsv3_plus(config)), folder / "hpsv3++.pth")
        return folder

    @pytest.mark.parametrize(
        ("way", "options"),
        [
            ("alone", {}),
            ("alone at 0.5", {"iteration": 0.5}),
            ("together", {"capability": "batch"}),
        ],
    )
    def test_scores(self, folder, way, options):
        cases = expected("hpsv3_plus")["scores"]
        wanted = torch.tensor([case[way] for case in cases])
        options["template"] = folder / "rubric.txt"
        scores = scores_of(load_reward("hpsv3-plus", path=str(folder), device="cpu", **options), cases)
        torch.testing.assert_close(scores, wanted, rtol=2e-5, atol=1e-6)

    def test_ways_differ(self):
        """Or the test above would not tell them apart."""
        cases = expected("hpsv3_plus")["scores"]
        assert all(abs(case["alone"] - case["alone at 0.5"]) > 1e-3 * abs(case["alone"]) for case in cases)
        assert any(abs(case["alone"] - case["together"]) > 1e-3 * abs(case["alone"]) for case in cases)

    def test_options(self):
        with pytest.raises(ValueError, match=r"`iteration` to be between 0.0 and 1.0, but got 600"):
            load_reward("hpsv3-plus", iteration=600)
        with pytest.raises(ValueError, match="`capability` to be 'image' or 'batch', but got 'group'"):
            load_reward("hpsv3-plus", capability="group")


@pytest.fixture(scope="module")
def mps_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mps")
    config = json.loads((GOLDEN / "mps" / "open_clip_config.json").read_text())
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    weights = published.random_weights(published.mps(config, expected("mps")["heads"]))
    save_file(weights, folder / "model.safetensors")
    return folder


class TestMPS:
    def scores(self, folder: Path, **options: Any) -> torch.Tensor:
        options["tokenizer"] = str(GOLDEN / "clip_bpe_subset")
        reward = load_reward("mps", path=str(folder), device="cpu", **options)
        return scores_of(reward, expected("mps")["scores"])

    def test_scores(self, mps_folder):
        wanted = torch.tensor([case["score"] for case in expected("mps")["scores"]])
        torch.testing.assert_close(self.scores(mps_folder), wanted, rtol=2e-5, atol=1e-5)

    def test_the_words_that_count_matter(self, mps_folder):
        assert (self.scores(mps_folder, threshold=0.01) - self.scores(mps_folder)).abs().max() > 0.1
        assert (self.scores(mps_folder, condition="hands") - self.scores(mps_folder)).abs().max() > 0.1


class TestCycleReward:
    @pytest.fixture
    def reward(self, tmp_path):
        folder = GOLDEN / "cycle_reward"
        sizes = {}
        for name in ("vit", "med"):
            sizes[name] = json.loads((folder / f"{name}_config.json").read_text())
            (tmp_path / f"{name}_config.json").write_text(json.dumps(sizes[name]))
        (tmp_path / "vocab.txt").write_bytes((GOLDEN / "image_reward_a" / "vocab.txt").read_bytes())
        torch.save(published.random_weights(published.cycle_reward(**sizes)), tmp_path / "CycleReward-Combo.pth")
        return load_reward("cycle-reward", path=str(tmp_path), device="cpu")

    def test_scores(self, reward):
        cases = expected("cycle_reward")["scores"]
        wanted = torch.tensor([case["score"] for case in cases])
        torch.testing.assert_close(scores_of(reward, cases), wanted, rtol=2e-5, atol=1e-6)

    def test_prompts_are_cut_at_128_tokens(self, reward):
        ids, mask = reward.prompts(["a " * 500])[0]
        assert len(ids) == mask.sum() == 128

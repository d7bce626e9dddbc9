"""The study of what training keeps of steering: its pairs, its prompts and its shares, on numbers made by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks.dpo.pairs import choose, judged, write_pairs
from benchmarks.dpo.run import BEST_OF_4, SETTINGS, SINGLE, kept
from fk_steer.evaluation import world
from fk_steer.evaluation.world import Record
from fk_steer.shapes.captions import TASKS, evaluation_prompts, is_held_out, training_prompts, tuning_prompts
from fk_steer.shapes.preference_images import TASK_WEIGHTS
from fk_steer.training import DPOConfig, load_config, train_dpo
from fk_steer.training.data import Preferences
from fk_steer.training.trained import WEIGHTS


STORED = {
    "clip-score": torch.tensor([[1.0, 2.0, 3.0, 6.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64),
    "image-reward": torch.tensor([[30.0, 10.0, 20.0, 0.0], [0.0, 1.0, 2.0, 3.0]], dtype=torch.float64),
    "llava-reward": torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 3.0, 1.0, 2.0]], dtype=torch.float64),
    "correct": torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]]),
    "images": torch.zeros(2, 4, 3, 8, 8, dtype=torch.uint8),
}


def test_judges_are_means_of_scores_that_are_made_alike():
    torch.testing.assert_close(judged(STORED, "clip")[0], (STORED["clip-score"][0] - 3) / STORED["clip-score"][0].std())
    # Equal scores say nothing, and are not divided by nothing.
    assert not judged(STORED, "clip")[1].any()
    names = ("clip-score", "image-reward", "llava-reward")
    first = [STORED[name][0] for name in names]
    scores = torch.stack([(values - values.mean()) / values.std() for values in first])
    torch.testing.assert_close(judged(STORED, "ensemble")[0], scores.mean(0))


def test_the_best_stands_against_the_worst():
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.4], [0.0, 0.0, 0.0, 0.0]])
    assert choose(scores, 1, 0.0) == [(0, 1, 0)]
    assert choose(scores, 2, 0.0) == [(0, 1, 0), (0, 2, 3)]
    assert choose(scores, 2, 0.2) == [(0, 1, 0)]


def test_pairs_are_written_with_what_the_detector_says(tmp_path):
    datasets = pytest.importorskip("datasets")
    lines = [{"prompt": "a photo of a star"}, {"prompt": "a photo of a moon"}]
    statistics = write_pairs(tmp_path, lines, STORED, "llava", 2, 0.0)
    # Chosen 3 and 2 of the first, 1 and 3 of the second; rejected 0 and 1, 0 and 2.
    assert statistics == {"pairs": 4, "chosen_correct": 1.0, "rejected_correct": 0.0, "right_way_round": 1.0}
    rows = datasets.load_dataset("parquet", data_files=str(tmp_path / "train.parquet"), split="train")
    assert rows["caption"][:] == ["a photo of a star"] * 2 + ["a photo of a moon"] * 2
    assert rows["score_0"][0] > rows["score_1"][0]


def test_training_prompts_are_neither_held_out_nor_those_settings_are_chosen_on():
    lines = training_prompts(600, TASK_WEIGHTS)
    assert lines == training_prompts(600, TASK_WEIGHTS)
    assert not any(is_held_out(line) for line in lines)
    texts = {line["prompt"] for line in lines}
    held_out = {line["prompt"] for line in evaluation_prompts() if line["tag"] != "single_object"}
    assert not texts & held_out
    tuning = {line["prompt"] for line in tuning_prompts(20) if line["tag"] not in ("single_object", "counting")}
    assert not texts & tuning
    for task in TASKS:
        share = sum(line["tag"] == task for line in lines) / 600
        assert share == pytest.approx(TASK_WEIGHTS[task], abs=0.05)


def record(correct: bool, reward: float, seed: int = 0) -> Record:
    numbers = dict.fromkeys(("share_correct", "mean_reward", "nfe", "reward_calls", "seconds"), 0.0)
    return Record(
        index=0, tag="colors", prompt="", seed=seed, correct=correct, reward=reward, held_out=reward, oracle=reward,
        **numbers,
    )  # fmt: skip


def everywhere(one: Record) -> list[Record]:
    """The same in every task, over which accuracy is averaged."""
    return [dataclasses.replace(one, index=index, tag=task) for index, task in enumerate(TASKS)]


def test_kept_is_a_share_of_the_gain():
    base = {SINGLE: everywhere(record(False, 0.2)), BEST_OF_4: everywhere(record(True, 0.6))}
    tuned = everywhere(record(False, 0.3)) + everywhere(record(True, 0.5))
    shares = kept(tuned, base)[BEST_OF_4]
    assert shares["overall"] == pytest.approx(0.5)
    assert shares["reward"] == pytest.approx((0.4 - 0.2) / 0.4)


def test_the_settings_can_be_read():
    for path in Path(SETTINGS).parent.glob("*.yaml"):
        assert load_config(path, {"data": "somewhere"}).cache_latents


def test_a_model_with_lora_is_measured_with_it_fused(tmp_path):
    image = Image.new("RGB", (64, 64), "white")
    pairs = Preferences([{"caption": "a photo of a star", "jpg_0": image, "jpg_1": image, "label_0": 1}])
    settings = DPOConfig(
        output=str(tmp_path), steps=1, batch_size=1, micro_batch_size=1, warmup=0, learning_rate=0.1, anchor=1.0
    )
    folder = train_dpo(settings, pairs=pairs).weights
    unet, plain = world._loaded("shapes", False, str(folder)).unet, world._loaded("shapes", False, None).unet
    assert unet.state_dict().keys() == plain.state_dict().keys()
    lora = load_file(folder / WEIGHTS)
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"
    change = lora[f"unet.{name}.lora_B.weight"] @ lora[f"unet.{name}.lora_A.weight"]
    assert change.abs().max() > 0.01
    found = unet.get_submodule(name).weight - plain.get_submodule(name).weight
    torch.testing.assert_close(found, change, rtol=1e-3, atol=1e-4)

"""Layouts that are refused, blends, splits, and where training starts from."""

from __future__ import annotations

import importlib.util
import itertools

import pytest
from test_llava_training import assert_same, config, data, log, weights  # noqa: F401

from llava_reward_guide import LlavaReward
from llava_reward_guide.data.batches import StepSampler
from llava_reward_guide.training import TrainingConfig, train
from llava_reward_guide.training import trainer as trainer_module
from llava_reward_guide.training.data import training_data
from llava_reward_guide.training.trainer import Trainer


LOST = {"full_finetune": True, "hidden_layer": 1, "visual_layer": 1, "mean_pooling": True}


@pytest.mark.parametrize("names", [c for n in range(5) for c in itertools.combinations(LOST, n)])
def test_published_layout_that_cannot_hold_the_result_is_refused(names):
    changes = {name: LOST[name] for name in names}
    TrainingConfig(**changes)
    if not names:
        TrainingConfig(published_layout=True)
        return
    with pytest.raises(ValueError, match="published layout has no place for") as raised:
        TrainingConfig(published_layout=True, **changes)
    assert all(name in str(raised.value) for name in names)


def test_failing_copies_and_validation_lose_no_weights(data, tmp_path, monkeypatch):  # noqa: F811
    save = LlavaReward.save_pretrained

    def broken(self, folder, layout="safetensors", state_dict=None):
        if layout == "published":
            raise OSError("no space")
        save(self, folder, layout, state_dict)

    def fails(*_):
        raise RuntimeError("validation broke")

    monkeypatch.setattr(LlavaReward, "save_pretrained", broken)
    monkeypatch.setattr(trainer_module, "validate", fails)
    few = str(data / "few.json")
    result = train(config(data, tmp_path, max_steps=2, published_layout=True, validation_data=few))
    assert result.finished and result.validation == {}
    assert weights(tmp_path / "final")


def blended(data, output, **changes):  # noqa: F811
    sources = [str(data / "pairs.json"), str(data / "few.json")]
    return config(data, output, train_data=sources, train_probabilities=[0.3, 0.7], **changes)


def test_blend_is_the_same_from_any_step_and_on_any_number_of_processes():
    def batches(start=0, process=0, processes=1):
        sources = [0] * 90 + [1] * 10
        return list(StepSampler(range(100), 8, 4, 50, 3, start, process, processes, sources, [1.0, 3.0]))

    whole = batches()
    assert batches(20) == whole[40:]
    assert [one for pair in zip(batches(0, 0, 2), batches(0, 1, 2)) for one in pair] == whole
    assert sum(index >= 90 for one in whole for index in one) / 400 == pytest.approx(0.75, abs=0.07)


def test_blended_run_learns_and_goes_on_exactly(data, tmp_path, monkeypatch):  # noqa: F811
    train(blended(data, tmp_path / "whole", max_steps=8, save_every=3))
    losses = log(tmp_path / "whole")
    assert losses[-1] < losses[0]
    step = Trainer._step

    def stops(self, batches):
        if self.progress.step == 4:
            raise KeyboardInterrupt
        return step(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", stops)
        with pytest.raises(KeyboardInterrupt):
            train(blended(data, tmp_path / "torn", max_steps=8, save_every=3))
    assert train(blended(data, tmp_path / "torn", max_steps=8, save_every=3)).step == 8
    assert_same(tmp_path / "whole" / "final", tmp_path / "torn" / "final", 1e-6)


def test_held_out_items_are_no_training_items(data, tmp_path):  # noqa: F811
    found = training_data(config(data, tmp_path, validation_fraction=0.25))
    train_on = {item["chosen_path"] for item in found.items}
    held_out = {item["chosen_path"] for item in found.validation}
    assert (len(train_on), len(held_out)) == (15, 5) and not train_on & held_out


@pytest.mark.parametrize("layout", ["final", "final/published"])
def test_starts_from_an_adapter_with_lora_on_the_tower(data, tmp_path, layout):  # noqa: F811
    train(config(data, tmp_path / "a", max_steps=2, published_layout=True, lora_vision=True))
    assert any("vision_tower" in name for name in weights(tmp_path / "a" / "final"))
    place = str(tmp_path / "a" / layout)
    # A warm-up begins at a learning rate of 0.
    train(config(data, tmp_path / "b", max_steps=1, init_from=place, lora_vision=True))
    assert_same(tmp_path / "a" / "final", tmp_path / "b" / "final", 1e-6)
    with pytest.raises(ValueError, match="`lora_rank` to 4"):
        train(config(data, tmp_path / "c", init_from=place, lora_vision=True, lora_rank=8))


def test_missing_bitsandbytes_is_told_before_anything_is_loaded(tmp_path):
    pytest.importorskip("peft")
    if importlib.util.find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is installed")
    with pytest.raises(ImportError, match=r"\.\[quantize\]"):
        train(TrainingConfig(train_data="none.json", quantize="4bit", output=str(tmp_path)))

"""Loading: names and shapes of published checkpoints at full size, without their weights, and what goes wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPModel, Qwen2VLConfig, Qwen3VLConfig

from fk_steer import load_reward
from fk_steer.rewards import (
    RewardLoadError,
    blip,
    clip_flant5,
    cycle_reward,
    hpsv3,
    hpsv3_plus,
    mps,
    open_clip,
    qwen_vl,
)
from fk_steer.rewards.loading import assign_weights, empty
from fk_steer.rewards.open_clip import VIT_H_14
from fk_steer.rewards.vqa_score import VQAScore
from fk_steer.testing import checkpoints as published
from fk_steer.testing import save_clip
from fk_steer.testing.rewards import TINY_REWARDS, tiny_reward


def on_meta(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def with_vocabulary(config, size):
    return {**config, "text_config": {**config["text_config"], "vocab_size": size}}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class TestFullSize:
    """`assign_weights` raises unless every tensor finds its place, in the right shape, and no place stays empty."""

    def test_image_reward(self):
        shapes = published.image_reward({}, published.MED_CONFIG)
        vision = blip.vision_config({})
        text = blip.text_config(published.MED_CONFIG, vision.hidden_size)
        model = empty(lambda: blip.ImageRewardModel(vision, text))
        assign_weights(model, blip.to_transformers(on_meta(shapes)), "", "image-reward")
        assert len(blip.to_transformers(on_meta(shapes))) == len(shapes) - 5
        # ImageReward.pt on the hub has 1 786.9 MB: 4 bytes a number, and the container.
        assert sum(torch.Size(shape).numel() for shape in shapes.values()) * 4 == pytest.approx(1.7868e9, rel=2e-4)

    def test_hps(self):
        shapes = published.open_clip(VIT_H_14)
        model = empty(lambda: CLIPModel(open_clip.clip_config(VIT_H_14)))
        weights = open_clip.to_transformers(on_meta(shapes))
        assign_weights(model, weights, "", "hps")
        # Each in_proj is three tensors in transformers, weight and bias.
        assert len(weights) == len(shapes) + 2 * 2 * (32 + 24)
        # ViT-H/14 as open_clip's table of models has it: 986.11 million.
        assert count(model) == pytest.approx(986.11e6, rel=1e-4)

    @pytest.mark.parametrize(("config", "billions"), [(published.FLAN_T5_XL, 2.85), (published.FLAN_T5_XXL, 11.135)])
    def test_clip_flant5(self, config, billions):
        vision = clip_flant5.VIT_L_14_336
        weights = on_meta(published.clip_flant5(config, vision))
        model = empty(lambda: clip_flant5.ClipFlanT5(config))
        assert not model.t5.config.scale_decoder_outputs
        assign_weights(model, clip_flant5.to_transformers(weights, config, torch.bfloat16), "", "vqa-score")
        variant = VQAScore.card.variants["clip-flant5-xl" if billions < 5 else "clip-flant5-xxl"]
        assert variant.weights == round(count(model) / 1e9, 2)
        # FLAN-T5 XL and XXL.
        assert count(model.t5) == pytest.approx(billions * 1e9, rel=1e-3)

    def test_hpsv3(self):
        shapes = published.hpsv3(with_vocabulary(qwen_vl.QWEN2_VL_7B, 151658))
        config = Qwen2VLConfig(**with_vocabulary(qwen_vl.QWEN2_VL_7B, 151658))
        model = empty(lambda: hpsv3.HPSv3Model(config))
        weights = hpsv3.to_transformers(on_meta(shapes))
        assign_weights(model, weights, "", "hpsv3")
        assert len(weights) == len(shapes) - 1
        # Qwen2-VL-7B has 8.291 billion; its 406 unused rows of two embeddings were cut off.
        qwen = sum(math.prod(shape) for name, shape in shapes.items() if not name.startswith("rm_head"))
        assert qwen + 2 * 406 * 3584 == pytest.approx(8.2914e9, rel=1e-4)
        assert hpsv3.HPSv3.card.weights == round(count(model) / 1e9, 2)
        assert [tuple(part.weight.shape) for part in model.rm_head if isinstance(part, nn.Linear)] == [
            (1024, 3584),
            (16, 1024),
            (2, 16),
        ]

    def test_hpsv3_plus(self):
        sizes = with_vocabulary(qwen_vl.QWEN3_VL_8B, 151670)
        shapes = published.hpsv3_plus(sizes)
        model = empty(lambda: hpsv3_plus.HPSv3PlusModel(Qwen3VLConfig(**sizes)))
        weights = hpsv3_plus.to_transformers(on_meta(shapes))
        assign_weights(model, weights, "", "hpsv3-plus")
        assert len(weights) == len(shapes) - 1
        # hpsv3++.pth on the hub has 17.6 GB, all of it bfloat16.
        assert sum(math.prod(shape) for shape in shapes.values()) * 2 == pytest.approx(17.6e9, rel=1e-3)
        assert hpsv3_plus.HPSv3Plus.card.weights == round(count(model) / 1e9, 2)

    def test_mps(self):
        shapes = published.mps(VIT_H_14)
        model = empty(lambda: mps.MPSModel(open_clip.clip_config(VIT_H_14)))
        weights = mps.to_transformers(on_meta(shapes))
        assign_weights(model, weights, "", "mps")
        # But for the frequencies of four layers.
        assert len(weights) == len(shapes) - 4
        assert count(model.model) == pytest.approx(986.11e6, rel=1e-4)
        assert mps.MPS.card.weights == round(count(model) / 1e9, 2)

    def test_cycle_reward(self):
        med = published.MED_CONFIG
        assert {name: med[name] for name in cycle_reward.MED} == cycle_reward.MED
        shapes = published.cycle_reward({}, med)
        vision = blip.vision_config({})
        text = blip.text_config(cycle_reward.MED, vision.hidden_size)
        model = empty(lambda: blip.ImageRewardModel(vision, text, cycle_reward.Head(768)))
        assign_weights(model, blip.to_transformers(on_meta(shapes)), "", "cycle-reward")
        assert cycle_reward.CycleReward.card.weights == round(count(model) / 1e9, 2)

    def test_aesthetic(self):
        head = empty(lambda: blip.Score(768))
        assign_weights(head, on_meta(published.score_head(768)), "", "aesthetic")
        # The published file: 3 714 759 bytes, of which 2 883 are the container.
        assert count(head) * 4 == 3714759 - 2883


class TestWrongFiles:
    @pytest.fixture
    def folder(self, tmp_path):
        TINY_REWARDS["image-reward"].save(tmp_path)
        return tmp_path

    def load(self, folder):
        return load_reward("image-reward", path=str(folder))

    def change(self, folder, change):
        weights = torch.load(folder / "ImageReward.pt", weights_only=True)
        change(weights)
        torch.save(weights, folder / "ImageReward.pt")

    def test_missing_and_unexpected_tensors(self, folder):
        self.change(folder, lambda weights: weights.pop("mlp.layers.7.bias"))
        self.change(folder, lambda weights: weights.update({"blip.other": torch.zeros(1)}))
        message = r"ImageReward.pt does not hold .*'image-reward'.*1 \(mlp.layers.7.bias\) missing; 1 \(blip.other\) "
        with pytest.raises(RewardLoadError, match=message):
            self.load(folder)

    def test_shapes(self, folder):
        self.change(folder, lambda weights: weights.update({"mlp.layers.7.bias": torch.zeros(2)}))
        with pytest.raises(RewardLoadError, match=r"mlp.layers.7.bias \(2,\) instead of \(1,\)\) of another shape"):
            self.load(folder)

    def test_another_models_file(self, folder, tmp_path):
        torch.save({"state_dict": published.random_weights(published.score_head(8))}, folder / "ImageReward.pt")
        with pytest.raises(RewardLoadError, match="missing.*layers.0.weight.*unexpected"):
            self.load(folder)

    def test_pickles_of_code_are_refused(self, folder):
        torch.save({"model": torch.nn.Linear(1, 1)}, folder / "ImageReward.pt")
        with pytest.raises(RewardLoadError, match="pickles of other objects are refused"):
            self.load(folder)

    def test_not_a_checkpoint(self, folder):
        (folder / "ImageReward.pt").write_text("<!DOCTYPE html>")
        with pytest.raises(RewardLoadError, match="Could not read the weights of the reward 'image-reward'"):
            self.load(folder)
        torch.save([torch.zeros(1)], folder / "ImageReward.pt")
        with pytest.raises(RewardLoadError, match="to hold the tensors"):
            self.load(folder)

    def test_missing_file(self, folder):
        (folder / "med_config.json").unlink()
        with pytest.raises(RewardLoadError, match="to hold med_config.json of the reward 'image-reward'"):
            self.load(folder)

    def test_broken_config(self, folder):
        (folder / "med_config.json").write_text("{")
        with pytest.raises(RewardLoadError, match="med_config.json to be a JSON file"):
            self.load(folder)

    def clip(self, folder, change):
        """The error of a `CLIPModel` whose tensors are changed."""
        file = Path(save_clip(folder)) / "model.safetensors"
        weights = load_file(file)
        change(weights)
        save_file(weights, file, metadata={"format": "pt"})
        with pytest.raises(RewardLoadError) as caught:
            load_reward("clip-score", path=str(folder), device="cpu")
        return str(caught.value)

    def test_missing_tensors_of_a_transformers_model(self, tmp_path):
        message = self.clip(tmp_path, lambda weights: weights.pop("visual_projection.weight"))
        assert "does not hold the weights of the reward 'clip-score' (CLIPModel, " in message
        assert message.endswith("1 (visual_projection.weight) missing.")

    def test_shapes_of_a_transformers_model(self, tmp_path):
        message = self.clip(tmp_path, lambda weights: weights.update({"visual_projection.weight": torch.zeros(2, 3)}))
        assert "1 (visual_projection.weight (2, 3) instead of (" in message
        assert message.endswith("of another shape.")

    @pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
    def test_cut_off_files_of_a_transformers_model(self, tmp_path, name):
        file = Path(save_clip(tmp_path)) / name
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(RewardLoadError, match="of the reward 'clip-score' from .* Expected a folder saved with"):
            load_reward("clip-score", path=str(tmp_path), device="cpu")

    def test_a_file_where_a_folder_is_needed(self, folder):
        with pytest.raises(RewardLoadError, match=r"'image-reward' to be a folder .* got the file .*ImageReward\.pt"):
            self.load(folder / "ImageReward.pt")

    def test_no_weights(self, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps({**published.FLAN_T5_XL, "num_layers": 1}))
        with pytest.raises(RewardLoadError, match="model.safetensors or pytorch_model.bin"):
            load_reward("vqa-score", path=str(tmp_path))

    @pytest.mark.parametrize("name", sorted({key.split(":")[0] for key in TINY_REWARDS} - {"shapes-oracle"}))
    def test_nowhere(self, name, tmp_path, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(RewardLoadError, match=f"of the reward '{name}'"):
            load_reward(name, path=str(tmp_path / "nowhere"))


def test_a_file_instead_of_a_folder(tmp_path):
    reward = tiny_reward("hps", tmp_path)
    images, prompts = torch.rand(2, 3, 32, 32), ["a", "b"]
    by_file = load_reward("hps", path=str(tmp_path / "HPS_v2_compressed.pt"), tokenizer=str(tmp_path))
    assert torch.equal(by_file(images, prompts), reward(images, prompts))


def test_safetensors(tmp_path):
    """The same scores from a safetensors file as from a pickle."""
    reward = tiny_reward("hps", tmp_path)
    weights = torch.load(tmp_path / "HPS_v2_compressed.pt", weights_only=True)["state_dict"]
    save_file(weights, tmp_path / "hps.safetensors")
    images, prompts = torch.rand(2, 3, 32, 32), ["a", "b"]
    other = load_reward("hps", path=str(tmp_path / "hps.safetensors"), tokenizer=str(tmp_path))
    assert torch.equal(other(images, prompts), reward(images, prompts))

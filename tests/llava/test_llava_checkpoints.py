"""Checkpoints written and read in both layouts, and what is said of those that do not fit."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_checkpoints import GPM, IMAGE, SAFETY, checkpoints

from llava_reward_guide import CheckpointError, ImageError, LlavaReward, RewardConfig, load_image, new_perspective
from llava_reward_guide.untrained import random_backbone, random_reward, save_backbone


@pytest.fixture(scope="module")
def root():
    return checkpoints()[0]


@pytest.fixture(scope="module")
def scores():
    return checkpoints()[1]


def load(checkpoint, **options):
    return LlavaReward.from_pretrained(checkpoint, device="cpu", num_crops=1, **options)


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("name", ["alignment", "preference", "safety"])
def test_our_layout(root, scores, name, merge):
    """Knows its backbone, and everything about its head."""
    reward = load(root / name, merge=merge)
    torch.testing.assert_close(reward.embed([IMAGE], ["a red cube"]), scores[name], atol=1e-5, rtol=0)
    assert reward.config == {"alignment": RewardConfig(), "preference": GPM, "safety": SAFETY}[name]


@pytest.mark.parametrize("name", ["alignment", "preference", "safety"])
def test_published_layout(root, scores, name):
    folder = root / f"{name}-published"
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == [
        "adapter_config.json", "adapter_model.bin", "pytorch_model.bin", "reward_config.yaml",
    ]  # fmt: skip
    names = set(torch.load(folder / "pytorch_model.bin", weights_only=True))
    skip = {"W_q.weight", "W_k.weight", "W_v.weight", "ca_layernorm.weight"} if name != "safety" else set()
    projector = {f"model.vision_embed_tokens.img_projection.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    assert names == {"value_head.weight"} | skip | projector
    assert "model.layers.0.self_attn.qkv_proj.lora_A.weight" in torch.load(
        folder / "lora" / "adapter_model.bin", weights_only=True
    )
    objective = "classification" if name == "safety" else None
    reward = load(folder, backbone=root / "base", objective=objective)
    torch.testing.assert_close(reward.embed([IMAGE], ["a red cube"]), scores[name], atol=1e-5, rtol=0)
    assert reward.config.objective == {"preference": "general-preference", "safety": "classification"}.get(
        name, "bradley-terry"
    )


def test_several_perspectives(root, scores):
    checkpoints = {name: root / name for name in scores}
    reward = load(checkpoints, perspective="safety")
    assert reward.active == "safety"
    for name in [*scores, *scores]:
        reward.set_perspective(name)
        torch.testing.assert_close(reward.embed([IMAGE], ["a red cube"]), scores[name], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="merge=False"):
        load(checkpoints, merge=True)
    with pytest.raises(ValueError, match="Known: alignment"):
        load(checkpoints, perspective="beauty")
    merged = load(root / "alignment")
    with pytest.raises(ValueError, match="Load with `merge=False` to save"):
        merged.save_pretrained(root / "again")
    with pytest.raises(ValueError, match="cannot share the backbone"):
        new_perspective(merged, "second", RewardConfig())


def test_full_finetune(root, scores, tmp_path):
    """A plain folder: the head lies among the weights of the backbone."""
    shutil.copytree(root / "base", tmp_path / "full")
    (tmp_path / "full" / "model.safetensors").unlink()
    head = load_file(root / "alignment" / "head.safetensors")
    weights = load_file(root / "base" / "model.safetensors") | head
    save_file(weights, tmp_path / "full" / "model.safetensors", metadata={"format": "pt"})
    reward = load(tmp_path / "full", full_finetune=True, config=RewardConfig())
    plain = load(root / "alignment", merge=False)
    plain.perspectives["default"].has_adapter = False
    plain.perspectives["default"].projector = plain._base_projector
    plain.set_perspective("default")
    expected = plain.embed([IMAGE], ["a red cube"])
    torch.testing.assert_close(reward.embed([IMAGE], ["a red cube"]), expected, atol=1e-5, rtol=0)
    assert (expected - scores["alignment"]).abs() > 1e-4


@pytest.fixture
def broken(root, tmp_path):
    """A published checkpoint to break."""
    return shutil.copytree(root / "alignment-published", tmp_path / "broken")


def refuses(folder, base, match, **options):
    with pytest.raises(CheckpointError, match=match) as error:
        load(folder, backbone=base, **options)
    assert "\n" not in str(error.value).split(" (")[0]


@pytest.mark.parametrize("name", ["reward_config.yaml", "pytorch_model.bin"])
def test_missing_files(root, broken, name):
    (broken / name).unlink()
    refuses(broken, root / "base", f"Expected '{name}' in .* missing")


def test_missing_lora(root, broken):
    shutil.rmtree(broken / "lora")
    refuses(broken, root / "base", "full_finetune=True")
    assert load(broken, backbone=root / "base", full_finetune=True).score([IMAGE], ["x"]).isfinite().all()
    (broken / "lora").mkdir()
    refuses(broken, root / "base", r"adapter_config\.json.* missing")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"r": 3}, "LoRA of rank 3"),
        ({"use_rslora": True}, "use_rslora"),
        ({"target_modules": ["qkv_proj"]}, "do not fit the target_modules"),
        ({"target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj", "fc1"]}, "no weights for fc1"),
    ],
)
def test_adapter_config_disagrees(root, broken, change, match):
    path = broken / "lora" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refuses(broken, root / "base", match)


def test_unsafe_pickle(root, broken):
    torch.save({"value_head.weight": IMAGE}, broken / "pytorch_model.bin")
    refuses(broken, root / "base", "Could not read tensors")
    (broken / "pytorch_model.bin").write_bytes(b"not tensors")
    refuses(broken, root / "base", "Could not read tensors")
    torch.save([torch.zeros(1)], broken / "pytorch_model.bin")
    refuses(broken, root / "base", "a list, not tensors by name")


def test_config_and_weights_disagree(root, broken):
    config = (broken / "reward_config.yaml").read_text()
    (broken / "reward_config.yaml").write_text(config.replace("attention: true", "attention: false"))
    refuses(broken, root / "base", "unexpected W_k.weight")
    (broken / "reward_config.yaml").write_text("general_preference_tau: 0.1\n")
    refuses(broken, root / "base", "Expected value_head_dim, add_cross_attention")


def test_wrong_backbone(root, broken, tmp_path):
    llava = save_backbone(random_backbone("llava_next", "tiny"), tmp_path / "llava")
    refuses(root / "alignment", llava, "trained on a backbone of type phi3_v, but this one is llava_next")
    refuses(broken, llava, "belongs to another backbone")
    refuses(broken, root / "nowhere", "Could not load the backbone")
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "gpt2"}')
    refuses(broken, tmp_path / "gpt2", "type phi3_v, qwen2_5_vl, llava_next, but got 'gpt2'")
    weights = torch.load(broken / "pytorch_model.bin", weights_only=True)
    weights["value_head.weight"] = torch.zeros(1, 7)
    torch.save(weights, broken / "pytorch_model.bin")
    refuses(broken, root / "base", "hidden size 64 in .* found one for 7")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda weights: weights.pop("model.layers.1.mlp.down_proj.weight"),
            "layers.1.mlp.down_proj.weight is missing",
        ),
        (
            lambda weights: weights.update({"model.norm.weight": torch.ones(7)}),
            r"norm.weight is \(7,\) instead of \(64,",
        ),
    ],
)
def test_backbone_that_lacks_weights(root, tmp_path, change, match):
    """They would be random otherwise."""
    shutil.copytree(root / "base", tmp_path / "base")
    weights = load_file(root / "base" / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    refuses(root / "alignment", tmp_path / "base", match)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("model.safetensors", "Could not read the weights"),
        ("tokenizer.json", "Could not read the tokenizer"),
        ("config.json", "Could not load the backbone"),
    ],
)
def test_corrupt_backbone(root, tmp_path, name, match):
    shutil.copytree(root / "base", tmp_path / "base")
    cut(tmp_path / "base" / name)
    refuses(root / "alignment", tmp_path / "base", match)


@pytest.mark.parametrize("name", ["head.safetensors", "projector.safetensors", "lora/adapter_model.safetensors"])
def test_corrupt_weights(root, tmp_path, name):
    shutil.copytree(root / "alignment", tmp_path / "cut")
    cut(tmp_path / "cut" / name)
    refuses(tmp_path / "cut", root / "base", f"Could not read tensors from '.*{name}'")


def test_layers_that_the_backbone_has_not(root):
    refuses(root / "alignment", root / "base", "`hidden_layer`.* between 0 and 3", config=RewardConfig(hidden_layer=99))


def test_wrong_tokenizer(root, broken, tmp_path):
    shutil.copytree(root / "base", tmp_path / "base")
    random_backbone("qwen2_5_vl", "tiny").tokenizer.save(str(tmp_path / "base" / "tokenizer.json"))
    refuses(broken, tmp_path / "base", r"tokenizer.json that belongs to the backbone")
    tokenizer = json.loads((root / "base" / "tokenizer.json").read_text())
    tokenizer["normalizer"] = None
    (tmp_path / "base" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(
        CheckpointError, match=r"to encode '<\|user\|>\\n' as \[32010, 29871, 13\], but got \[32010, 13\]"
    ):
        load(broken, backbone=tmp_path / "base")


def test_nothing_there(root, tmp_path):
    refuses(tmp_path / "nothing", root / "base", "which is neither")
    refuses("nothing", root / "base", "which is neither")


def test_options(root):
    with pytest.raises(ValueError, match="Known: sdpa, flash_attention_2, eager"):
        load(root / "alignment", attn_implementation="paged")
    with pytest.raises(ValueError, match="Known: 8bit, 4bit"):
        load(root / "alignment", quantize="2bit")
    with pytest.raises(ValueError, match="`batch_size` to be at least 1, but got -1"):
        load(root / "alignment", batch_size=-1)
    with pytest.raises(ValueError, match="`num_crops` to be at least 1, but got 0"):
        LlavaReward.from_pretrained(root / "alignment", num_crops=0)
    with pytest.raises(ImportError, match=r'pip install -e "\.\[flash\]"'):
        load(root / "alignment", attn_implementation="flash_attention_2")
    with pytest.raises(ValueError, match="Known: safetensors, published"):
        load(root / "alignment", merge=False).save_pretrained(root / "again", layout="zip")


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_quantized(root, scores, quantize):
    pytest.importorskip("bitsandbytes")
    reward = load(root / "alignment", quantize=quantize)
    layer = reward.backbone.text_model.layers[0].self_attn.o_proj
    assert type(layer.base_layer).__name__ == {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}[quantize]
    assert type(reward.backbone.projector[0]) is torch.nn.Linear
    found = reward.embed([IMAGE], ["a red cube"])
    assert found.isfinite().all()
    assert (found - scores["alignment"]).abs() < 0.5 * scores["alignment"].abs() + 0.05


def test_published_layout_has_limits(tmp_path):
    reward = random_reward("phi3_v", "tiny", RewardConfig(mean_pooling=True))
    with pytest.raises(ValueError, match="no place for mean_pooling"):
        reward.save_pretrained(tmp_path, layout="published")


def test_load_image(tmp_path):
    IMAGE.save(tmp_path / "good.png")
    assert load_image(tmp_path / "good.png").tobytes() == IMAGE.tobytes()
    on_its_side = Image.Exif()
    on_its_side[274] = 6
    IMAGE.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=on_its_side)
    assert load_image(tmp_path / "turned.png").tobytes() == IMAGE.tobytes()
    data = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.png").write_text("not an image")
    for name in ("cut.png", "text.png"):
        with pytest.raises(ImageError, match=f"{name}.*corrupt"):
            load_image(tmp_path / name)
    with pytest.raises(ImageError, match="no such file"):
        load_image(tmp_path / "none.png")

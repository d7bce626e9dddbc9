"""What other people's checkpoints and backbones hold: options, names of weights, and what is missing or broken."""

from __future__ import annotations

import importlib.util
import json
import shutil

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_checkpoints import IMAGE, checkpoints
from typer.testing import CliRunner

from fk_steer import load_reward
from fk_steer.rewards.loading import RewardLoadError
from llava_reward_guide import CheckpointError, LlavaReward, RewardConfig, new_perspective, random_reward
from llava_reward_guide.attention import check_attention
from llava_reward_guide.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from llava_reward_guide.cli import app
from llava_reward_guide.names import bare
from llava_reward_guide.training.config import TrainingConfig
from llava_reward_guide.untrained import random_backbone


@pytest.fixture(scope="module")
def root():
    return checkpoints()[0]


@pytest.fixture(scope="module")
def plain():
    return checkpoints()[1]["alignment"]


def embed(checkpoint, **options):
    reward = LlavaReward.from_pretrained(checkpoint, device="cpu", num_crops=1, **options)
    return reward.embed([IMAGE], ["a red cube"])


def same(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.fixture
def published(root, tmp_path):
    return shutil.copytree(root / "alignment-published", tmp_path / "published")


@pytest.fixture
def ours(root, tmp_path):
    return shutil.copytree(root / "alignment", tmp_path / "ours")


@pytest.fixture
def base(root, tmp_path):
    return shutil.copytree(root / "base", tmp_path / "base")


def change(folder, **options):
    """Options of a published configuration; None takes one away."""
    path = folder / "reward_config.yaml"
    stored = {**yaml.safe_load(path.read_text()), **options}
    path.write_text(yaml.safe_dump({name: value for name, value in stored.items() if value is not None}))


# Options that change the reward.


@pytest.mark.parametrize(
    ("options", "config"),
    [
        ({"mean_hidden_state": True}, RewardConfig(mean_pooling=True)),
        ({"mean_hidden_state": "true", "layer_id": 32}, RewardConfig(mean_pooling=True)),
        ({"layer_id": 1}, RewardConfig(hidden_layer=1)),
        ({"layer_id": 0, "mean_hidden_state": 1}, RewardConfig(hidden_layer=0, mean_pooling=True)),
        ({"hidden_layer": 2}, RewardConfig(hidden_layer=2)),
        ({"visual_layer": 1}, RewardConfig(visual_layer=1)),
        ({"mean_pooling": True}, RewardConfig(mean_pooling=True)),
        ({"as_coded": True}, RewardConfig(as_coded=True)),
        ({"cls_based": True}, RewardConfig("classification")),
        ({"objective": "classification"}, RewardConfig("classification")),
        ({"general_preference_tau": "2e-1"}, RewardConfig(tau=0.2)),
        # As they are by default, or of the training alone.
        ({"mean_hidden_state": False, "layer_id": 32, "ft_projector": True, "vision_layer_id": -1}, RewardConfig()),
        ({"add_prompt_head": False, "learning_rate": 2e-4, "lora_rank": 128, "max_len": 2048}, RewardConfig()),
        # A Bradley-Terry head has one row whatever its file says, as the released code has it.
        ({"value_head_dim": 2}, RewardConfig()),
    ],
)
def test_published_options_are_honoured(root, published, plain, options, config):
    change(published, **options)
    reward = LlavaReward.from_pretrained(published, backbone=root / "base", device="cpu", num_crops=1)
    assert reward.config == config
    found = reward.embed([IMAGE], ["a red cube"])
    same(found, embed(root / "alignment", config=config))
    if config.mean_pooling or config.hidden_layer is not None or config.visual_layer is not None:
        assert (found - plain).abs() > 1e-3


@pytest.mark.parametrize("section", ["model", "reward", "args"])
@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
def test_published_options_in_sections_and_formats(root, published, section, suffix):
    stored = yaml.safe_load((published / "reward_config.yaml").read_text())
    (published / "reward_config.yaml").unlink()
    stored = {section: {**stored, "deeper": {"mean_hidden_state": True}}}
    text = json.dumps(stored) if suffix == ".json" else yaml.safe_dump(stored)
    (published / f"reward_config{suffix}").write_text(text)
    same(embed(published, backbone=root / "base"), embed(root / "alignment", config=RewardConfig(mean_pooling=True)))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"vision_layer_id": 3}, "no `vision_layer_id`.* got 3"),
        ({"add_prompt_head": True}, "no `add_prompt_head`"),
        ({"add_unpaired_head": True}, "no `add_unpaired_head`"),
        ({"add_img_eos": True}, "no `add_img_eos`"),
        ({"pooling": "max"}, "Unknown options .*: pooling. They may change the reward"),
        ({"layer_id": -1}, "`layer_id` .* got -1"),
        ({"layer_id": "last"}, "`layer_id` .* got 'last'"),
        ({"layer_id": 99}, "`hidden_layer` .* between 0 and 3"),
        ({"mean_hidden_state": "perhaps"}, "`mean_hidden_state` .* true or false, but got 'perhaps'"),
        ({"add_cross_attention": "maybe"}, "`add_cross_attention` .* true or false"),
        ({"general_preference_tau": "warm"}, "`general_preference_tau` .* positive number"),
        ({"general_preference_tau": 0}, "`general_preference_tau` .* positive number"),
        ({"is_general_preference": True, "value_head_dim": 2}, "head of 2 rows.* hold one of 1"),
        ({"is_general_preference": True, "cls_based": True}, "both are true"),
        ({"mean_hidden_state": True, "mean_pooling": False}, "`mean_pooling` and `mean_hidden_state` .* agree"),
        ({"layer_id": 1, "hidden_layer": 2}, "`hidden_layer` and `layer_id` .* agree"),
        ({"model": {"add_cross_attention": False}}, "one value of `add_cross_attention`"),
    ],
)
def test_published_options_are_refused(root, published, options, match):
    change(published, **options)
    with pytest.raises(CheckpointError, match=match) as error:
        embed(published, backbone=root / "base")
    assert str(published) in str(error.value)


def test_quoted_flags_are_no_truths(root, published):
    """Any text is true to Python."""
    change(published, add_cross_attention="false")
    with pytest.raises(CheckpointError, match=r"unexpected W_k\.weight"):
        embed(published, backbone=root / "base")


def test_layer_of_another_backbone(tmp_path, published):
    """The released code reads layer_id on Phi alone."""
    change(published, layer_id=1)
    stored = read_checkpoint(published)
    with pytest.raises(CheckpointError, match="`layer_id`.* got 1.*Qwen25VL whatever it says"):
        stored.on(type(random_backbone("qwen2_5_vl", "tiny")))


@pytest.mark.parametrize(
    ("where", "name", "value", "match"),
    [
        ("config", "mean_hidden_state", True, "Unknown settings .*mean_hidden_state"),
        ("config", "mean_pooling", "perhaps", "`mean_pooling` .* true or false"),
        ("config", "hidden_layer", -1, "`hidden_layer` .* got -1"),
        ("config", "objective", "beauty", "Unknown objective 'beauty'"),
        (None, "mean_pooling", True, "Unknown settings .*mean_pooling"),
        (None, "format_version", 99, "newer version"),
        (None, "config", None, "an object `config`"),
        (None, "backbone", {}, "`model_type` of the backbone"),
    ],
)
def test_our_options_are_refused(root, ours, where, name, value, match):
    path = ours / "llava_reward.json"
    stored = json.loads(path.read_text())
    (stored if where is None else stored[where])[name] = value
    path.write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match=match) as error:
        embed(ours)
    assert str(ours) in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "[1]", "a: [", "\x00\x01", "\ufeff{"])
@pytest.mark.parametrize("name", ["llava_reward.json", "reward_config.yaml", "lora/adapter_config.json", "config.json"])
def test_unreadable_small_files(root, published, ours, name, content):
    folder = ours if name == "llava_reward.json" else published
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError) as error:
        # Before the hub is asked for a backbone.
        LlavaReward.from_pretrained(folder, device="cpu")
    assert str(folder / name) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"peft_type": "IA3"}, "`peft_type` is 'IA3'"),
        ({"bias": "all"}, "`bias` is 'all'"),
        ({"init_lora_weights": "pissa_niter_4"}, "`init_lora_weights` 'pissa_niter_4' changes the backbone"),
        ({"lora_bias": True}, "sets lora_bias"),
        ({"modules_to_save": ["value_head"]}, "sets modules_to_save"),
        ({"lora_alpha": None}, "`lora_alpha` .* a number, but got None"),
        ({"r": "2"}, "`r` .* got '2'"),
        ({"target_modules": {"a": 1}}, "`target_modules`"),
    ],
)
def test_adapters_that_are_not_plain(root, published, settings, match):
    path = published / "lora" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(CheckpointError, match=match):
        embed(published, backbone=root / "base")


# Names of weights.

WRAPPERS = [
    "module.", "_forward_module.", "base_model.model.", "_orig_mod.", "model.", "_fsdp_wrapped_module.",
    "module._orig_mod.", "_forward_module.module.base_model.model.", "module.module.model.",
]  # fmt: skip


def rename(folder, rule):
    for path in (folder / "pytorch_model.bin", folder / "lora" / "adapter_model.bin"):
        weights = torch.load(path, weights_only=True)
        torch.save({rule(key): value for key, value in weights.items()}, path)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_in_the_published_layout(root, published, plain, wrapper):
    rename(published, lambda key: wrapper + key)
    same(embed(published, backbone=root / "base"), plain)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_in_ours(root, ours, plain, wrapper):
    for name in ("head.safetensors", "projector.safetensors", "lora/adapter_model.safetensors"):
        weights = load_file(ours / name)
        save_file({wrapper + key: value for key, value in weights.items()}, ours / name)
    same(embed(ours), plain)


def test_without_any_prefix(root, published, plain):
    rename(published, lambda key: key.removeprefix("model."))
    same(embed(published, backbone=root / "base"), plain)


def test_wrappers_within_names(root, published, plain):
    """Layers compiled one by one, heads kept by peft, an adapter under its name."""

    def rule(key):
        if key.startswith("value_head"):
            return "base_model.model.value_head.modules_to_save.default.weight"
        key = key.replace("layers.0.", "layers.0._orig_mod.").replace("img_projection.", "img_projection._orig_mod.")
        return key.replace("lora_A.weight", "lora_A.default.weight").replace("lora_B.weight", "lora_B.default.weight")

    rename(published, rule)
    path = published / "pytorch_model.bin"
    weights = torch.load(path, weights_only=True)
    weights["base_model.model.value_head.original_module.weight"] = torch.zeros(1, 64)
    torch.save({"module": weights, "global_steps": 3}, path)
    same(embed(published, backbone=root / "base"), plain)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.0.mlp", "layers.0.mlp"),
        ("base_model.model.model.language_model.layers.0.mlp", "language_model.layers.0.mlp"),
        ("language_model.model.layers.0.mlp", "language_model.model.layers.0.mlp"),
        ("module.visual.merger.ln_q.weight", "visual.merger.ln_q.weight"),
        ("model.", ""),
        ("module", "module"),
    ],
)
def test_bare_names(name, expected):
    assert bare(name) == expected


@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "llava_next"])
@pytest.mark.parametrize("wrapper", ["", "module.", "base_model.model."])
def test_wrappers_on_other_backbones(tmp_path, model_type, wrapper):
    torch.manual_seed(0)
    config = RewardConfig(add_cross_attention=False)
    reward = LlavaReward(random_backbone(model_type, "tiny"))
    new_perspective(reward, "first", config, rank=2, alpha=4)
    with torch.no_grad():
        for parameter in reward.trainable():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    reward.eval()
    expected = reward.embed([IMAGE], ["a red cube"])
    reward.save_pretrained(tmp_path, layout="published")
    rename(tmp_path, lambda key: wrapper + key)
    fresh = LlavaReward(random_like(reward, model_type))
    fresh.add_perspective("again", read_checkpoint(tmp_path).on(type(fresh.backbone)), merge=True)
    same(fresh.eval().embed([IMAGE], ["a red cube"]), expected)


def random_like(reward, model_type):
    backbone = random_backbone(model_type, "tiny")
    own = {name.replace(".base_layer.", "."): value for name, value in reward.backbone.state_dict().items()}
    backbone.load_state_dict({name: own[name] for name in backbone.state_dict()})
    return backbone


def test_two_weights_of_one_name(root, published):
    path = published / "pytorch_model.bin"
    weights = torch.load(path, weights_only=True)
    weights["module.value_head.weight"] = weights["value_head.weight"].clone()
    torch.save(weights, path)
    assert embed(published, backbone=root / "base").isfinite().all()
    weights["module.value_head.weight"] += 1
    torch.save(weights, path)
    with pytest.raises(CheckpointError, match="one weight 'value_head.weight' .*'module.value_head.weight'"):
        embed(published, backbone=root / "base")


def test_a_head_of_another_kind_is_no_value_head(root, published):
    path = published / "pytorch_model.bin"
    weights = torch.load(path, weights_only=True)
    weights["unpaired_value_head.weight"] = weights.pop("value_head.weight")
    torch.save(weights, path)
    with pytest.raises(CheckpointError, match=r"Expected value_head\.weight"):
        embed(published, backbone=root / "base")


# The projector.


def test_absent_projector(root, published, ours, plain):
    """Released checkpoints always have it; the backbone's own gives other rewards."""
    path = published / "pytorch_model.bin"
    weights = torch.load(path, weights_only=True)
    torch.save({key: value for key, value in weights.items() if "img_projection" not in key}, path)
    with pytest.raises(CheckpointError, match="Expected the projector, .*img_projection.*ft_projector: false"):
        embed(published, backbone=root / "base")
    change(published, ft_projector=False)
    found = embed(published, backbone=root / "base")
    assert (found - plain).abs() > 1e-3
    (ours / "projector.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"Expected 'projector.safetensors'"):
        embed(ours)
    stored = json.loads((ours / "llava_reward.json").read_text())
    (ours / "llava_reward.json").write_text(json.dumps({**stored, "projector": "backbone"}))
    same(embed(ours), found)


def test_untrained_projector_is_said(root, tmp_path, plain):
    stored = read_checkpoint(root / "alignment").on(type(random_backbone("phi3_v", "tiny")))
    write_checkpoint(Checkpoint(stored.config, stored.head, {}, stored.adapter, stored.backbone), tmp_path / "own")
    assert json.loads((tmp_path / "own" / "llava_reward.json").read_text())["projector"] == "backbone"
    assert (embed(tmp_path / "own") - plain).abs() > 1e-3


def test_partly_absent_projector(root, published):
    path = published / "pytorch_model.bin"
    weights = torch.load(path, weights_only=True)
    del weights["model.vision_embed_tokens.img_projection.2.bias"]
    torch.save(weights, path)
    with pytest.raises(CheckpointError, match=r"missing 2\.bias"):
        embed(published, backbone=root / "base")


def test_adapter_of_a_replaced_projector(root, published):
    """It would be lost."""
    path = published / "lora" / "adapter_model.bin"
    weights = torch.load(path, weights_only=True)
    for half, shape in (("A", (2, 64)), ("B", (64, 2))):
        weights[f"model.vision_embed_tokens.img_projection.2.lora_{half}.weight"] = torch.ones(shape)
    torch.save(weights, path)
    path = published / "lora" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "target_modules": [*config["target_modules"], "img_projection.2"]}))
    with pytest.raises(CheckpointError, match=r"found both .*img_projection\.2"):
        embed(published, backbone=root / "base")


@pytest.mark.parametrize("kind", ["value_head", "img_projection", "W_q", "lora_A"])
def test_tensors_that_were_not_gathered(root, published, kind):
    path = published / ("lora/adapter_model.bin" if kind == "lora_A" else "pytorch_model.bin")
    weights = torch.load(path, weights_only=True)
    torch.save({key: torch.empty(0) if kind in key else value for key, value in weights.items()}, path)
    with pytest.raises(CheckpointError, match=f"{kind}.*zero_to_fp32") as error:
        embed(published, backbone=root / "base")
    assert str(path) in str(error.value)


def test_backbone_that_was_not_gathered(root, base):
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] = torch.empty(0)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"norm\.weight \(0,\).*zero_to_fp32"):
        embed(root / "alignment", backbone=base)


def test_published_weights_as_safetensors(root, published, plain):
    weights = torch.load(published / "pytorch_model.bin", weights_only=True)
    (published / "pytorch_model.bin").unlink()
    save_file(weights, published / "model.safetensors")
    same(embed(published, backbone=root / "base"), plain)


def test_adapter_beside_the_head(root, published, plain):
    for path in (published / "lora").iterdir():
        path.rename(published / path.name)
    (published / "lora").rmdir()
    same(embed(published, backbone=root / "base"), plain)


# Backbones.


def remove(name):
    return lambda folder: (folder / name).unlink()


def write(name, content):
    return lambda folder: (folder / name).write_text(content)


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def shards(content):
    def do(folder):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(content)

    return do


BROKEN_BACKBONES = {
    "no config": (remove("config.json"), "config.json in that folder, but it is missing"),
    "empty config": (write("config.json", ""), "config.json"),
    "half a config": (write("config.json", '{"model_type": '), "config.json"),
    "config is a list": (write("config.json", "[]"), "an object in config.json"),
    "config without a type": (write("config.json", "{}"), "a backbone of type phi3_v"),
    "another architecture": (write("config.json", '{"model_type": "llava"}'), "but got 'llava'"),
    "type is a list": (write("config.json", '{"model_type": ["phi3_v"]}'), "a backbone of type phi3_v"),
    "nothing but a type": (write("config.json", '{"model_type": "phi3_v"}'), "the sizes of the model"),
    "wrong sizes": (write("config.json", '{"model_type": "phi3_v", "hidden_size": "wide"}'), "hidden_size"),
    "no tokenizer": (remove("tokenizer.json"), "tokenizer.json in that folder, but it is missing"),
    "empty tokenizer": (write("tokenizer.json", ""), "tokenizer"),
    "no weights": (remove("model.safetensors"), "its weights in that folder"),
    "truncated weights": (cut, "Could not read the weights"),
    "missing shard": (shards('{"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}'),
                      "model-00002-of-00002.safetensors is missing"),
    "broken index": (shards('{"weight_map"'), "index.json"),
    "empty index": (shards("{}"), "`weight_map`"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_BACKBONES)
def test_broken_backbones(root, base, tmp_path, case):
    """One sentence, and one kind of error, from every way in."""
    damage, match = BROKEN_BACKBONES[case]
    damage(base)
    with pytest.raises(CheckpointError, match=match) as error:
        LlavaReward.from_pretrained(root / "alignment", backbone=base, device="cpu")
    assert "\n" not in str(error.value)
    assert str(base) in str(error.value)
    with pytest.raises(RewardLoadError, match=match):
        load_reward("llava-reward", path=str(root / "alignment"), backbone=str(base), device="cpu")
    IMAGE.save(tmp_path / "a.png")
    arguments = [
        "score",
        tmp_path / "a.png",
        "-c",
        root / "alignment",
        "-p",
        "x",
        "--backbone",
        base,
        "--device",
        "cpu",
    ]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.output.startswith("Error: ")


@pytest.mark.parametrize("place", ["missing", "./missing", "base/missing", "base/config.json"])
def test_missing_backbones(root, base, monkeypatch, place):
    """Of a path that can only be here, the hub is not asked."""
    monkeypatch.chdir(base.parent)
    monkeypatch.setattr("huggingface_hub.file_download.hf_hub_download", _no_hub)
    place = base.parent / place if place == "missing" else place
    with pytest.raises(CheckpointError, match="Expected a folder, (but there is no such folder|which is a file)"):
        LlavaReward.from_pretrained(root / "alignment", backbone=place, device="cpu")


def _no_hub(*_, **__):
    raise AssertionError("asked the hub")


@pytest.mark.parametrize("place", ["missing", "./missing", "base/missing", "base/config.json", "empty"])
def test_missing_checkpoints(base, monkeypatch, tmp_path, place):
    """Found before the hub is asked for anything, the default backbone included."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("huggingface_hub.file_download.hf_hub_download", "llava_reward_guide.checkpoint.snapshot_download"):
        monkeypatch.setattr(name, _no_hub)
    monkeypatch.setattr("llava_reward_guide.loading.backbone_of", _no_hub)
    place = tmp_path / place if place in ("missing", "empty") else place
    with pytest.raises(CheckpointError, match=r"no such folder|which is a file|Expected 'reward_config.yaml'"):
        LlavaReward.from_pretrained(place)
    with pytest.raises(RewardLoadError):
        load_reward("llava-reward", path=str(place))


def test_backbone_on_another_machine(ours):
    stored = json.loads((ours / "llava_reward.json").read_text())
    stored["backbone"]["name"] = "/home/author/phi"
    (ours / "llava_reward.json").write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match="'/home/author/phi'.*no such folder.*what the checkpoint names; pass"):
        embed(ours)


# Attention.


@pytest.mark.parametrize("name", ["flash", "flash_attention_3", "SDPA", "", "paged"])
def test_unknown_attention(root, name, monkeypatch, tmp_path):
    monkeypatch.setattr("llava_reward_guide.loading.find_checkpoint", _no_hub)
    match = "Unknown `attn_implementation` .*Known: sdpa, flash_attention_2, eager"
    with pytest.raises(ValueError, match=match):
        LlavaReward.from_pretrained("owner/repository", attn_implementation=name)
    with pytest.raises(ValueError, match=match):
        load_reward("llava-reward", path="owner/repository", attn_implementation=name)
    with pytest.raises(ValueError, match=match):
        TrainingConfig(attn_implementation=name)
    with pytest.raises(ValueError, match=match):
        random_backbone("phi3_v", "tiny", attn_implementation=name)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    arguments = ["score", tmp_path / "a.png", "-c", "owner/repository", "-p", "x", "--attention", name]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 1
    assert "Known: sdpa" in result.output


def test_attention_without_its_package(root, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "flash_attn" else found(name))
    from llava_reward_guide.training.setup import build_reward

    match = r'pip install -e "\.\[flash\]"'
    flash = {"attn_implementation": "flash_attention_2"}
    with pytest.raises(ImportError, match=match):
        embed(root / "alignment", **flash)
    with pytest.raises(ImportError, match=match):
        embed(root / "alignment", backbone_options=flash)
    with pytest.raises(ImportError, match=match):
        build_reward(TrainingConfig(backbone=str(root / "base"), **flash))
    with pytest.raises(ImportError, match=match):
        random_reward("phi3_v", "tiny", **flash)


def test_attention_on_devices(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    check_attention("flash_attention_2", "cuda", "bfloat16")
    with pytest.raises(ValueError, match="Expected a CUDA device .* got 'cpu'"):
        check_attention("flash_attention_2", "cpu", "bfloat16")
    with pytest.raises(ValueError, match="float16 or bfloat16 .* got float32"):
        check_attention("flash_attention_2", "cuda", "float32")
    check_attention("eager", "cpu", "float32")
    with pytest.raises(ValueError, match="Did you mean 'flash_attention_2'"):
        check_attention("flash_attention2")

"""Training of tiny random backbones for a few steps."""

from __future__ import annotations

import json
import math
import os
import random
import signal
from pathlib import Path

import pytest
import torch
from accelerate import debug_launcher
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from llava_reward_guide import LlavaReward, RewardConfig, new_perspective
from llava_reward_guide.lora import Adapter
from llava_reward_guide.losses import reward_loss
from llava_reward_guide.report import pair_reliability, reliability, reward_distribution
from llava_reward_guide.train import app
from llava_reward_guide.training import NonFiniteError, TrainingConfig, train
from llava_reward_guide.training.config import load_config, shipped_configs
from llava_reward_guide.training.progress import Monitor
from llava_reward_guide.training.setup import count_parameters, make_trainable
from llava_reward_guide.training.state import ExponentialMovingAverage
from llava_reward_guide.training.trainer import Trainer
from llava_reward_guide.untrained import random_backbone, save_backbone


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two backbones; pairs in which the brighter image is chosen, and the same images labelled."""
    folder = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    for name in ("llava_next", "phi3_v"):
        save_backbone(random_backbone(name, "tiny"), folder / name)
    rng = random.Random(0)
    pairs, labels = [], []
    for index in range(20):
        for name, low in (("dark", 0), ("bright", 160)):
            colour = tuple(low + rng.randrange(90) for _ in range(3))
            Image.new("RGB", (56, 56), colour).save(folder / f"{name}{index}.png")
            labels.append({"path": f"{name}{index}.png", "label": int(low > 0), "prompt": "light"})
        pairs.append(
            {"prompt": "light", "chosen_path": f"bright{index}.png", "reject_path": f"dark{index}.png"}
            if index % 3
            else {"prompt": ["light", "a wall"], "chosen_path": f"bright{index}.png", "reject_path": f"dark{index}.png"}
        )
    for name, items in (("pairs", pairs), ("labels", labels), ("few", pairs[:4])):
        (folder / f"{name}.json").write_text(json.dumps(items))
    return folder


def config(data: Path, output: Path, **changes) -> TrainingConfig:
    settings = {
        "train_data": str(data / "pairs.json"),
        "output": str(output),
        "backbone": str(data / "llava_next"),
        "add_cross_attention": False,
        "tau": 1.0,
        "lora_rank": 4,
        "lora_alpha": 8,
        "batch_size": 4,
        "micro_batch_size": 4,
        "max_steps": 6,
        "learning_rate": 3e-3,
        "mixed_precision": "no",
        "dtype": "float32",
        "gradient_checkpointing": False,
        "num_workers": 0,
        **changes,
    }
    return TrainingConfig(**settings)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = ("head.safetensors", "projector.safetensors", "lora/adapter_model.safetensors")
    return {name: value for file in files for name, value in load_file(folder / file).items()}


def log(folder: Path, name: str = "loss") -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def assert_same(a: Path, b: Path, tolerance: float) -> None:
    torch.testing.assert_close(weights(a), weights(b), rtol=tolerance, atol=tolerance)


def pictures(data: Path) -> list[Image.Image]:
    return [Image.open(data / name) for name in ("bright1.png", "dark1.png")]


def test_learns_and_loads_without_conversion(data, tmp_path):
    result = train(
        config(
            data,
            tmp_path,
            max_steps=40,
            validation_data=str(data / "few.json"),
            validate_every=10,
            published_layout=True,
            log_with="tensorboard",
            cache_images=True,
        )  # fmt: skip
    )
    losses = log(tmp_path)
    assert result.finished
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5]), losses
    assert result.validation["accuracy"] == 1
    assert len(log(tmp_path, "validation_ece")) == 4
    assert (tmp_path / "validation" / "reliability.png").stat().st_size > 1000
    report = json.loads((tmp_path / "validation" / "evaluation.json").read_text())
    assert report["rewards"]["prompts"]["light"]["n"] == 6
    assert any((tmp_path / "logs").rglob("events.out.tfevents*"))
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    images = pictures(data)
    scores = {}
    for name in ("final", "final/published"):
        reward = LlavaReward.from_pretrained(tmp_path / name, backbone=data / "llava_next", device="cpu")
        scores[name] = reward.score(images, ["light"] * 2)
        assert scores[name][0] > scores[name][1]
    torch.testing.assert_close(scores["final"], scores["final/published"])
    # The checkpoint names its backbone itself.
    best = LlavaReward.from_pretrained(tmp_path / "best", device="cpu").score(images, ["light"] * 2)
    assert best[0] > best[1]


@pytest.mark.parametrize(
    "objective", [RewardConfig(add_cross_attention=False), RewardConfig("general-preference", 4, tau=0.5)]
)
def test_a_tie_is_half_right(objective):
    chosen = torch.randn(3, objective.value_head_dim, dtype=torch.bfloat16)
    rejected = chosen.clone()
    if objective.value_head_dim == 1:
        chosen += torch.tensor([[1.0], [0.0], [-1.0]])
    else:
        # The skew-symmetric score of (1, 0, ...) over (0, 1, ...) is 1.
        chosen[::2], rejected[::2] = 0, 0
        chosen[0, 0] = rejected[0, 1] = chosen[2, 1] = rejected[2, 0] = 1
    loss, correct = reward_loss(objective, torch.cat([chosen, rejected]), None)
    assert correct.tolist() == [1, 0.5, 0]
    assert loss[0] < loss[1] < loss[2]
    assert loss[1].item() == pytest.approx(math.log(2))


def test_training_accuracy_of_ties(data, tmp_path):
    """A reward that says the same of everything is right as often as a coin; validation takes ties for wrong."""
    reward = LlavaReward(random_backbone("llava_next", "tiny"))
    new_perspective(reward, "same", RewardConfig(add_cross_attention=False), rank=2)
    with torch.no_grad():
        reward.head.value_head.weight.zero_()
    # The first step of a warm-up has a learning rate of 0.
    settings = config(data, tmp_path, max_steps=1, validation_data=str(data / "few.json"))
    result = train(settings, reward)
    assert log(tmp_path, "accuracy") == [0.5]
    assert log(tmp_path) == [pytest.approx(math.log(2))]
    assert result.validation["accuracy"] == 0


def _train_in_process(settings: TrainingConfig) -> None:
    torch.set_num_threads(1)
    train(settings)


def test_two_processes_equal_one(data, tmp_path):
    changes = {"lora_dropout": 0.0, "validation_data": str(data / "few.json"), "max_steps": 4, "learning_rate": 3e-4}
    train(config(data, tmp_path / "one", **changes))
    # The same global batch in passes of one item by two processes: two passes each.
    AcceleratorState._reset_state(reset_partial_state=True)
    debug_launcher(_train_in_process, (config(data, tmp_path / "two", micro_batch_size=1, **changes),), 2)
    assert min(log(tmp_path / "one")) > 0.01
    assert_same(tmp_path / "one" / "final", tmp_path / "two" / "final", 1e-4)
    assert log(tmp_path / "two") == pytest.approx(log(tmp_path / "one"), rel=1e-4)
    for name in ("validation_loss", "validation_accuracy", "validation_ece"):
        assert log(tmp_path / "two", name) == pytest.approx(log(tmp_path / "one", name), rel=1e-3)


def _at_step(monkeypatch, step: int, number: int) -> None:
    """Send a signal to this process as soon as it has done a step."""
    advance = Monitor.advance

    def then_signal(self, at, figures, write):
        advance(self, at, figures, write)
        if at == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Monitor, "advance", then_signal)


def test_killed_run_goes_on_exactly(data, tmp_path, monkeypatch):
    """With dropout, an average, accumulation and a new permutation on the way."""
    changes = {"ema_decay": 0.9, "save_every": 2, "batch_size": 6, "micro_batch_size": 3, "max_steps": 8}
    changes["learning_rate"] = 3e-4
    train(config(data, tmp_path / "whole", **changes))
    # There is still something to learn where the two could part.
    assert min(log(tmp_path / "whole")) > 0.01
    step = random.SystemRandom().randrange(3, 8)
    run = config(data, tmp_path / "killed", **changes)
    child = os.fork()
    if child == 0:
        _at_step(monkeypatch, step, signal.SIGKILL)
        train(run)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert not (tmp_path / "killed" / "final").exists()
    result = train(run)
    assert result.finished
    assert_same(tmp_path / "whole" / "final", tmp_path / "killed" / "final", 1e-6)
    assert log(tmp_path / "killed") == pytest.approx(log(tmp_path / "whole"), rel=1e-6)
    with pytest.raises(ValueError, match="learning_rate"):
        train(config(data, tmp_path / "killed", **{**changes, "learning_rate": 1e-3}))


def test_torn_files(data, tmp_path, monkeypatch):
    """A log whose last line was cut, and a crash in the middle of a checkpoint."""
    run = config(data, tmp_path, max_steps=2)
    train(run)
    whole = (tmp_path / "log.jsonl").read_text()
    (tmp_path / "log.jsonl").write_text(whole + '{"step": 3, "lo')
    train(run)
    assert (tmp_path / "log.jsonl").read_text() == whole
    trainer, before = Trainer(run), weights(tmp_path / "final")
    with torch.no_grad():
        trainer.reward.head.value_head.weight.add_(1)

    def crash(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Adapter, "write", crash)
        with pytest.raises(KeyboardInterrupt):
            trainer._save(tmp_path / "final")
    torch.testing.assert_close(weights(tmp_path / "final"), before, rtol=0, atol=0)
    trainer._save(tmp_path / "final")
    assert not torch.equal(weights(tmp_path / "final")["value_head.weight"], before["value_head.weight"])
    assert sorted(path.name for path in tmp_path.iterdir() if "." in path.name) == ["config.yaml", "log.jsonl"]
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ValueError, match=r"settings of the run .*config\.yaml"):
        train(run)


def test_sigterm_saves_and_exits(data, tmp_path, monkeypatch):
    run = config(data, tmp_path / "stopped")
    with monkeypatch.context() as patch:
        _at_step(patch, 2, signal.SIGTERM)
        result = train(run)
    assert (result.finished, result.step) == (False, 2)
    assert train(run).finished
    train(config(data, tmp_path / "whole"))
    assert_same(tmp_path / "whole" / "final", tmp_path / "stopped" / "final", 1e-6)


def test_scopes_and_checkpointing(data, tmp_path):
    train(config(data, tmp_path / "all", max_steps=2, lora_dropout=0.0))
    train(config(data, tmp_path / "again", max_steps=2, lora_dropout=0.0, gradient_checkpointing=True))
    train(config(data, tmp_path / "lora", max_steps=2, lora_dropout=0.0, optimizer_scope="lora_only"))
    assert_same(tmp_path / "all" / "final", tmp_path / "again" / "final", 1e-5)
    fresh = LlavaReward(random_backbone("llava_next", "tiny"))
    before, after, lora = (load_file(path) for path in (
        data / "llava_next" / "model.safetensors",
        tmp_path / "all" / "final" / "projector.safetensors",
        tmp_path / "lora" / "final" / "projector.safetensors",
    ))  # fmt: skip
    (name,) = (name for name in before if name.endswith("multi_modal_projector.linear_1.weight"))
    (own,) = (name for name in after if name.endswith("linear_1.weight"))
    assert fresh.backbone.projector_name in own
    torch.testing.assert_close(lora[own], before[name], rtol=0, atol=0)
    assert (after[own] - before[name]).abs().max() > 1e-4


def test_phi_with_skip_ca_on_labels(data, tmp_path):
    """All parts of the paper's model get gradients; autocast in bfloat16."""
    settings = config(
        data, tmp_path, train_data=str(data / "labels.json"), validation_data=str(data / "labels.json"),
        backbone=str(data / "phi3_v"), objective="classification", add_cross_attention=True, num_crops=1,
        batch_size=2, micro_batch_size=1, max_steps=2, mixed_precision="bf16", dtype="bfloat16", warmup_ratio=0,
    )  # fmt: skip
    reward = LlavaReward(random_backbone("phi3_v", "tiny", num_crops=1, dtype=torch.bfloat16))
    new_perspective(reward, "safety", settings.reward_config(), rank=2)
    before = {name: value.clone() for name, value in reward.named_parameters()}
    result = train(settings, reward)
    assert {"auc", "f1", "f1_unsafe", "ece"} <= result.validation.keys()
    for name, value in reward.named_parameters():
        trained = name.startswith("head.") or "img_projection" in name and "_base" not in name or ".lora_" in name
        assert value.requires_grad == trained, name
        if trained:
            assert value.dtype == torch.float32
            # LoRA's A stands still as long as B is zero.
            assert "lora_A" in name or not torch.equal(value, before[name].float()), name
        else:
            torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_full_finetune(data, tmp_path):
    train(config(data, tmp_path, full_finetune=True, objective="general-preference", value_head_dim=4))
    reward = LlavaReward.from_pretrained(tmp_path / "final", full_finetune=True, device="cpu")
    assert reward.config == RewardConfig("general-preference", 4, tau=1.0, add_cross_attention=False)
    name = next(name for name, _ in reward.backbone.named_parameters() if name.endswith("embed_tokens.weight"))
    trained = reward.backbone.get_parameter(name)
    original = load_file(data / "llava_next" / "model.safetensors")
    (key,) = (key for key in original if key.endswith("embed_tokens.weight"))
    assert (trained - original[key]).abs().max() > 1e-4
    assert reward.embed(pictures(data), ["light"] * 2).shape == (2, 4)


def test_unreadable_images_are_reported(data, tmp_path):
    items = json.loads((data / "pairs.json").read_text())[:9]
    (data / "broken.png").write_bytes(b"nothing")
    items.insert(1, {"prompt": "light", "chosen_path": "broken.png", "reject_path": "dark1.png"})
    (data / "some.json").write_text(json.dumps(items))
    for check in (True, False):
        folder = tmp_path / str(check)
        train(config(data, folder, train_data=str(data / "some.json"), check_images=check, batch_size=8, max_steps=3))
        lines = [json.loads(line)["skipped"] for line in (folder / "skipped.jsonl").read_text().splitlines()]
        assert lines
        assert all("broken.png" in line and line.startswith("Item 1:") for line in lines)


def test_loss_that_is_not_finite(data, tmp_path):
    reward = LlavaReward(random_backbone("llava_next", "tiny"))
    new_perspective(reward, "broken", RewardConfig(add_cross_attention=False), rank=2)
    with torch.no_grad():
        reward.head.value_head.weight[0, 0] = torch.nan
    before = {name: value.clone() for name, value in reward.named_parameters()}
    with pytest.raises(NonFiniteError, match="step 0"):
        train(config(data, tmp_path), reward)
    (path,) = tmp_path.glob("not-finite-*.json")
    content = json.loads(path.read_text())
    assert len(content["items"]) == 4
    assert content["items"][0]["loss"] == "nan"
    assert content["items"][0]["item"]["chosen_path"].startswith("bright")
    torch.testing.assert_close(dict(reward.named_parameters()), before, rtol=0, atol=0, equal_nan=True)


def test_data_must_fit_the_objective(data, tmp_path):
    with pytest.raises(ValueError, match="Expected labelled images"):
        train(config(data, tmp_path, objective="classification"))


def test_average():
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    average = ExponentialMovingAverage([parameter], 0.5)
    expected = 1.0
    for count in range(1, 12):
        with torch.no_grad():
            parameter += 1
        average.update()
        decay = min(0.5, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * parameter.item()
    with average.applied():
        assert parameter.item() == pytest.approx(expected)
    assert parameter.item() == 12


def test_reliability():
    probability = torch.tensor([0.15, 0.15, 0.95, 0.95, 0.95, 1.0])
    found = reliability(probability, torch.tensor([0, 1, 1, 1, 0, 1]))
    assert found.count == [0, 2, 0, 0, 0, 0, 0, 0, 0, 4]
    assert found.frequency[1] == 0.5
    # Bins: |0.5 - 0.15| of two predictions, |0.75 - 0.9625| of four.
    assert found.ece == pytest.approx((2 * 0.35 + 4 * 0.2125) / 6)
    pairs = pair_reliability(torch.tensor([0.9, 0.9, 0.3]), bins=2)
    assert pairs.count == [3, 3]
    assert pairs.frequency[1] == pytest.approx(2 / 3)
    assert pairs.ece == pytest.approx(abs((0.9 + 0.9 + 0.7) / 3 - 2 / 3))


def test_reward_distribution():
    found = reward_distribution([("a", "1", 0.0), ("a", "2", 2.0), ("b", "3", 5.0), ("a", "2", 2.0)])
    assert found["prompts"]["a"] == {"n": 2, "mean": 1.0, "std": 1.0, "min": 0.0, "max": 2.0}
    assert found["std_between_prompts"] == 2
    assert found["std_within_prompts"] == pytest.approx((2 / 3) ** 0.5)


def test_shipped_recipes():
    names = shipped_configs()
    assert len(names) == 15
    for name in names:
        recipe = load_config(name)
        kind, _, perspective = name.rpartition("-")
        assert recipe.perspective == perspective
        assert (recipe.objective == "classification") == (perspective == "safety")
        assert (recipe.objective == "general-preference") == (perspective == "gpm")
        assert recipe.value_head_dim == (2 if perspective == "gpm" else 1)
        assert recipe.add_cross_attention == (kind == "phi3v")
        # The defaults are the same recipe.
        default = TrainingConfig()
        for field in ("learning_rate", "adam_beta2", "batch_size", "lora_rank", "lora_dropout", "warmup_ratio", "seed"):
            assert getattr(recipe, field) == getattr(default, field)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": 1}, "Unknown settings colour"),
        ({"batch_size": "many"}, "`batch_size` to be int"),
        ({"objective": "guess"}, "Unknown objective"),
        ({"optimizer_scope": "none"}, "lora_only"),
        ({"learning_rate": 0}, "positive"),
        ({"full_finetune": True, "optimizer_scope": "lora_only"}, "full_finetune"),
        ({"max_steps": 0}, "`max_steps` to be positive"),
        ({"lora_rank": 0}, "`lora_rank` to be positive"),
        ({"num_crops": 0}, "`num_crops` to be positive"),
        ({"ema_decay": 2.0}, "`ema_decay` to be at least 0 and below 1"),
        ({"mixed_precision": "no"}, "`dtype` 'float32' with `mixed_precision` 'no'"),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        load_config("phi3v-alignment", changes)


def test_precision_without_mixing():
    for changes in ({"dtype": "float32"}, {"optimizer_scope": "lora_only"}, {"full_finetune": True, "lora_rank": 0}):
        load_config("phi3v-alignment", {"mixed_precision": "no", **changes})


def test_command_line(data, tmp_path):
    settings = config(data, tmp_path / "run", max_steps=2)
    (tmp_path / "config.yaml").write_text(
        "\n".join(f"{name}: {json.dumps(value)}" for name, value in settings.to_dict().items())
    )
    result = CliRunner().invoke(app, ["--config", str(tmp_path / "config.yaml"), "--learning-rate", "1e-3"])
    assert result.exit_code == 0, result.output
    assert "learning_rate: 0.001" in (tmp_path / "run" / "config.yaml").read_text()
    assert log(tmp_path / "run", "learning_rate")[0] == 0
    result = CliRunner().invoke(app, ["--config", "phi4"])
    assert result.exit_code == 1
    assert "phi3v-alignment" in result.output


def test_trained_parameters_at_full_size():
    reward = LlavaReward(random_backbone("phi3_v", "full", "meta", torch.bfloat16).requires_grad_(False))
    recipe = load_config("phi3v-alignment")
    with torch.device("meta"):
        new_perspective(reward, "alignment", recipe.reward_config(), recipe.lora_rank, recipe.lora_alpha)
    make_trainable(reward, recipe)
    count = count_parameters(reward)
    # r (in + out) for qkv_proj, o_proj, gate_up_proj, down_proj of 32 layers.
    assert count.adapter == 32 * 128 * (3072 + 9216 + 3072 + 3072 + 3072 + 16384 + 8192 + 3072)
    assert count.projector == 4096 * 3072 + 3072 + 3072 * 3072 + 3072
    assert count.head == 3 * 3072 * 3072 + 3072 + 3072
    assert count.trainable == count.adapter + count.projector + count.head

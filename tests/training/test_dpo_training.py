"""Runs of a few steps on tiny random pipelines."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import debug_launcher
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from fk_steer.cli.main import app
from fk_steer.testing.pipelines import CALLS, row_generators, sd, sdxl
from fk_steer.training import DPOConfig, load_config, train_dpo
from fk_steer.training.data import DrawSampler, Preferences
from fk_steer.training.denoisers import denoiser_of
from fk_steer.training.trained import WEIGHTS, layers_of, prepare
from fk_steer.training.trainer import Trainer, _accelerator
from llava_reward_guide.training.progress import Monitor


def picture(kind: int, seed: int) -> Image.Image:
    """Bright ones and dark ones."""
    rng = random.Random(seed)
    low = 160 if kind == 0 else 0
    image = Image.new("RGB", (20, 16))
    image.putdata([tuple(low + rng.randrange(90) for _ in range(3)) for _ in range(320)])
    return image


def preferences(count: int = 8) -> Preferences:
    rows = [
        {
            "caption": ("a red circle", "two blue squares")[index % 2],
            "jpg_0": picture(index % 2, index),
            "jpg_1": picture(1 - index % 2, index),
            "label_0": 1 - index % 2,
        }
        for index in range(count)
    ]
    return Preferences(rows)


def config(output: Path, **changes: Any) -> DPOConfig:
    settings = {
        "output": str(output), "lora_rank": 4, "batch_size": 4, "micro_batch_size": 4, "steps": 4, "beta": 50.0,
        "learning_rate": 3e-3, "warmup": 0, "save_every": 2, **changes,
    }  # fmt: skip
    return DPOConfig(**settings)


def log(folder: Path, name: str = "loss") -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "final" / WEIGHTS)


def assert_same(a: Path, b: Path, tolerance: float) -> None:
    torch.testing.assert_close(weights(a), weights(b), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("family", sorted(CALLS))
def test_learns_and_pipelines_load_it(family, tmp_path):
    """Of every family: the loss falls, and a pipeline with the weights draws what the trained one does."""
    make, call = CALLS[family]
    options = {"resolution": 16, "text_length": 16} if family in ("sd3", "flux") else {}
    pipe = make()
    # All pairs at every step, at one timestep, so that chance decides little.
    options |= {"batch_size": 8, "micro_batch_size": 8, "timesteps": [400], "beta": 500.0}
    result = train_dpo(config(tmp_path, steps=10, lora_layers="linear", **options), pipe, preferences())
    losses = log(tmp_path)
    # The two are equal at first.
    assert losses[0] == pytest.approx(0.6931, abs=1e-4)
    assert log(tmp_path, "accuracy")[0] == 0.5
    assert losses[-1] < 0.67, losses
    assert sum(log(tmp_path, "accuracy")[-3:]) / 3 > 0.7
    fresh = make()

    def draw(one: Any) -> torch.Tensor:
        generators = row_generators(5)
        return one("a red circle", num_inference_steps=2, generator=generators, output_type="pt", **call).images

    before = draw(fresh)
    fresh.load_lora_weights(result.weights)
    torch.testing.assert_close(draw(fresh), draw(pipe), rtol=1e-4, atol=1e-4)
    assert (draw(fresh) - before).abs().max() > 1e-3


def test_convolutions_are_loaded_too(tmp_path):
    pipe = sd()
    result = train_dpo(config(tmp_path, lora_layers="all", lora_alpha=8, lora_rank=2), pipe, preferences())
    names = layers_of(sd().unet, "all")
    assert any(name.endswith("conv1") for name in names)
    fresh = sd()
    fresh.load_lora_weights(result.weights)
    x, t, text = torch.randn(1, 4, 8, 8), torch.tensor([100]), torch.randn(1, 5, 32)
    with torch.no_grad():
        found, expected = (one.unet(x, t, text).sample for one in (fresh, pipe))
        pipe.unet.disable_adapters()
        plain = pipe.unet(x, t, text).sample
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (plain - expected).abs().max() > 1e-3


def test_the_reference_is_the_model_without_its_adapter(tmp_path):
    """To float tolerance that of a frozen copy, also after training; and what full fine-tuning compares with."""
    frozen, pipe = sd().unet, sd()
    denoiser = denoiser_of(pipe)
    trained = prepare(denoiser, config(tmp_path))
    with torch.no_grad():
        for parameter in trained.parameters:
            parameter.add_(0.1)
    x, t, text = torch.randn(2, 4, 8, 8), torch.tensor([7, 700]), torch.randn(2, 5, 32)
    with torch.no_grad():
        expected = frozen(x, t, text).sample
        with trained.reference() as module:
            torch.testing.assert_close(module(x, t, text).sample, expected, rtol=1e-5, atol=1e-6)
        assert (pipe.unet(x, t, text).sample - expected).abs().max() > 0.01
    assert all("lora" in name for name, one in pipe.unet.named_parameters() if one.requires_grad)
    assert not any(one.requires_grad for one in [*pipe.vae.parameters(), *pipe.text_encoder.parameters()])


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_going_on_from_lora_begins_with_it_and_compares_with_it(family, tmp_path):
    """The first step finds the model and its reference equal, both the model with the first run's LoRA; the second
    run's LoRA alone is what came of both, and the first run's is as it was."""
    make = CALLS[family][0]
    first = train_dpo(config(tmp_path / "first", steps=3, learning_rate=1e-2, lora_rank=2), make(), preferences())
    before = weights(tmp_path / "first")
    settings = config(tmp_path / "second", steps=3, learning_rate=1e-2, lora=str(first.weights), lora_rank=16)
    pipe = make()
    second = train_dpo(settings, pipe, preferences())
    for errors in ("chosen_error", "rejected_error"):
        own, reference = log(tmp_path / "second", errors), log(tmp_path / "second", f"reference_{errors}")
        assert own[0] == pytest.approx(reference[0], rel=1e-5)
        assert own[-1] != pytest.approx(reference[-1], rel=1e-5)
    # The reference is the model with the first LoRA: at once, and still at the end.
    base = make()
    base.load_lora_weights(first.weights)
    after = make()
    after.load_lora_weights(second.weights)
    call = {**CALLS[family][1], "num_inference_steps": 2, "output_type": "pt"}

    def image(one):
        return one("a red circle", generator=torch.Generator().manual_seed(0), **call).images

    denoiser = denoiser_of(pipe)
    found = weights(tmp_path / "second")
    assert found.keys() == before.keys()
    assert all(found[name].shape == before[name].shape for name in found)
    assert max(float((found[name] - before[name]).abs().max()) for name in found) > 1e-3
    torch.testing.assert_close(weights(tmp_path / "first"), before)
    torch.testing.assert_close(image(pipe), image(after), atol=1e-4, rtol=1e-4)
    denoiser.module.set_adapter("reference")
    torch.testing.assert_close(image(pipe), image(base), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(image(after), image(base), atol=1e-4)


def test_a_run_that_goes_on_from_lora_is_killed_and_goes_on_exactly(tmp_path, monkeypatch):
    first = train_dpo(config(tmp_path / "first", steps=2, learning_rate=1e-2), sd(), preferences())
    changes = {"steps": 4, "save_every": 1, "learning_rate": 1e-2, "lora": str(first.weights)}
    train_dpo(config(tmp_path / "whole", **changes), sd(), preferences())
    with monkeypatch.context() as patched:
        _at_step(patched, 2, signal.SIGTERM)
        assert not train_dpo(config(tmp_path / "parts", **changes), sd(), preferences()).finished
    train_dpo(config(tmp_path / "parts", **changes), sd(), preferences())
    assert_same(tmp_path / "parts", tmp_path / "whole", 1e-6)
    assert log(tmp_path / "parts", "reference_chosen_error") == log(tmp_path / "whole", "reference_chosen_error")


def test_full_fine_tuning_begins_as_lora_does_and_saves_a_pipeline(tmp_path):
    pipe = sd()
    result = train_dpo(config(tmp_path / "full", full=True, steps=3, learning_rate=1e-3), pipe, preferences())
    train_dpo(config(tmp_path / "lora", steps=1), sd(), preferences())
    # The same pairs, timesteps and noise, and the same reference.
    for name in ("chosen_error", "reference_rejected_error"):
        assert log(tmp_path / "full", name)[0] == pytest.approx(log(tmp_path / "lora", name)[0], rel=1e-5)
    assert log(tmp_path / "full")[-1] < 0.69
    fresh = type(pipe).from_pretrained(result.weights)
    torch.testing.assert_close(fresh.unet.state_dict(), pipe.unet.state_dict())
    assert not torch.equal(fresh.unet.conv_in.weight, sd().unet.conv_in.weight)


def test_sdxl_gets_sizes_and_nothing_for_left_out_captions(tmp_path):
    pipe = sdxl()
    pipe.register_to_config(force_zeros_for_empty_prompt=True)
    denoiser = denoiser_of(pipe)
    conditions = denoiser.conditions(["a red circle", ""])
    given, _, pooled, _ = pipe.encode_prompt("a red circle", do_classifier_free_guidance=False)
    torch.testing.assert_close(conditions["text"][0], given[0])
    torch.testing.assert_close(conditions["pooled"][0], pooled[0])
    assert not conditions["text"][1].any() and not conditions["pooled"][1].any()
    seen = []

    def spy(module, arguments, named):
        seen.append(named["added_cond_kwargs"]["time_ids"])

    pipe.unet.register_forward_pre_hook(spy, with_kwargs=True)
    train_dpo(config(tmp_path, steps=1), pipe, preferences())
    # Pictures of 16 x 20, of which the middle square is taken; chosen and rejected, reference and model.
    assert [ids.tolist() for ids in seen] == [[[16.0, 20.0, 0.0, 2.0, 16.0, 16.0]] * 8] * 2


def test_sft_and_ipo(tmp_path):
    train_dpo(config(tmp_path / "sft", loss="sft", steps=12), sd(), preferences())
    losses = log(tmp_path / "sft")
    assert sum(losses[-4:]) < sum(losses[:4])
    assert not log(tmp_path / "sft", "accuracy")
    train_dpo(config(tmp_path / "dpo", steps=1), sd(), preferences())
    assert losses[0] == pytest.approx(log(tmp_path / "dpo", "chosen_error")[0], rel=1e-5)
    train_dpo(config(tmp_path / "ipo", loss="ipo", steps=12), sd(), preferences())
    assert log(tmp_path / "ipo")[0] == pytest.approx(0.25)
    assert sum(log(tmp_path / "ipo")[-3:]) / 3 < 0.24


def test_passes_caches_and_checkpointing_change_nothing(tmp_path):
    train_dpo(config(tmp_path / "plain"), sd(), preferences())
    changes = {"micro_batch_size": 1, "cache_latents": True, "gradient_checkpointing": True}
    train_dpo(config(tmp_path / "other", **changes), sd(), preferences())
    assert_same(tmp_path / "plain", tmp_path / "other", 2e-4)
    assert log(tmp_path / "other") == pytest.approx(log(tmp_path / "plain"), rel=1e-4)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision(precision, dtype, tmp_path):
    train_dpo(config(tmp_path / "whole"), sd(), preferences())
    AcceleratorState._reset_state(reset_partial_state=True)
    pipe = sd().to(dtype)
    train_dpo(config(tmp_path / "half", mixed_precision=precision), pipe, preferences())
    assert pipe.unet.conv_in.weight.dtype == dtype
    # It learns as in float32, by gradients that are scaled back.
    assert log(tmp_path / "half")[-1] == pytest.approx(log(tmp_path / "whole")[-1], abs=0.05)
    assert log(tmp_path / "half")[-1] < 0.69
    assert {value.dtype for value in weights(tmp_path / "half").values()} == {torch.float32}
    assert log(tmp_path / "half")[0] == pytest.approx(log(tmp_path / "whole")[0], rel=1e-3)
    assert log(tmp_path / "half", "chosen_error")[0] == pytest.approx(
        log(tmp_path / "whole", "chosen_error")[0], rel=0.05
    )
    AcceleratorState._reset_state(reset_partial_state=True)


def _train_in_process(settings: DPOConfig) -> None:
    torch.set_num_threads(1)
    train_dpo(settings, sd(), preferences())


def test_two_processes_equal_one(tmp_path):
    changes = {"caption_dropout": 0.3, "flip": True, "random_crop": True}
    train_dpo(config(tmp_path / "one", **changes), sd(), preferences())
    AcceleratorState._reset_state(reset_partial_state=True)
    debug_launcher(_train_in_process, (config(tmp_path / "two", micro_batch_size=1, **changes),), 2)
    assert_same(tmp_path / "one", tmp_path / "two", 2e-4)
    for name in ("loss", "accuracy", "implicit_reward"):
        assert log(tmp_path / "two", name) == pytest.approx(log(tmp_path / "one", name), rel=1e-3, abs=1e-4)


def _at_step(monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """Send a signal to this process as soon as it has done a step."""
    advance = Monitor.advance

    def then_signal(self, at, figures, write):
        advance(self, at, figures, write)
        if at == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Monitor, "advance", then_signal)


def test_killed_run_goes_on_exactly(tmp_path, monkeypatch):
    """With dropout, accumulation, samples on the way and a new permutation."""
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    changes = {
        "steps": 6, "micro_batch_size": 2, "lora_dropout": 0.1, "caption_dropout": 0.3, "random_crop": True,
        "prompts": str(tmp_path / "prompts.txt"), "sample_steps": 2, "sample_every": 3,
    }  # fmt: skip
    train_dpo(config(tmp_path / "whole", **changes), sd(), preferences())
    step = random.SystemRandom().randrange(3, 6)
    run = config(tmp_path / "killed", **changes)
    child = os.fork()
    if child == 0:
        _at_step(monkeypatch, step, signal.SIGKILL)
        train_dpo(run, sd(), preferences())
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert not (tmp_path / "killed" / "final").exists()
    assert train_dpo(run, sd(), preferences()).finished
    assert_same(tmp_path / "whole", tmp_path / "killed", 1e-6)
    assert log(tmp_path / "killed") == pytest.approx(log(tmp_path / "whole"), rel=1e-6)


def test_sigterm_saves_and_a_finished_run_does_nothing(tmp_path, monkeypatch):
    run = config(tmp_path / "stopped", save_every=100)
    with monkeypatch.context() as patch:
        _at_step(patch, 2, signal.SIGTERM)
        result = train_dpo(run, sd(), preferences())
    assert (result.finished, result.step) == (False, 2)
    assert train_dpo(run, sd(), preferences()).step == 4
    train_dpo(config(tmp_path / "whole"), sd(), preferences())
    assert_same(tmp_path / "whole", tmp_path / "stopped", 1e-6)
    before = (tmp_path / "whole" / "log.jsonl").read_bytes()
    # It would fail if it did anything.
    again = train_dpo(config(tmp_path / "whole"), object(), None)
    assert again.finished and again.weights == tmp_path / "whole" / "final"
    assert (tmp_path / "whole" / "log.jsonl").read_bytes() == before
    with pytest.raises(ValueError, match=r"another `beta` \(beta: 50\.0 -> 60\.0\)"):
        train_dpo(config(tmp_path / "whole", beta=60.0))


def test_samples_rewards_exports_and_trackers(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\ntwo blue squares\n")
    changes = {
        "prompts": str(tmp_path / "prompts.txt"), "reward": "brightness", "sample_steps": 2, "sample_every": 2,
        "export_every": 2, "log_with": "tensorboard", "sample_batch": 1,
    }  # fmt: skip
    pipe = sd()
    scheduler = pipe.scheduler
    import fk_steer.loading

    def brightness(images, prompts):
        assert list(prompts) == ["a red circle", "two blue squares"]
        return images.mean((1, 2, 3))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fk_steer.loading, "load_guide", lambda *_, **__: brightness)
        train_dpo(config(tmp_path / "run", **changes), pipe, preferences())
    assert pipe.scheduler is scheduler
    folders = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert folders == ["step-00000000", "step-00000002", "step-00000004"]
    last = tmp_path / "run" / "samples" / folders[-1]
    rewards = json.loads((last / "rewards.json").read_text())
    assert [entry["prompt"] for entry in rewards] == ["a red circle", "two blue squares"]
    image = torch.tensor(list(Image.open(last / "00001.png").tobytes())).float() / 255
    assert rewards[1]["reward"] == pytest.approx(image.mean().item(), abs=1e-4)
    means = log(tmp_path / "run", "sample_reward")
    assert len(means) == 3
    assert means[-1] == pytest.approx(sum(entry["reward"] for entry in rewards) / 2)
    # From the same noise, with other weights.
    assert means[0] != means[-1]
    assert load_file(tmp_path / "run" / "step-00000004" / WEIGHTS).keys() == weights(tmp_path / "run").keys()
    assert any((tmp_path / "run" / "logs").rglob("events.out.tfevents*"))
    AcceleratorState._reset_state(reset_partial_state=True)


def test_mistakes_are_said_before_the_work_starts(tmp_path):
    for changes, message in (
        ({"loss": "kto"}, "Unknown `loss` 'kto'"),
        ({"steps": 0}, "`steps` to be positive"),
        ({"caption_dropout": 1.0}, "`caption_dropout` to be at least 0 and below 1"),
        ({"cache_latents": True, "random_crop": True}, "`cache_latents` without `random_crop`"),
        ({"reward": "clip-score"}, "`prompts` to sample images of"),
        ({"full": True, "lora": "some"}, "`lora` to go on from, or `full`"),
    ):
        with pytest.raises(ValueError, match=message):
            config(tmp_path, **changes)
    with pytest.raises(ValueError, match="Expected `data`, preferences to train on"):
        train_dpo(config(tmp_path / "none"))
    with pytest.raises(
        ValueError, match=r"at least `batch_size` \(4\) readable items, but got 2\. Take a smaller one, --batch-size"
    ):
        train_dpo(config(tmp_path / "few"), sd(), preferences(2))
    with pytest.raises(ValueError, match="Expected `timesteps` among those of the model, 0 to 999, but got 1000"):
        train_dpo(config(tmp_path / "times", timesteps=[999, 1000]), sd(), preferences())
    with pytest.raises(OSError, match="Found no LoRA weights"):
        train_dpo(config(tmp_path / "lora", lora=str(tmp_path / "nowhere")), sd(), preferences())
    with pytest.raises(ValueError, match="Cannot train a int"):
        train_dpo(config(tmp_path / "kind"), 3, preferences())
    with pytest.raises(ValueError, match="'nowhere' names none of the layers of a UNet2DConditionModel"):
        train_dpo(config(tmp_path / "layers", lora_layers="nowhere"), sd(), preferences())
    # Nothing stays of runs that never began.
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]


def test_settings_of_a_file_and_of_the_command_line(tmp_path):
    path = tmp_path / "dpo.yaml"
    path.write_text("beta: 5e2\nlearning_rate: 1e-5\ntimesteps: [249, 499]\nfull: true\n")
    found = load_config(path, {"beta": 7.0})
    assert (found.beta, found.learning_rate, found.timesteps, found.full) == (7.0, 1e-5, [249, 499], True)
    with pytest.raises(ValueError, match="Unknown settings betta"):
        load_config(None, {"betta": 1})
    with pytest.raises(ValueError, match="there is none at"):
        load_config(tmp_path / "none.yaml")


def test_the_command_trains_a_saved_pipeline(tmp_path):
    datasets = pytest.importorskip("datasets")
    sd().save_pretrained(tmp_path / "pipe")
    rows = [
        {"caption": "a red circle", "jpg_0": picture(0, index), "jpg_1": picture(1, index), "label_0": 1.0}
        for index in range(4)
    ]
    features = datasets.Features(
        caption=datasets.Value("string"),
        jpg_0=datasets.Image(),
        jpg_1=datasets.Image(),
        label_0=datasets.Value("float32"),
    )
    (tmp_path / "pairs").mkdir()
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(tmp_path / "pairs" / "train.parquet"))
    settings = tmp_path / "dpo.yaml"
    settings.write_text(f"model: {tmp_path / 'pipe'}\nsteps: 9\nbatch_size: 2\nmicro_batch_size: 2\n")
    command = ["train", "dpo", "--config", str(settings), "--data", str(tmp_path / "pairs")]
    command += ["--output", str(tmp_path / "run"), "--steps", "2"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout[result.stdout.index("{") :])
    assert found == {"weights": str(tmp_path / "run" / "final"), "step": 2}
    assert (tmp_path / "run" / "final" / WEIGHTS).is_file()
    failed = CliRunner().invoke(app, ["train", "dpo", "--output", str(tmp_path / "other")])
    assert failed.exit_code == 1
    assert "Expected `data`, preferences to train on, but got none: --data FOLDER." in failed.output


def test_another_seed_draws_other_noise(tmp_path):
    def first_noise(seed: int) -> torch.Tensor:
        trainer = Trainer(one := config(tmp_path, seed=seed), _accelerator(one), sd(), preferences())
        batch = [trainer.dataset[draw] for draw in next(iter(DrawSampler(trainer.sampler)))]
        return trainer._draw(batch, torch.Size([4, 8, 8]))[0]

    assert torch.equal(first_noise(0), first_noise(0))
    assert not torch.equal(first_noise(0), first_noise(1))

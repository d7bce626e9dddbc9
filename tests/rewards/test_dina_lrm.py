"""DiNa-LRM: its files, what it reads, steering by it, and the original's rewards (benchmarks/parity made those)."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import shipped_golden
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fk_steer import FKSteering, load_reward, steer
from fk_steer.cli import app
from fk_steer.evaluation.panel.metrics import Metric, check_metrics, parse_metrics
from fk_steer.loading import load_guide
from fk_steer.rewards import Latents, RewardError, RewardLoadError, dina_lrm, dina_lrm_model
from fk_steer.rewards.loading import assign_weights, empty
from fk_steer.testing import PROMPTS, checkpoints, redness, row_generators, sd, sd3
from fk_steer.testing.rewards import save_dina_lrm


CALL = {"num_inference_steps": 8, "height": 32, "width": 32, "output_type": "pt"}


@pytest.fixture
def folder(tmp_path):
    save_dina_lrm(tmp_path)
    return tmp_path


def load(folder, **options):
    return load_reward("dina-lrm", path=str(folder), backbone=str(folder / "sd3"), device="cpu", **options)


def latents(signal=1.0, noise=0.0, **changed):
    given = {**checkpoints.dina_inputs(), **changed}
    texts = (given["words"], None, given["pooled"], None)
    return Latents(given["latents"], given["latents"], signal, noise, None, texts)


def rewards(reward, *args, **changed):
    return reward.of_latents(latents(*args, **changed), [""] * 3)


class TestOriginal:
    @pytest.fixture(scope="class")
    @classmethod
    def expected(cls):
        content = json.loads((shipped_golden() / "dina_lrm" / "expected.json").read_text())
        return {case["what"]: torch.tensor(case["rewards"]) for case in content["scores"]}

    @pytest.mark.parametrize(
        ("case", "levels"),
        [
            ("clean at 0.1", 0.1),
            ("clean at 0.4", 0.4),
            ("clean at 0.9", 0.9),
            ("clean at 0.2, 0.5, 0.7", [0.2, 0.5, 0.7]),
        ],
    )
    def test_clean_latents(self, folder, expected, case, levels):
        assert expected[case].std() > 1e-3
        torch.testing.assert_close(rewards(load(folder, levels=levels, noises=1)), expected[case], rtol=1e-5, atol=0)

    def test_noisy_latents(self, folder, expected):
        found = rewards(load(folder), 0.35, 0.65)
        torch.testing.assert_close(found, expected["noisy at 0.65"], rtol=1e-5, atol=0)

    def test_cases_differ(self, expected):
        """Or the tests above would not tell them apart."""
        for one, other in zip(list(expected.values()), list(expected.values())[1:]):
            assert (one - other).abs().max() > 1e-3 * one.abs().max()


def test_names_and_shapes_at_full_size():
    """`assign_weights` raises unless every tensor finds its place, in the right shape, and no place stays empty."""
    config, sizes = checkpoints.DINA_LRM, checkpoints.SD3_MEDIUM
    design = dina_lrm_model.Design("", 12, (4, 8, 12), (4, 8, 12), -1, 4, 8, False, True, True)
    model = empty(lambda: dina_lrm_model.DiNaLRMModel(sizes, design))

    def meta(shapes):
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}

    whole = meta(checkpoints.sd3_transformer(sizes))
    # Stable Diffusion 3.5 medium's file on the hub has 4.94 GB, of 2 bytes a number.
    assert sum(one.numel() for one in whole.values()) * 2 == pytest.approx(4.94e9, rel=1e-3)
    assign_weights(model.backbone, dina_lrm_model.first_layers(whole, 12), "", "dina-lrm")
    assign_weights(model.reward_head, meta(checkpoints.dina_head(config, sizes)), "", "dina-lrm")
    assert dina_lrm.DiNaLRM.card.weights == round(sum(one.numel() for one in model.parameters()) / 1e9, 2)
    modules = {
        name.split(".lora_")[0].removeprefix("base_model.model.") for name in checkpoints.dina_lora(config, sizes)
    }
    # Eight layers of attention in each block, and four of the second one.
    assert len(modules) == 12 * (8 + 4)
    assert all(isinstance(model.backbone.get_submodule(name), torch.nn.Linear) for name in modules)


class TestFiles:
    def test_a_missing_tensor_of_the_head(self, folder):
        file = folder / "checkpoint" / "rm_head.pt"
        head = torch.load(file, weights_only=True)
        del head["attn1.gate_text.2.bias"]
        torch.save(head, file)
        with pytest.raises(RewardLoadError, match=r"rm_head.pt does not hold .* 1 \(attn1.gate_text.2.bias\) missing"):
            load(folder)

    def test_a_missing_layer_of_the_backbone(self, folder):
        file = folder / "sd3" / "transformer" / "diffusion_pytorch_model.safetensors"
        weights = load_file(file)
        del weights["transformer_blocks.2.attn.to_q.weight"]
        save_file(weights, file)
        with pytest.raises(RewardLoadError, match=r"1 \(transformer_blocks.2.attn.to_q.weight\) missing"):
            load(folder)

    def test_a_lora_of_another_backbone(self, folder):
        file = folder / "checkpoint" / "backbone_lora" / "adapter_model.safetensors"
        weights = {name.replace("blocks.0.", "blocks.9."): value for name, value in load_file(file).items()}
        save_file(weights, file)
        with pytest.raises(RewardLoadError, match="LoRA of the reward 'dina-lrm'.*transformer_blocks.9.attn"):
            load(folder)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"use_logistic": True}, "cannot be, by its use_logistic"),
            ({"reward_head": None}, "is not. .AttributeError"),
        ],
    )
    def test_another_model(self, folder, change, message):
        config = {**checkpoints.TINY_DINA_LRM, "model": {**checkpoints.TINY_DINA_LRM["model"], **change}}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(RewardLoadError, match=message):
            load(folder)

    def test_too_few_layers(self, folder):
        config = {
            **checkpoints.TINY_DINA_LRM,
            "model": {**checkpoints.TINY_DINA_LRM["model"], "num_transformer_layers": 4},
        }
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(RewardLoadError, match="more than 4 layers, but there are 4"):
            load(folder)


class TestLevels:
    def test_less_noise_than_the_level_is_filled_up(self):
        """Latents of 0.3 become those of 0.5: the shares of x0 and of all noise are those of that level."""
        ones = torch.ones(())
        signal = dina_lrm.noised(0.7 * ones, 0.3, 0.5, torch.zeros(()))
        torch.testing.assert_close(signal, 0.5 * ones)
        own = dina_lrm.noised(0.3 * ones, 0.3, 0.5, torch.zeros(()))
        more = dina_lrm.noised(torch.zeros(()), 0.3, 0.5, ones)
        torch.testing.assert_close((own**2 + more**2).sqrt(), 0.5 * ones)

    def test_the_scale_of_a_sampler_does_not_matter(self, folder):
        reward, inputs = load(folder), checkpoints.dina_inputs()
        other = rewards(reward, 1.0, 0.65 / 0.35, latents=inputs["latents"] / 0.35)
        torch.testing.assert_close(other, rewards(reward, 0.35, 0.65))

    def test_the_mean_over_noises(self, folder):
        several = rewards(load(folder, noises=3))
        reward = load(folder, noises=1)
        drawn = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        each = []
        for noise in drawn:
            reward._noises = lambda shape, noise=noise: noise[None]
            each.append(rewards(reward))
        assert (each[0] - each[1]).abs().max() > 1e-4
        torch.testing.assert_close(several, torch.stack(each).mean(0))

    @pytest.mark.parametrize("levels", [0, 1.0, "0.4", []])
    def test_out_of_range(self, levels):
        with pytest.raises(ValueError, match="`levels` to be numbers between 0 and 1"):
            load_reward("dina-lrm", levels=levels)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"latents": torch.zeros(3, 16, 8, 8)}, r"\(4, H, W\) each, but got \(16, 8, 8\)"),
        ({"latents": torch.zeros(3, 64, 16)}, r"but got \(64, 16\)"),
        (
            {"words": torch.zeros(3, 7, 32)},
            r"\(T, 64\) and, pooled, \(64,\) .* but got \[\(7, 32\), None, \(64,\), None\]",
        ),
        ({"pooled": None}, "at places 0 and 2 of four"),
    ],
)
def test_latents_of_other_pipelines(folder, changed, message):
    with pytest.raises(RewardError, match=f"'dina-lrm' reads latents of Stable Diffusion 3.*{message}"):
        rewards(load(folder), **changed)


def test_another_pipeline_is_refused_before_the_work(folder):
    with pytest.raises(ValueError, match="latents of Stable Diffusion 3, but StableDiffusionPipeline has others"):
        steer(sd(), load(folder), FKSteering(2, lmbda=1.0))(**CALL, prompt=PROMPTS)


def test_steers(folder):
    """The final rewards are those of the final latents for the pipeline's own encodings."""
    pipe, reward = sd3(), load(folder, noises=2)
    strategy = FKSteering(4, lmbda=20.0, tempering="constant", schedule=(0.25, 0.5, 0.75))
    arguments = {**CALL, "prompt": PROMPTS, "output_type": "latent"}
    output = steer(pipe, reward, strategy)(**arguments, generator=row_generators(0, 1))
    assert len(output.trace.events) == 4
    assert output.rewards.diff(dim=1).le(0).all() and output.rewards.std(1).min() > 1e-4
    with torch.no_grad():
        texts = pipe.encode_prompt(PROMPTS, PROMPTS, PROMPTS, device=torch.device("cpu"))
    for prompt in range(2):
        own = tuple(None if one is None else one[[prompt] * 4] for one in texts)
        final = output.particles[prompt]
        again = reward.of_latents(Latents(final, final, 1.0, 0.0, None, own), [PROMPTS[prompt]] * 4)
        torch.testing.assert_close(output.rewards[prompt].float(), again, rtol=1e-4, atol=1e-5)


def test_finals_may_be_anothers_to_judge(folder, monkeypatch):
    """As `--reward 'dina-lrm>clip-score'` has it."""
    monkeypatch.setattr(
        "fk_steer.rewards.load_reward", lambda name, **options: load(folder) if name == "dina-lrm" else redness
    )
    reward = load_guide("dina-lrm>clip-score", "cpu")
    output = steer(sd3(), reward, FKSteering(3, lmbda=1.0))(**CALL, prompt=PROMPTS, generator=row_generators(0, 1))
    reds = redness(output.particles.flatten(0, 1), []).view(2, 3)
    assert torch.equal(reds.argsort(1, descending=True), torch.arange(3).expand(2, 3))


def test_finished_images(folder):
    """Their latents and texts are encoded by the pipeline."""
    pipe, reward = sd3(), load(folder)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
    found = reward.of_images(pipe, images, PROMPTS)
    vae = pipe.vae
    with torch.no_grad():
        clean = (vae.encode(2 * images - 1).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor
        texts = pipe.encode_prompt(PROMPTS, PROMPTS, PROMPTS, device=torch.device("cpu"))
    expected = reward.of_latents(Latents(clean, clean, 1.0, 0.0, None, texts), PROMPTS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (found[0] - found[1]).abs() > 1e-4


def test_scoring_files_is_refused_before_weights_are_loaded(tmp_path):
    result = CliRunner().invoke(
        app, ["score", str(tmp_path / "a.png"), "--prompt", "a", "--reward", "clip-score,dina-lrm"]
    )
    assert result.exit_code == 1
    assert "Reward 'dina-lrm' reads the latents of a denoising loop, so it cannot score images" in result.stderr


def test_it_is_no_metric_but_may_have_guided():
    with pytest.raises(ValueError, match="'dina-lrm' reads the latents of a denoising loop"):
        parse_metrics(["dina-lrm"])
    assert check_metrics([Metric("dina-lrm", "dina-lrm", of_guide=True)])

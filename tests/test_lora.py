"""Pipelines with LoRA: the weights are added, in the pipeline's precision, by every command that draws."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from typer.testing import CliRunner

from fk_steer.cli import app
from fk_steer.loading import load_pipeline


LAYERS = ["to_q", "to_v"]


def made(folder, model="shapes", targets=LAYERS):
    """A pipeline with LoRA that changes what it predicts, and its weights in a folder."""
    pipe = load_pipeline(model)
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=targets))
    for name, parameter in pipe.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    weights = {name: value.contiguous() for name, value in get_peft_model_state_dict(pipe.unet).items()}
    config = pipe.unet.peft_config["default"].to_dict()
    pipe.save_lora_weights(folder, unet_lora_layers=weights, unet_lora_adapter_metadata=config)
    return pipe


@torch.no_grad()
def prediction(pipe):
    unet = pipe.unet
    generator = torch.Generator().manual_seed(0)
    size = unet.config.sample_size
    sample = torch.randn(1, unet.config.in_channels, size, size, generator=generator).to(unet.dtype)
    text = torch.randn(1, 4, unet.config.cross_attention_dim, generator=generator).to(unet.dtype)
    return unet(sample, torch.tensor([500]), text).sample.float()


def test_weights_of_lora_are_added_to_the_denoiser(tmp_path):
    expected = prediction(made(tmp_path))
    found = prediction(load_pipeline("shapes", lora=str(tmp_path)))
    assert torch.allclose(found, expected, atol=1e-6)
    assert not torch.allclose(found, prediction(load_pipeline("shapes")), atol=1e-2)


def test_they_take_the_precision_of_the_pipeline(tmp_path):
    made(tmp_path)
    pipe = load_pipeline("shapes", dtype="bfloat16", lora=str(tmp_path))
    assert {parameter.dtype for parameter in pipe.unet.parameters()} == {torch.bfloat16}


def test_weights_that_do_not_fit_are_one_error(tmp_path):
    with pytest.raises(OSError, match=r"Found no LoRA weights '.*nowhere': there is no such folder or file"):
        load_pipeline("shapes", lora=str(tmp_path / "nowhere"))
    made(tmp_path, "shapes-xl")
    with pytest.raises(ValueError, match="Expected `lora` to be weights"):
        load_pipeline("shapes", lora=str(tmp_path))


def test_generate_draws_with_them_and_records_it(tmp_path):
    made(tmp_path / "lora")

    def generate(out, *words):
        words = ("generate", "a red star", "--steps", "2", "--particles", "1", "--out", str(tmp_path / out), *words)
        return CliRunner().invoke(app, words)

    for out, words in (("before", ()), ("after", ("--lora", str(tmp_path / "lora")))):
        result = generate(out, *words)
        assert result.exit_code == 0, result.output
    images = [(tmp_path / out / "000/00.png").read_bytes() for out in ("before", "after")]
    assert images[0] != images[1]
    assert json.loads((tmp_path / "after/settings.json").read_text())["lora"] == str(tmp_path / "lora")
    refused = generate("after")
    assert refused.exit_code == 1 and "another `lora`" in refused.output

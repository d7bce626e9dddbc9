"""Every steerable class: the stock pipeline without a reward, `steer` with one, and the same after it was saved, loaded
or made of another."""

from __future__ import annotations

import inspect
import json
import re

import diffusers
import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.pipelines import pipeline_utils
from diffusers.pipelines.auto_pipeline import SUPPORTED_TASKS_MAPPINGS
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel

import fk_steer
from fk_steer import FKSteering, FrameReward, steer
from fk_steer.pipelines import steerable
from fk_steer.pipelines.mixin import SteeringMixin
from fk_steer.testing import (
    CALLS,
    DIM,
    PROMPTS,
    SIZE,
    clip_text_config,
    clip_tokenizer,
    quiet,
    redness,
    row_generators,
    t5_tokenizer,
    vae,
)
from fk_steer.testing.tiny import wan


def t5_config(width: int) -> T5Config:
    return T5Config(vocab_size=len(t5_tokenizer()), d_model=width, d_kv=8, d_ff=64, num_layers=1, num_heads=4)


def sd3() -> StableDiffusion3Pipeline:
    """With the third text encoder, without which stock pipelines do not load by themselves, and the 16 channels that
    inpainting asks for."""
    torch.manual_seed(0)
    return quiet(
        StableDiffusion3Pipeline(
            transformer=SD3Transformer2DModel(
                sample_size=8,
                patch_size=1,
                in_channels=16,
                num_layers=1,
                attention_head_dim=8,
                num_attention_heads=4,
                joint_attention_dim=2 * DIM,
                caption_projection_dim=DIM,
                pooled_projection_dim=2 * DIM,
                out_channels=16,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=vae(16, shift_factor=0.06),
            text_encoder=CLIPTextModelWithProjection(clip_text_config()),
            tokenizer=clip_tokenizer(),
            text_encoder_2=CLIPTextModelWithProjection(clip_text_config()),
            tokenizer_2=clip_tokenizer(),
            text_encoder_3=T5EncoderModel(t5_config(2 * DIM)),
            tokenizer_3=t5_tokenizer(),
        )
    )


KINDS = {
    "FKStableDiffusionPipeline": CALLS["sd"],
    "FKStableDiffusionXLPipeline": CALLS["sdxl"],
    "FKStableDiffusion3Pipeline": (sd3, {**CALLS["sd3"][1], "max_sequence_length": 16}),
    "FKFluxPipeline": CALLS["flux"],
    "FKWanPipeline": (wan, {**SIZE, "num_frames": 5, "max_sequence_length": 16, "guidance_scale": 5.0}),
}
"""Name -> function that makes a stock pipeline, arguments of its call."""

STEERING = FKSteering(num_particles=3, lmbda=2.0, schedule=(0.5,))


class Kind:
    def __init__(self, name: str) -> None:
        self.name, (self.stock, call) = name, KINDS[name]
        self.fk = getattr(fk_steer, name)
        self.call = {**call, "num_inference_steps": 3, "output_type": "pt"}
        self.reward = FrameReward(redness, 3) if name == "FKWanPipeline" else redness

    def plain(self, pipe) -> torch.Tensor:
        """Images or videos, unsteered."""
        return quiet(pipe)(PROMPTS, generator=row_generators(0, 1), **self.call)[0]

    def steered(self, pipe) -> torch.Tensor:
        output = quiet(pipe)(
            PROMPTS, reward=self.reward, steering=STEERING, generator=row_generators(0, 1), **self.call
        )
        assert len(output.trace.events) == 2
        return output.particles


@pytest.fixture(params=KINDS, scope="module")
def kind(request) -> Kind:
    return Kind(request.param)


def same_components(first, second) -> bool:
    return first.components.keys() == second.components.keys() and all(
        type(component) is type(second.components[name]) for name, component in first.components.items()
    )


def test_they_are_of_the_package(kind):
    assert kind.name in fk_steer.__all__
    assert issubclass(kind.fk, getattr(diffusers, kind.name.removeprefix("FK")))
    assert (REPOSITORY / "fk_steer" / "pipelines" / f"{kind.fk.__module__.split('.')[-1]}.py").is_file()


def test_without_a_reward_it_is_the_stock_pipeline(kind):
    stock = kind.stock()
    assert torch.equal(kind.plain(kind.fk.from_pipe(stock)), kind.plain(stock))


def test_with_one_it_is_what_steer_makes_of_the_stock_pipeline(kind):
    stock = kind.stock()
    expected = steer(stock, kind.reward, STEERING)(PROMPTS, generator=row_generators(0, 1), **kind.call)
    assert torch.equal(kind.steered(kind.fk.from_pipe(stock)), expected.particles)


def test_the_call_documents_both(kind):
    parameters = inspect.signature(kind.fk.__call__).parameters
    stock = list(inspect.signature(getattr(diffusers, kind.name.removeprefix("FK")).__call__).parameters)
    named = [name for name in stock if name != "kwargs"]
    assert list(parameters)[: len(named)] == named
    added = {"reward", "steering", "execution", "reward_prompt", "callback_on_scoring_event"}
    assert {*stock, *added} <= parameters.keys()
    assert "guidance_scale" in kind.fk.__call__.__doc__
    assert "reward_prompt" in kind.fk.__call__.__doc__


def test_unasked_it_gives_what_the_stock_pipeline_gives(kind):
    call = {name: value for name, value in kind.call.items() if name != "output_type"}
    pipe = quiet(kind.fk.from_pipe(kind.stock()))
    plain = pipe(PROMPTS, generator=row_generators(0, 1), **call)
    output = pipe(PROMPTS, reward=kind.reward, steering=STEERING, generator=row_generators(0, 1), **call)
    name = "frames" if kind.name == "FKWanPipeline" else "images"
    found, expected = getattr(output, name), plain[name]
    assert type(found) is type(expected)
    assert type(found[0]) is type(expected[0])
    assert [np.shape(each) for each in found] == [np.shape(each) for each in expected]


def test_what_is_saved_stays_steerable(kind, tmp_path):
    pipe = kind.fk.from_pipe(kind.stock())
    expected, plain = kind.steered(pipe), kind.plain(pipe)
    pipe.save_pretrained(tmp_path)
    for loader in (DiffusionPipeline, kind.fk):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is kind.fk
        assert same_components(loaded, pipe)
        assert torch.equal(kind.steered(loaded), expected)
        assert torch.equal(kind.plain(loaded), plain)
    loaded.save_pretrained(tmp_path / "again")
    first, again = (DiffusionPipeline.load_config(folder) for folder in (tmp_path, tmp_path / "again"))
    assert again.pop("_name_or_path") == str(tmp_path)
    assert again == first


def test_and_is_a_stock_pipeline_where_there_is_no_more_than_diffusers(kind, tmp_path, monkeypatch):
    stock = kind.stock()
    pipe = kind.fk.from_pipe(stock)
    expected = kind.plain(pipe)
    pipe.save_pretrained(tmp_path)
    monkeypatch.setattr(pipeline_utils, "_get_pipeline_class", pipeline_utils._get_pipeline_class.__wrapped__)
    for loader in (DiffusionPipeline, type(stock)):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is type(stock)
        assert same_components(loaded, pipe)
        assert torch.equal(kind.plain(loaded), expected)


def test_sd3_without_t5(tmp_path):
    kind = Kind("FKStableDiffusion3Pipeline")
    stock, call = CALLS["sd3"]
    kind.call = {**kind.call, **call}
    pipe = kind.fk.from_pipe(stock())
    assert pipe.text_encoder_3 is None
    pipe.save_pretrained(tmp_path)
    for loader in (DiffusionPipeline, kind.fk):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is kind.fk
        assert same_components(loaded, pipe)
        assert torch.equal(kind.steered(loaded), kind.steered(pipe))


def test_stock_folders_load_as_either(kind, tmp_path):
    stock = kind.stock()
    stock.save_pretrained(tmp_path)
    assert type(DiffusionPipeline.from_pretrained(tmp_path)) is type(stock)
    loaded = kind.fk.from_pretrained(tmp_path)
    assert type(loaded) is kind.fk
    assert torch.equal(kind.steered(loaded), kind.steered(kind.fk.from_pipe(stock)))


def test_a_stock_pipeline_asked_for_by_its_class_is_one(kind, tmp_path):
    stock = kind.stock()
    kind.fk.from_pipe(stock).save_pretrained(tmp_path)
    loaded = type(stock).from_pretrained(tmp_path)
    assert type(loaded) is type(stock)
    loaded.save_pretrained(tmp_path / "stock")
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "stock")) is type(stock)


def test_as_custom_pipeline_file(kind, tmp_path):
    stock = kind.stock()
    stock.save_pretrained(tmp_path)
    path = str(REPOSITORY / "pipelines" / f"{kind.fk.__module__.split('.')[-1]}.py")
    loaded = DiffusionPipeline.from_pretrained(tmp_path, custom_pipeline=path, trust_remote_code=True)
    pipes = [loaded]
    if kind.name != "FKWanPipeline":  # Diffusers cannot, as Wan has a transformer that may be left out
        pipes.append(DiffusionPipeline.from_pipe(stock, custom_pipeline=path, trust_remote_code=True))
    expected = kind.steered(kind.fk.from_pipe(stock))
    for pipe in pipes:
        assert type(pipe) is kind.fk
        assert torch.equal(kind.steered(pipe), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_from_pipe_shares_components_as_they_are(kind, dtype):
    """Stock pipelines would make them float32, in both."""
    stock = kind.stock()
    stock.to(dtype)
    stock.vae.to(torch.float32)
    before = {name: part.dtype for name, part in stock.components.items() if isinstance(part, torch.nn.Module)}
    pipe = kind.fk.from_pipe(stock)
    assert type(pipe) is kind.fk
    assert all(part is stock.components[name] for name, part in pipe.components.items())
    assert {name: pipe.components[name].dtype for name in before} == before
    back = type(stock).from_pipe(pipe, dtype=torch.float32)
    assert type(back) is type(stock)
    assert same_components(back, stock)


def test_from_pipe_with_a_dtype_converts(kind):
    pipe = kind.fk.from_pipe(kind.stock(), dtype=torch.bfloat16)
    assert {part.dtype for part in pipe.components.values() if isinstance(part, torch.nn.Module)} == {torch.bfloat16}


def test_moving_and_offloading_are_those_of_the_stock_class(kind):
    stock = kind.stock()
    pipe = kind.fk.from_pipe(stock)
    for name in ("model_cpu_offload_seq", "_exclude_from_cpu_offload", "_callback_tensor_inputs"):
        assert getattr(kind.fk, name) == getattr(type(stock), name)
    assert kind.fk.to is type(stock).to
    expected = kind.steered(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    assert torch.equal(kind.steered(pipe), expected)
    pipe.remove_all_hooks()
    assert pipe.to(torch.bfloat16) is pipe
    assert pipe.dtype == torch.bfloat16


IMAGES = {
    name: {"image": torch.linspace(0, 1, 2 * 3 * 256).view(2, 3, 16, 16), "strength": 0.7}
    for name in KINDS
    if name != "FKWanPipeline"
}
MASK = torch.ones(2, 1, 16, 16)


@pytest.fixture(params=IMAGES)
def image_kind(request) -> Kind:
    return Kind(request.param)


def test_text_to_image_is_the_same_class(image_kind):
    pipe = image_kind.fk.from_pipe(image_kind.stock())
    found = AutoPipelineForText2Image.from_pipe(pipe)
    assert type(found) is image_kind.fk
    assert all(part is pipe.components[name] for name, part in found.components.items())
    assert torch.equal(image_kind.steered(found), image_kind.steered(pipe))


@pytest.mark.parametrize("auto", [AutoPipelineForImage2Image, AutoPipelineForInpainting])
def test_other_tasks_stay_steerable(image_kind, auto, tmp_path):
    stock = image_kind.stock()
    pipe = image_kind.fk.from_pipe(stock)
    found, stock_found = quiet(auto.from_pipe(pipe)), quiet(auto.from_pipe(stock))
    assert isinstance(found, type(stock_found))
    assert same_components(found, stock_found)
    assert type(AutoPipelineForText2Image.from_pipe(found)) is image_kind.fk
    call = {**image_kind.call, **IMAGES[image_kind.name]}
    if auto is AutoPipelineForInpainting:
        call["mask_image"] = MASK
    elif "height" not in inspect.signature(type(stock_found).__call__).parameters:
        call = {name: value for name, value in call.items() if name not in SIZE}
    expected = stock_found(PROMPTS, generator=row_generators(0, 1), **call).images
    assert torch.equal(found(PROMPTS, generator=row_generators(0, 1), **call).images, expected)
    steered = found(PROMPTS, reward=redness, steering=STEERING, generator=row_generators(0, 1), **call)
    by_steer = steer(stock_found, redness, STEERING)(PROMPTS, generator=row_generators(0, 1), **call)
    assert torch.equal(steered.particles, by_steer.particles)
    found.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == type(stock_found).__name__
    assert type(DiffusionPipeline.from_pretrained(tmp_path)) is type(found)


def test_switches_of_auto_pipelines():
    pipe = Kind("FKStableDiffusionPipeline").fk.from_pipe(KINDS["FKStableDiffusionPipeline"][0]())
    guided = AutoPipelineForText2Image.from_pipe(pipe, enable_pag=True)
    assert isinstance(guided, diffusers.StableDiffusionPAGPipeline)
    assert isinstance(guided, SteeringMixin)
    controlnet = diffusers.ControlNetModel.from_unet(pipe.unet)
    controlled = AutoPipelineForImage2Image.from_pipe(pipe, controlnet=controlnet)
    assert isinstance(controlled, diffusers.StableDiffusionControlNetImg2ImgPipeline)
    assert controlled.controlnet is controlnet
    assert type(AutoPipelineForText2Image.from_pipe(controlled, controlnet=None)) is type(pipe)


def test_tables_of_diffusers_keep_what_they_held():
    for task in SUPPORTED_TASKS_MAPPINGS:
        stock = {name: made for name, made in task.items() if not name.startswith("fk-")}
        assert not any(issubclass(made, SteeringMixin) for made in stock.values())
        assert task.keys() - stock.keys() == {f"fk-{name}" for name in stock}
    found = AutoPipelineForImage2Image.from_pipe(KINDS["FKStableDiffusionPipeline"][0]())
    assert type(found) is diffusers.StableDiffusionImg2ImgPipeline


def test_steerable_classes_of_any_pipeline():
    made = steerable(diffusers.SanaPipeline)
    assert made.__name__ == "FKSanaPipeline"
    assert issubclass(made, (SteeringMixin, diffusers.SanaPipeline))
    assert steerable(diffusers.SanaPipeline) is made
    assert steerable(diffusers.FluxPipeline) is steerable(fk_steer.FKFluxPipeline) is fk_steer.FKFluxPipeline
    for thing in (diffusers.UNet2DConditionModel, "flux", None):
        with pytest.raises(TypeError, match="Expected the class of a pipeline, but got"):
            steerable(thing)


def test_modular_pipelines_read_what_is_saved(tmp_path):
    fk_steer.FKStableDiffusionXLPipeline.from_pipe(KINDS["FKStableDiffusionXLPipeline"][0]()).save_pretrained(tmp_path)
    assert type(diffusers.ModularPipeline.from_pretrained(tmp_path)) is diffusers.StableDiffusionXLModularPipeline


def test_the_passage_about_saving_runs(tmp_path, monkeypatch):
    page = (REPOSITORY / "docs" / "saving.md").read_text()
    (passage,) = [block for block in re.findall(r"```py(?:thon)?\n(.*?)```", page, re.S) if "save_pretrained" in block]
    monkeypatch.chdir(tmp_path)
    names = {"stock_pipe": KINDS["FKFluxPipeline"][0]()}
    exec(passage, names)
    assert type(names["pipe"]) is fk_steer.FKFluxPipeline
    assert type(names["image_to_image"]) is steerable(diffusers.FluxImg2ImgPipeline)
    assert issubclass(names["FKFluxFillPipeline"], diffusers.FluxFillPipeline)


def test_a_subclass_of_ones_own_saves_what_diffusers_can_load(tmp_path):
    class Mine(fk_steer.FKStableDiffusionPipeline):
        pass

    kind = Kind("FKStableDiffusionPipeline")
    pipe = Mine.from_pipe(kind.stock())
    assert type(pipe) is Mine
    pipe.save_pretrained(tmp_path)
    assert type(Mine.from_pretrained(tmp_path)) is Mine
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded) is fk_steer.FKStableDiffusionPipeline
    assert torch.equal(kind.plain(loaded), kind.plain(pipe))

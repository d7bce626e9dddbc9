"""Classifier-free guidance that is left out of the last part of a loop."""

from __future__ import annotations

import functools
import inspect
import warnings

import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionSAGPipeline
from diffusers.callbacks import SD3CFGCutoffCallback, SDCFGCutoffCallback, SDXLCFGCutoffCallback

from benchmarks.pipelines.cases import modular_case, plain_case
from fk_steer import Execution, FKSteering, Noise, preset, steer
from fk_steer.diffusion.components import denoisers_of, is_modular, makes_videos
from fk_steer.testing import PROMPTS, SIZE, quiet, redness, row_generators, sd, sd3, sd_scheduler, sdxl
from fk_steer.testing.tiny import FAMILIES


CALL = {**SIZE, "guidance_scale": 5.0, "num_inference_steps": 6, "output_type": "pt"}
BEST_OF_3 = preset("best-of-n", num_particles=3)
PRUNING = preset("psp", num_particles=4)


def steered(make, settings, execution=None, **call):
    generators = row_generators(*range(2 * settings.num_particles))
    return steer(make(), redness, settings, execution)(PROMPTS, generator=generators, **{**CALL, **call})


def keeping_the_conditional_half(*names):
    """A callback that leaves guidance out after the third step, of what the loop holds twice."""

    def callback(pipe, step, timestep, tensors):
        if step == 2:
            pipe._guidance_scale = 0.0
            tensors.update((name, tensors[name].chunk(2)[-1]) for name in names)
        return tensors

    return {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": list(names)}


@pytest.mark.parametrize(
    ("make", "kind"),
    [(sd, SDCFGCutoffCallback), (sdxl, SDXLCFGCutoffCallback), (sd3, SD3CFGCutoffCallback)],
)
@pytest.mark.parametrize("settings", [BEST_OF_3, PRUNING], ids=["best-of-n", "psp"])
def test_it_is_what_the_cut_offs_of_diffusers_do(make, kind, settings):
    # Theirs counts the last step with guidance.
    cutoff = kind(cutoff_step_ratio=None, cutoff_step_index=2)
    expected = steered(make, settings, callback_on_step_end=cutoff)
    stopped = steered(make, settings.replace(guidance_stop=0.5))
    torch.testing.assert_close(stopped.particles, expected.particles, atol=1e-5, rtol=1e-5)
    assert stopped.trace.nfe == expected.trace.nfe
    for chunk in (1, 3):
        chunked = steered(make, settings.replace(guidance_stop=0.5), Execution(denoise_batch_size=chunk))
        torch.testing.assert_close(chunked.particles, expected.particles, atol=1e-4, rtol=1e-4)


def test_control_networks_compute_what_the_denoiser_takes():
    rows = []

    def make():
        pipe = sd()
        torch.manual_seed(0)
        control = ControlNetModel.from_unet(pipe.unet)
        control.controlnet_cond_embedding = torch.nn.Conv2d(3, 16, 3, stride=2, padding=1)
        for layer in (*control.controlnet_down_blocks, control.controlnet_mid_block):
            torch.nn.init.normal_(layer.weight, std=0.1)
        control.conv_in.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
        parts = {**pipe.components, "controlnet": control}
        return quiet(StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False))

    call = {"image": torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
    whole = steered(make, BEST_OF_3, **call)
    expected = steered(make, BEST_OF_3, **call, **keeping_the_conditional_half("prompt_embeds", "image"))
    assert (whole.particles - expected.particles).abs().max() > 1e-3
    rows.clear()
    found = steered(make, BEST_OF_3.replace(guidance_stop=0.5), **call)
    torch.testing.assert_close(found.particles, expected.particles, atol=1e-5, rtol=1e-5)
    assert rows[-6:] == [12, 12, 12, 6, 6, 6]


@pytest.mark.parametrize(("stop", "guided"), [(1.0, 6), (0.67, 5), (0.5, 3), (0.34, 3), (0.33, 2), (1e-9, 1)])
def test_rows_that_it_saves(stop, guided):
    output = steered(sd, BEST_OF_3.replace(guidance_stop=stop))
    assert output.trace.nfe == 2 * 3 * (6 + guided)


TEXTS = ("encoder_hidden_states", "encoder_hidden_states_t5", "cap_feats")


def texts_of(make, arguments, settings, num_steps=4):
    """What a pipeline's denoiser is told of the prompt, call by call, and the trace."""
    pipe = make()
    case = modular_case(pipe, arguments) if is_modular(pipe) else plain_case(pipe, arguments)
    (denoiser,) = denoisers_of(case.pipe).values()
    forward, seen = denoiser.forward, []

    @functools.wraps(forward)
    def recording(*args, **kwargs):
        given = {**dict(zip(inspect.signature(type(denoiser).forward).parameters, [denoiser, *args])), **kwargs}
        value = next(given[name] for name in TEXTS if given.get(name) is not None)
        values = list(value)[-1] if isinstance(value, (list, tuple)) and value[0].ndim > 2 else value
        seen.append([one.clone() for one in values])
        return forward(*args, **kwargs)

    denoiser.forward = recording

    def reward(images, prompts):
        return images.flatten(1).float().mean(1)

    reward.takes_videos = makes_videos(case.pipe)
    call = {name: value for name, value in case.arguments.items() if name != "generator"}
    output = steer(case.pipe, reward, settings)(**{**call, "num_inference_steps": num_steps})
    return seen, output.trace


GUIDED = {
    "sd": {},
    "sdxl": {},
    "sd3": {},
    "sd-inpaint": {},
    "qwen-image": {"true_cfg_scale": 1.0, "negative_prompt": None},
    "z-image": {"guidance_scale": 0.0},
    "sana": {},
    "pixart": {},
    "hidream": {},
    "kandinsky5": {},
    "deepfloyd-if": {},
    "animatediff": {},
    "wan": {},
    "ltx": {},
    "cogvideox": {},
}
"""Families that are guided by a second prediction, with what turns it off beside `guidance_scale`."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", GUIDED)
def test_what_is_left_is_conditional(family):
    make, call = FAMILIES[family]
    arguments = {"prompt": PROMPTS[0], "num_inference_steps": 4, **call}
    settings = preset("best-of-n", num_particles=2, seed=0, guidance_stop=0.5)
    off = {"guidance_scale": 1.0, **GUIDED[family]}
    plain, unguided = texts_of(make, {**arguments, **off}, settings)
    seen, trace = texts_of(make, arguments, settings)
    assert unguided.nfe == 8
    assert trace.nfe == 12
    for one in seen[-2:]:
        assert len(one) == len(plain[-1])
        for mine, expected in zip(one, plain[-1]):
            torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("family", ["flux", "sd"])
def test_without_guidance_it_changes_nothing(family):
    make, call = FAMILIES[family]
    images = []
    for stop in (1.0, 0.5):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            settings = BEST_OF_3.replace(guidance_stop=stop)
            output = steered(make, settings, **{**call, "guidance_scale": 1.0})
        images.append(output.particles)
        assert output.trace.nfe == 2 * 3 * 6
    assert torch.equal(*images)


def test_guidance_without_effect_is_no_reason_to_warn():
    """The prompt is what guidance leads away from, so that both halves are equal: there is nothing to learn by."""
    images = []
    for stop in (1.0, 0.5):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            images.append(steered(sd, BEST_OF_3.replace(guidance_stop=stop), negative_prompt=PROMPTS).particles)
    assert torch.equal(*images)


def test_guidance_of_another_kind_goes_on_and_one_is_told():
    def make():
        parts = sd(sd_scheduler("epsilon")).components
        return quiet(StableDiffusionSAGPipeline(**parts, requires_safety_checker=False))

    expected = steered(make, BEST_OF_3, sag_scale=0.75)
    with pytest.warns(UserWarning, match="StableDiffusionSAGPipeline is guided in a way that cannot be left out"):
        found = steered(make, BEST_OF_3.replace(guidance_stop=0.5), sag_scale=0.75)
    assert torch.equal(found.particles, expected.particles)
    assert found.trace.nfe == expected.trace.nfe


def test_a_loop_that_goes_back_has_guidance_again():
    settings = preset("refine", num_particles=2, guidance_stop=0.5, seed=0)
    output = steer(sd(), redness, settings)(PROMPTS[0], **CALL)
    steps = {event.step for event in output.trace.events}
    whole = steer(sd(), redness, settings.replace(guidance_stop=1.0))(PROMPTS[0], **CALL)
    assert steps == {event.step for event in whole.trace.events}
    assert whole.trace.nfe * 0.5 < output.trace.nfe < whole.trace.nfe


@pytest.mark.parametrize("value", [0.0, -0.1, 1.5, float("nan"), "half", None])
def test_values_that_cannot_be(value):
    with pytest.raises(ValueError, match="guidance_stop"):
        FKSteering(guidance_stop=value, noise=Noise())

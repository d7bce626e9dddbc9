"""Guidance by attention maps, and callbacks that cut guidance off, in batches of many rows."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPAGPipeline, StableDiffusionSAGPipeline
from diffusers.callbacks import (
    IPAdapterScaleCutoffCallback,
    MultiPipelineCallbacks,
    SD3CFGCutoffCallback,
    SDCFGCutoffCallback,
    SDXLCFGCutoffCallback,
)

from fk_steer import Execution, FKSteering, Noise, steer
from fk_steer.search import DepthFirst
from fk_steer.testing import PROMPTS, SIZE, quiet, redness, row_generators, sd, sd3, sd_scheduler, sdxl


QUIET = FKSteering(3, lmbda=1.0, noise=Noise(eta=0.0), schedule=())
CALL = {**SIZE, "guidance_scale": 5.0, "num_inference_steps": 6, "output_type": "pt"}


def with_components(kind, pipe, **others):
    return quiet(kind(**pipe.components, requires_safety_checker=False, **others))


def check(make, **call):
    """Without noise each particle is the stock pipeline's image of its seed; chunks and pruning change nothing."""
    call = {**CALL, **call}
    output = steer(make(), redness, QUIET)(PROMPTS, generator=row_generators(*range(6)), **call)
    pipe = make()
    stock = torch.stack(
        [pipe(PROMPTS[row // 3], generator=torch.Generator().manual_seed(row), **call).images[0] for row in range(6)]
    )
    stock = stock.view(2, 3, *stock.shape[1:])
    order = torch.stack([redness(images, []) for images in stock]).argsort(dim=1, descending=True)
    expected = torch.stack([images[row] for images, row in zip(stock, order)])
    torch.testing.assert_close(output.particles, expected, atol=1e-4, rtol=1e-4)
    for settings in (FKSteering.preset("psp", seed=1), FKSteering(4, seed=1)):
        whole, chunked = (
            steer(make(), redness, settings, Execution(denoise_batch_size=size))(PROMPTS, **call) for size in (None, 3)
        )
        torch.testing.assert_close(chunked.particles, whole.particles, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
def test_self_attention_guidance(guidance_scale):
    check(
        lambda: with_components(StableDiffusionSAGPipeline, sd(sd_scheduler("epsilon"))),
        guidance_scale=guidance_scale,
        sag_scale=0.75,
    )


@pytest.mark.parametrize(
    ("make", "kind"),
    [(sd, SDCFGCutoffCallback), (sdxl, SDXLCFGCutoffCallback), (sd3, SD3CFGCutoffCallback)],
)
@pytest.mark.parametrize("several", [False, True])
def test_cut_offs_of_guidance(make, kind, several):
    callback = kind(cutoff_step_ratio=0.5)
    check(make, callback_on_step_end=MultiPipelineCallbacks([callback]) if several else callback)


def test_other_callbacks_among_several_see_the_whole_batch():
    seen = []

    class Scale(IPAdapterScaleCutoffCallback):
        def callback_fn(self, pipe, step, timestep, tensors):
            seen.append({name: len(value) for name, value in tensors.items()})
            return tensors

    both = MultiPipelineCallbacks(
        [SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=2), Scale(cutoff_step_ratio=0.5)]
    )
    steer(sd(), redness, QUIET)(PROMPTS, callback_on_step_end=both, **CALL)
    assert [step["prompt_embeds"] for step in seen] == [12, 12, 6, 6, 6, 6]


def keeping(number):
    def callback(pipe, step, timestep, tensors):
        if step == 2:
            pipe._guidance_scale = 0.0
            embeddings = tensors["prompt_embeds"]
            tensors["prompt_embeds"] = embeddings.chunk(2)[-1] if number is None else embeddings[-number:]
        return tensors

    return {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}


def test_a_callback_that_keeps_the_conditional_half():
    check(sd, **keeping(None))


def test_a_callback_that_keeps_one_row_is_told():
    with pytest.raises(ValueError, match=r"`prompt_embeds` with 1 rows at step 2, where the batch has 6 particles"):
        steer(sd(), redness, QUIET)(PROMPTS, **CALL, **keeping(1))


def test_cut_offs_are_refused_before_the_loop_where_they_cannot_work():
    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=0.5)
    with pytest.raises(ValueError, match="SDCFGCutoffCallback counts the steps"):
        steer(sd(), redness, DepthFirst(2))(PROMPTS, callback_on_step_end=cutoff, **CALL)
    pipe = with_components(StableDiffusionPAGPipeline, sd(), pag_applied_layers=["mid"])
    with pytest.raises(ValueError, match="perturbed attention guidance"):
        steer(pipe, redness, QUIET)(PROMPTS, callback_on_step_end=cutoff, **CALL)

"""Diffusers' hooks on the denoiser: what remembers something is refused, what does not goes on working."""

from __future__ import annotations

import diffusers.hooks as hooks
import pytest
import torch
from diffusers.hooks import HookRegistry

from fk_steer import FKSteering, Noise, steer
from fk_steer.testing import CALLS, PROMPTS, redness, row_generators


PLAIN = FKSteering(2, lmbda=1.0, noise=Noise(eta=0.0), schedule=())
CALL = {**CALLS["flux"][1], "num_inference_steps": 3, "output_type": "latent"}
CACHES = {
    "first_block_cache": lambda module: hooks.apply_first_block_cache(
        module, hooks.FirstBlockCacheConfig(threshold=0.5)
    ),
    "faster_cache": lambda module: hooks.apply_faster_cache(
        module,
        hooks.FasterCacheConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(-1, 1001),
            current_timestep_callback=lambda: 500,
            tensor_format="BCHW",
            is_guidance_distilled=True,
        ),
    ),
    "pyramid_attention_broadcast": lambda module: hooks.apply_pyramid_attention_broadcast(
        module,
        hooks.PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(-1, 1001),
            current_timestep_callback=lambda: 500,
        ),
    ),
    "mag_cache": lambda module: hooks.apply_mag_cache(
        module, hooks.MagCacheConfig(num_inference_steps=3, mag_ratios=[1.0, 1.0, 1.0])
    ),
    "taylorseer_cache": lambda module: hooks.apply_taylorseer_cache(module, hooks.TaylorSeerCacheConfig()),
}


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_without_the_flag_is_refused_and_named(name):
    pipe = CALLS["flux"][0]()
    expected = pipe(PROMPTS, generator=row_generators(0, 1), **CALL).images
    CACHES[name](pipe.transformer)
    assert not pipe.transformer.is_cache_enabled
    with pytest.raises(ValueError, match="of `pipe.transformer` keep rows from step to step") as caught:
        steer(pipe, redness, PLAIN)(PROMPTS, **CALL)
    # What the message says can be done.
    exec(str(caught.value).split("`")[-2], {"pipe": pipe})
    steer(pipe, redness, PLAIN)(PROMPTS, **CALL)
    assert torch.equal(pipe(PROMPTS, generator=row_generators(0, 1), **CALL).images, expected)


class Memory(hooks.ModelHook):
    _is_stateful = True

    def reset_state(self, module):
        return module


def test_a_hook_of_ones_own_that_says_it_remembers_is_refused():
    pipe = CALLS["sd"][0]()
    HookRegistry.check_if_exists_or_initialize(pipe.unet.mid_block.resnets[0]).register_hook(Memory(), "mine")
    with pytest.raises(ValueError, match=r"hook 'mine' \(Memory\) of `pipe.unet` keep rows"):
        steer(pipe, redness, PLAIN)(PROMPTS, num_inference_steps=2, **CALLS["sd"][1])


def skip_layers(dropout):
    return lambda module: hooks.apply_layer_skip(
        module, hooks.LayerSkipConfig(indices=[0], fqn="transformer_blocks", dropout=dropout)
    )


HARMLESS = {
    "group offloading": lambda module: hooks.apply_group_offloading(
        module, onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), offload_type="leaf_level"
    ),
    "layerwise casting": lambda module: module.enable_layerwise_casting(torch.bfloat16, torch.float32),
    "layer skip": skip_layers(1.0),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_hooks_that_remember_nothing_go_on_working(name):
    pipe = CALLS["flux"][0]()
    HARMLESS[name](pipe.transformer)
    latents = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(0))[:, : 8 * 8 // 4]
    stock = pipe(PROMPTS[0], num_images_per_prompt=2, latents=latents, **CALL).images
    steered = steer(pipe, redness, PLAIN)(PROMPTS[0], latents=latents, **CALL).particles[0]
    assert torch.equal(steered.flatten(1).sum(1).sort().values, stock.flatten(1).sum(1).sort().values)


def test_layers_dropped_at_random_are_refused():
    pipe = CALLS["flux"][0]()
    skip_layers(0.5)(pipe.transformer)
    with pytest.raises(ValueError, match="draws what it drops anew"):
        steer(pipe, redness, PLAIN)(PROMPTS, **CALL)

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderTiny

from fk_steer.diffusion import LatentDecoder
from fk_steer.testing import CALLS, PROMPTS, SIZE, row_generators, sdxl


@pytest.mark.parametrize("name", CALLS)
def test_equals_the_pipelines_own_decoding(name):
    make, call = CALLS[name]
    pipe = make()
    call = {**call, "prompt": PROMPTS, "num_inference_steps": 2}
    latents = pipe(generator=row_generators(0, 1), output_type="latent", **call).images
    images = pipe(generator=row_generators(0, 1), output_type="pt", **call).images
    decoder = LatentDecoder(pipe, size=(SIZE["height"], SIZE["width"]))
    assert torch.equal(decoder(latents), images)


def test_latents_mean_and_std():
    pipe = sdxl()
    pipe.vae.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.5, 1.0, 2.0])
    call = dict(num_inference_steps=2, generator=row_generators(0, 1), **SIZE)
    latents = pipe(PROMPTS, output_type="latent", **call).images
    call["generator"] = row_generators(0, 1)
    assert torch.equal(LatentDecoder(pipe)(latents), pipe(PROMPTS, output_type="pt", **call).images)


def test_float16_of_sdxl_is_decoded_in_float32_and_put_back():
    pipe = sdxl()
    pipe.vae.to(torch.float16)
    assert pipe.vae.config.force_upcast
    latents = torch.randn(2, 4, 8, 8)
    images = LatentDecoder(pipe)(latents)
    assert pipe.vae.dtype == torch.float16
    pipe.vae.to(torch.float32)
    assert torch.equal(images, LatentDecoder(pipe)(latents))


def test_precision_is_put_back_after_an_exception():
    pipe = sdxl()
    pipe.vae.to(torch.float16)
    with pytest.raises(RuntimeError):
        LatentDecoder(pipe)(torch.randn(2, 5, 8, 8))
    assert pipe.vae.dtype == torch.float16


def test_preview_decoder():
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        upsampling_scaling_factor=2,
    )
    images = LatentDecoder(sdxl(), tiny)(torch.randn(3, 4, 8, 8))
    assert images.shape == (3, 3, 16, 16)
    assert (images >= 0).all()
    assert (images <= 1).all()

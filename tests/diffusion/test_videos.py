"""Steering pipelines of videos."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler
from PIL import Image

from benchmarks.pipelines.video_memory import peak_of_tensors, unavoidable
from fk_steer import Execution, FKSteering, FrameReward, steer
from fk_steer.search import Preview
from fk_steer.testing import redness
from fk_steer.testing.tiny import FAMILIES
from fk_steer.testing.tiny import wan as tiny_wan


CALL = {"num_inference_steps": 3, "height": 16, "width": 16, "num_frames": 9, "max_sequence_length": 16}
STEERING = FKSteering(num_particles=4, lmbda=10.0, schedule=(0.5,))
REWARD = FrameReward(redness, frames=4)


def wan():
    return tiny_wan(FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True))


def run(
    output_type="pt", execution=None, steering=STEERING, reward=REWARD, pipe=None, prompt="a red circle", **options
):
    call = {**CALL, "generator": torch.Generator().manual_seed(0), "output_type": output_type, **options}
    options = {name: call.pop(name) for name in ("on_event", "keep_predictions") if name in call}
    return steer(pipe or wan(), reward, steering, execution)(prompt, **call, **options)


def pixels(videos, output_type):
    """The frames of videos as numbers in [0, 1], with the channels last."""
    if output_type == "pil":
        return np.stack([[np.asarray(frame) for frame in video] for video in videos]) / 255
    return np.asarray(videos) if output_type == "np" else np.moveaxis(np.asarray(videos), -3, -1)


def decoded(pipe, latents, size):
    """The videos that a stock pipeline makes of latents, so many at a time."""
    config = pipe.vae.config
    mean, std = (torch.tensor(value).view(1, -1, 1, 1, 1) for value in (config.latents_mean, config.latents_std))
    with torch.no_grad():
        chunks = [pipe.vae.decode(chunk / (1.0 / std) + mean).sample for chunk in latents.split(size)]
    return pipe.video_processor.postprocess_video(torch.cat(chunks), output_type="pt")


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
@pytest.mark.parametrize("prompt", ["a red circle", ["a red circle", "two blue squares"]], ids=["one", "two"])
def test_final_videos_are_what_the_pipeline_makes_of_the_final_latents(output_type, prompt):
    latents = run("latent", prompt=prompt)
    videos = run(output_type, prompt=prompt)
    assert torch.equal(videos.rewards, latents.rewards)
    assert torch.equal(videos.log_weights, latents.log_weights)
    for mine, theirs, rewards in zip(videos.particles, latents.particles, videos.rewards, strict=True):
        expected = decoded(wan(), theirs, 1)
        assert torch.allclose(rewards, REWARD(expected, ["a"] * len(expected)), atol=1e-5)
        if output_type == "pil":
            assert np.array_equal(255 * pixels(mine, "pil"), np.round(255 * pixels(expected, "pt")))
        else:
            assert np.array_equal(pixels(mine, output_type), pixels(expected, "pt"))
    best = [population[0] for population in videos.particles]
    assert np.array_equal(pixels(videos.images, output_type), pixels(best, output_type))
    assert isinstance(videos.particles, {"pil": list, "np": np.ndarray, "pt": torch.Tensor}[output_type])


@pytest.mark.parametrize("output_type", ["pil", "pt"])
@pytest.mark.parametrize(("decode", "score"), [(2, None), (2, 3), (8, 1)])
def test_chunks_change_nothing(output_type, decode, score):
    alone = run(output_type)
    chunked = run(output_type, Execution(decode_batch_size=decode, reward_batch_size=score))
    # An autoencoder rounds differently in batches of other sizes.
    assert torch.allclose(alone.rewards, chunked.rewards, atol=1e-4)
    for one, other in zip(alone.particles, chunked.particles, strict=True):
        difference = np.abs(pixels(one, output_type) - pixels(other, output_type)).max()
        assert difference <= (1 / 255 if output_type == "pil" else 1e-4)


def test_predictions_can_be_seen_during_and_after_the_run():
    events, seen = [], []

    def look(event):
        events.append(event)
        seen.append(event.predictions())

    output = run(on_event=look)
    assert [one.shape for one in seen] == [(1, 4, 9, 3, 16, 16)] * 2
    assert torch.equal(seen[-1][0][output.rewards.argsort()[0].flip(0)].sum((1, 2, 3, 4)).sort()[0],
                       output.particles[0].sum((1, 2, 3, 4)).sort()[0])  # fmt: skip
    for event, before in zip(events, seen):
        assert torch.equal(event.predictions(), before)


@pytest.mark.parametrize("output_type", ["pil", "pt"])
def test_memory_is_flat_in_particles(output_type):
    """But for what a call gives back, as tensors, and latents."""
    sizes, side = Execution(denoise_batch_size=2, decode_batch_size=1), 32
    few, many = (
        peak_of_tensors(particles, output_type, sizes, side) - unavoidable(particles, output_type, side)
        for particles in (3, 8)
    )
    a_video, latents = 4 * 17 * 3 * side**2, unavoidable(1, "latent", side)
    # Of each particle further latents: predictions, outputs of the denoiser, what the scheduler remembers, embeddings.
    assert many - few < 5 * 10 * latents
    assert 10 * latents < 0.1 * a_video


class TestPreviews:
    """Of videos."""

    def test_a_tiny_autoencoder_of_images_is_refused_before_the_loop(self):
        pipe, preview = wan(), Preview(AutoencoderTiny())
        pipe.transformer.forward = None  # is not called
        message = "WanPipeline decodes videos whole, with its AutoencoderKLWan, and an `AutoencoderTiny` decodes images"
        with pytest.raises(ValueError, match=message):
            run(steering=STEERING.replace(preview=preview), pipe=pipe)

    def test_what_cannot_stand_in_for_an_autoencoder_is_refused(self):
        class Half(torch.nn.Module):
            config = {}

            def decode(self, latents):
                return latents

        with pytest.raises(ValueError, match="Expected the preview's decoder to be an `AutoencoderTiny`"):
            run(steering=STEERING.replace(preview=Preview(Half())))

    @pytest.mark.parametrize("until", [1.0, 0.4])
    def test_a_decoder_of_ones_own_shows_early_predictions(self, until):
        class Red(torch.nn.Module):
            """Of whatever latents, red videos."""

            def __init__(self, vae):
                super().__init__()
                self.config, self.dtype, self.device, self.calls = vae.config, vae.dtype, vae.device, 0

            def decode(self, latents, return_dict=True):
                self.calls += 1
                frames = 4 * (latents.shape[2] - 1) + 1
                videos = torch.full((len(latents), 3, frames, 8 * latents.shape[3], 8 * latents.shape[4]), -1.0)
                videos[:, 0] = 1.0
                return (videos,)

        pipe, rewards = wan(), []
        small = Red(pipe.vae)
        steering = FKSteering(
            num_particles=3, lmbda=1.0, schedule=(0.3, 0.7), preview=Preview(small, until), noise=STEERING.noise
        )
        own = pipe.vae
        output = run(steering=steering, pipe=pipe, on_event=lambda event: rewards.append(event.rewards[0]))
        assert pipe.vae is own
        red = [bool((of_event == 20.0).all()) for of_event in rewards]
        assert red == ([True, True, False] if until == 1.0 else [True, False, False])
        assert small.calls == 3 * sum(red)
        assert torch.allclose(REWARD(output.particles[0], ["a"] * 3), output.rewards[0], atol=1e-4)

    def test_frames_that_are_decoded_as_images_take_a_tiny_autoencoder(self):
        make, call = FAMILIES["animatediff"]
        small = AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        )
        pipe, calls = make(), []
        decode = small.decode
        small.decode = lambda *args, **kwargs: (calls.append(1), decode(*args, **kwargs))[1]
        steering = FKSteering(num_particles=2, lmbda=1.0, schedule=(0.5,), preview=Preview(small))
        steer(pipe, REWARD, steering)("a red circle", num_inference_steps=2, **call)
        assert calls


def test_small_animations_of_predictions():
    events = run(keep_predictions=True).trace.events
    for event in events:
        ((*urls,),) = event.predictions
        assert len(urls) == 4
        for url in urls:
            assert url.startswith("data:image/webp;base64,")
            with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as animation:
                assert animation.n_frames == 9

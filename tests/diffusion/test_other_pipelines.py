"""`steer` on pipelines and arguments beyond text to image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from diffusers import (
    ControlNetModel,
    FirstBlockCacheConfig,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPAGPipeline,
)

from fk_steer import Execution, FKSteering, Noise, Resampling, Stop, Strategy, steer
from fk_steer.diffusion import LatentDecoder
from fk_steer.diffusion.interception import intercept
from fk_steer.search import DepthFirst, Plan
from fk_steer.testing import CALLS, PROMPTS, SIZE, quiet, redness, sd, sd_scheduler, sdxl


PLAIN = FKSteering(num_particles=3, lmbda=1.0, noise=Noise(eta=0.0), schedule=(), seed=0)


def with_components(kind, pipe, **others):
    return quiet(kind(**pipe.components, requires_safety_checker=False, **others))


def by_prompt(images, prompts):
    """Images of the first prompt are good enough, all others are not."""
    return torch.tensor([10.0 * (prompt == PROMPTS[0]) for prompt in prompts]) + images.mean((1, 2, 3))


class TestImagesOfSeveralPrompts:
    """Black for the first prompt, white for the second."""

    IMAGES = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])
    CALL = {"strength": 0.5, "num_inference_steps": 40, "guidance_scale": 5.0}

    def starts(self, kind, steering, prompts, **call):
        """The output, and for each loop which of the images its rows start from."""
        pipe = with_components(kind, sd())
        pipe.vae.quant_conv.bias.data[4:] = -20.0  # hardly any variance, so that latents tell which image they are of
        encoded = pipe.vae.encode(2 * self.IMAGES - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
        found = []

        def remember(inner, latents, noise, timestep):
            found.append(torch.cdist(latents.flatten(1), encoded.flatten(1)).argmin(1).tolist())
            return inner(latents, noise, timestep)

        with intercept(pipe.scheduler, "add_noise", lambda inner: partial(remember, inner)):
            return steer(pipe, by_prompt, steering)(prompts, **{**self.CALL, **call}), found

    def test_each_row_starts_from_its_prompts_image(self):
        _, (found,) = self.starts(StableDiffusionImg2ImgPipeline, PLAIN, PROMPTS, image=self.IMAGES)
        assert found == [0, 0, 0, 1, 1, 1]

    def test_and_when_inpainting(self):
        mask = torch.ones(2, 1, 16, 16)
        _, found = self.starts(
            StableDiffusionInpaintPipeline, PLAIN, PROMPTS, image=self.IMAGES, mask_image=mask, **SIZE
        )
        assert found[0] == [0, 0, 0, 1, 1, 1]

    def test_a_single_image_is_for_all(self):
        _, (found,) = self.starts(StableDiffusionImg2ImgPipeline, PLAIN, PROMPTS, image=self.IMAGES[1:])
        assert found == [1] * 6

    def test_rolled_over_prompts_keep_their_image(self):
        steering = FKSteering(num_particles=2, schedule=(0.25,), stop=Stop(5.0, rollover=True), seed=0)
        prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[0]]
        images = self.IMAGES[[0, 1, 0, 0]]
        output, found = self.starts(StableDiffusionImg2ImgPipeline, steering, prompts, image=images)
        assert [populations for populations, _ in output.trace.retries] == [[1]]
        assert found == [[0, 0, 1, 1, 0, 0, 0, 0], [1, 1]]


@pytest.mark.parametrize("name", CALLS)
def test_embeddings_in_place_of_prompts(name):
    make, call = CALLS[name]
    pipe = make()
    options = {"num_images_per_prompt": 1, "device": "cpu"}
    if name == "flux":
        names = ("prompt_embeds", "pooled_prompt_embeds")
        embeddings = pipe.encode_prompt(PROMPTS, None, max_sequence_length=call["max_sequence_length"], **options)
    elif name == "sd":
        names = ("prompt_embeds", "negative_prompt_embeds")
        embeddings = pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=True, **options)
    else:
        names = (
            "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds",
        )  # fmt: skip
        texts = (PROMPTS, None) if name == "sdxl" else (PROMPTS, None, None)
        embeddings = pipe.encode_prompt(*texts, **options)
    call = {**call, "num_inference_steps": 4, "output_type": "pt", "num_images_per_prompt": 2}
    steered = steer(pipe, redness, FKSteering(lmbda=10.0, num_particles=2, schedule=(0.5,), seed=0))
    expected = steered(PROMPTS, **call)
    output = steered(**dict(zip(names, embeddings)), reward_prompt=PROMPTS, **call)
    torch.testing.assert_close(output.particles, expected.particles, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"guess_mode": True}, {"guidance_scale": 1.0}], ids=str)
def test_a_controlnet_runs_on_the_same_rows(options):
    pipe = sd()
    controlnet = ControlNetModel.from_unet(pipe.unet)
    controlnet.controlnet_cond_embedding = torch.nn.Conv2d(3, 16, 3, stride=2, padding=1)
    for layer in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
        torch.nn.init.normal_(layer.weight, std=0.1)
    pipe = with_components(StableDiffusionControlNetPipeline, pipe, controlnet=controlnet)
    rows = []
    call = {**SIZE, "image": torch.rand(2, 3, 16, 16), "num_inference_steps": 8, "output_type": "pt", **options}
    psp = FKSteering.preset("psp", seed=0)
    with controlnet.conv_in.register_forward_pre_hook(lambda module, args: rows.append(len(args[0]))):
        output = steer(pipe, redness, psp)(PROMPTS, **call)
    assert sum(rows) == output.trace.nfe // (2 if options.get("guess_mode") else 1)
    assert min(rows) < max(rows)
    # The survivors are what the same seeds give without any pruning.
    unpruned = steer(pipe, redness, FKSteering.preset("best-of-n", num_particles=8, seed=0))(PROMPTS, **call)
    survivors = [8 * p + slot for p, slots in enumerate(output.trace.events[-1].slots) for slot in slots]
    order = torch.tensor(unpruned.trace.events[-1].rewards).argsort(dim=1, descending=True, stable=True)
    ranks = order.argsort(dim=1).flatten() + 8 * torch.arange(2).repeat_interleave(8)
    kept = unpruned.particles.flatten(0, 1)[ranks[survivors]].view(2, -1, 3, 16, 16)
    rewards = torch.stack([redness(images, []) for images in kept])
    best_first = rewards.argsort(dim=1, descending=True)
    kept = torch.stack([images[row] for images, row in zip(kept, best_first)])
    torch.testing.assert_close(output.particles, kept, atol=1e-4, rtol=1e-4)


def test_images_of_two_controlnets_are_for_all_prompts():
    pipe = sd()
    nets = [ControlNetModel.from_unet(pipe.unet) for _ in range(2)]
    for net in nets:
        net.controlnet_cond_embedding = torch.nn.Conv2d(3, 16, 3, stride=2, padding=1)
        torch.nn.init.normal_(net.controlnet_mid_block.weight, std=0.1)
    pipe = with_components(StableDiffusionControlNetPipeline, pipe, controlnet=nets)
    call = {**SIZE, "image": [torch.rand(1, 3, 16, 16) for _ in nets], "num_inference_steps": 4, "output_type": "pt"}
    steered = steer(pipe, redness, PLAIN)
    both, second = steered(PROMPTS, **call), steered(PROMPTS[1], **call)
    torch.testing.assert_close(both.particles[1:], second.particles, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 4])
def test_chunks_keep_together_what_perturbed_attention_compares(size):
    pipe = with_components(StableDiffusionPAGPipeline, sd(), pag_applied_layers=["mid"])
    call = {**SIZE, "num_inference_steps": 4, "pag_scale": 3.0, "guidance_scale": 5.0, "output_type": "pt"}
    whole = steer(pipe, redness, PLAIN)(PROMPTS, **call)
    rows = []
    with pipe.unet.conv_in.register_forward_pre_hook(lambda module, args: rows.append(len(args[0]))):
        chunked = steer(pipe, redness, PLAIN, Execution(denoise_batch_size=size))(PROMPTS, **call)
    # Three rows belong together, which are as many as fit in four, and more than fit in one.
    assert set(rows) == {3}
    torch.testing.assert_close(chunked.particles, whole.particles, atol=1e-5, rtol=1e-5)
    assert chunked.trace.nfe == whole.trace.nfe == 4 * 2 * 3 * 3


def test_a_loop_that_stops_early_is_scored_by_its_last_x0_predictions():
    """They are those of the same step of the whole loop."""
    pipe = sdxl(sd_scheduler("epsilon"))
    call = {**SIZE, "num_inference_steps": 20, "output_type": "latent"}
    settings = {"lmbda": 0.0, "noise": Noise(eta=0.0), "resampling": Resampling(ess_threshold=0.0), "seed": 0}
    whole = steer(pipe, redness, FKSteering(schedule=(11,), **settings))(PROMPTS, **call)
    early = steer(pipe, redness, FKSteering(schedule=(), **settings))(PROMPTS, denoising_end=0.6, **call)
    assert early.trace.num_steps == 12
    for rewards, expected in zip(early.trace.events[-1].rewards, whole.trace.events[0].rewards, strict=True):
        assert rewards == pytest.approx(expected, abs=1e-5)
    decoded = LatentDecoder(pipe)(early.particles.flatten(0, 1))
    assert not torch.allclose(redness(decoded, []).view(2, 4), early.rewards, atol=1e-2)


@dataclass(frozen=True)
class TakesTheBest(Strategy):
    """After the noise of one step, all go on from the best particle."""

    at: int = 0

    def events(self, num_steps):
        return (self.at,)

    def step(self, look):
        return Plan(look.ranked()[:, :1].expand_as(look.rewards), after_noise=True)


def test_the_last_x0_predictions_follow_particles_that_move_after_the_noise():
    """Where a loop stops early, what is scored in the end are the x0 predictions of the ancestors."""
    pipe = sdxl(sd_scheduler("epsilon"))
    call = {**SIZE, "num_inference_steps": 20, "output_type": "latent", "denoising_end": 0.6}
    output = steer(pipe, redness, TakesTheBest(4, at=11))(PROMPTS, generator=torch.Generator().manual_seed(9), **call)
    event, final = output.trace.events
    assert event.step == output.trace.num_steps - 1 == 11
    assert all(parents[0] != 0 for parents in event.parents)
    for p in range(2):
        assert event.parents[p] != event.slots_before[p]
        seen = dict(zip(event.slots_before[p], event.rewards[p]))
        assert final.rewards[p] == pytest.approx([seen[parent] for parent in event.parents[p]], abs=1e-5)
        assert len(set(event.rewards[p])) == 4


@pytest.mark.parametrize("kind", ["controlnet", "inpaint"])
def test_pipelines_that_count_their_steps_cannot_be_sent_back(kind):
    """They look up by the number of the step what they do in it."""
    pipe = sd()
    call = {**SIZE, "image": torch.rand(1, 3, 16, 16), "num_inference_steps": 8}
    if kind == "controlnet":
        controlnet = ControlNetModel.from_unet(pipe.unet)
        controlnet.controlnet_cond_embedding = torch.nn.Conv2d(3, 16, 3, stride=2, padding=1)
        pipe = with_components(StableDiffusionControlNetPipeline, pipe, controlnet=controlnet)
    else:
        pipe = with_components(StableDiffusionInpaintPipeline, pipe)
        call |= {"mask_image": torch.ones(1, 1, 16, 16), "strength": 1.0}
    with pytest.raises(ValueError, match=f"{type(pipe).__name__} counts its steps"):
        steer(pipe, redness, DepthFirst(2))(PROMPTS, **call)
    steer(pipe, redness, FKSteering(2))(PROMPTS, **call)


def test_a_denoiser_with_a_cache_is_refused():
    pipe = CALLS["flux"][0]()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    with pytest.raises(ValueError, match=r"pipe\.transformer\.disable_cache\(\)"):
        steer(pipe, redness, PLAIN)(PROMPTS, num_inference_steps=2, **CALLS["flux"][1])

"""Modular pipelines of SDXL and Flux: steered like the plain ones."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from diffusers import ClassifierFreeGuidance
from diffusers.modular_pipelines import StableDiffusionXLAutoBlocks

from fk_steer import Execution, FKSteering, Noise, Strategy, steer
from fk_steer.diffusion.blocks import loops_of
from fk_steer.search import DepthFirst, Evolution, Lookahead, Metropolis, Plan
from fk_steer.testing import CALLS, PROMPTS, redness, row_generators
from fk_steer.testing.tiny import modular_of


STEPS = 6
STILL = Noise(eta=0.0)
IMAGE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(5))
FROM_IMAGE = {"image": IMAGE, "strength": 0.7}
FILLED = {**FROM_IMAGE, "mask_image": (IMAGE[:, :1] > 0.5).float()}
CASES = {
    "sdxl text": ("sdxl", {}),
    "sdxl image": ("sdxl", FROM_IMAGE),
    "sdxl mask": ("sdxl", FILLED),
    "flux text": ("flux", {}),
    "flux image": ("flux", FROM_IMAGE),
}
"""Name of the plain pipeline, and what is given beside a prompt."""


@cache
def plain(name):
    return CALLS[name][0]()


def pipe_and_call(case):
    name, given = CASES[case]
    pipe = modular_of(plain(name))
    call = {**CALLS[name][1], "num_inference_steps": STEPS, "output_type": "pt", **given}
    return pipe, {key: value for key, value in call.items() if key in pipe.blocks.input_names}


def stock(pipe, call, seeds, prompt=PROMPTS[0]):
    rows = [pipe(prompt=prompt, **call, generator=g, output="images") for g in row_generators(*seeds)]
    return torch.cat(rows)


def in_slot_order(output):
    rewards = torch.tensor(output.trace.events[-1].rewards)
    rank = rewards.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return torch.stack([population[order] for population, order in zip(output.particles, rank)])


@dataclass(frozen=True)
class Moving(Strategy):
    """At step 1, without noise, particles go on as those of `ancestors`."""

    num_particles: int = 3
    noise: Noise = STILL
    ancestors: tuple[int, ...] = (0, 1, 2)

    def events(self, num_steps):
        return [1]

    def step(self, look):
        return Plan(torch.tensor([self.ancestors] * len(look.slots)))

    def copying(self, num_steps):
        return []


@pytest.mark.parametrize("case", CASES)
class TestSameAsStock:
    def test_one_particle_that_nothing_happens_to(self, case):
        pipe, call = pipe_and_call(case)
        alone = stock(pipe, call, (0,))
        output = steer(pipe, redness, FKSteering(1, 1.0, schedule=(), noise=STILL))(
            prompt=PROMPTS[0], **call, generator=row_generators(0)
        )
        assert torch.equal(output.images, alone)
        assert torch.equal(stock(pipe, call, (0,)), alone)

    @pytest.mark.parametrize("size", [None, 1])
    def test_lineages(self, case, size):
        """Each has its ancestor's stock image; for images that begin with one drawn from it, the ancestor's too."""
        pipe, call = pipe_and_call(case)
        if case == "sdxl mask":  # where particles share what they are conditioned on, drawn by the first
            call["num_inference_steps"] = 3
        steered = steer(pipe, redness, Moving(ancestors=(2, 2, 0)), Execution(size, size, size))
        images = in_slot_order(steered(prompt=PROMPTS[0], **call, generator=row_generators(0, 1, 2)))[0]
        assert torch.equal(images[0], images[1])
        if case != "sdxl mask":
            torch.testing.assert_close(images, stock(pipe, call, (0, 1, 2))[[2, 2, 0]], atol=2e-5, rtol=0)

    def test_pruned_rows_are_not_computed(self, case):
        pipe, call = pipe_and_call(case)
        output = steer(pipe, redness, Moving(ancestors=(1,)))(
            prompt=PROMPTS, **call, generator=row_generators(*range(6))
        )
        steps, conditions = output.trace.num_steps, 1 if "flux" in case else 2
        assert output.trace.nfe == 2 * conditions * (3 * 2 + (steps - 2))
        assert output.trace.denoiser_calls == conditions * steps

    def test_a_prompt_in_a_batch_is_as_alone(self, case):
        pipe, call = pipe_and_call(case)
        steered = steer(pipe, redness, FKSteering(3, 10.0))
        seeds = [0, 1, 2, 3, 4, 5]
        together = steered(prompt=PROMPTS, **call, generator=row_generators(*seeds))
        second = steered(prompt=PROMPTS[1], **call, generator=row_generators(*seeds[3:]))
        torch.testing.assert_close(together.images[1:], second.images, atol=2e-5, rtol=0)
        torch.testing.assert_close(together.rewards[1:], second.rewards, atol=2e-3, rtol=0)

    def test_prompts_are_encoded_once(self, case, monkeypatch):
        """For the run, and one of them once more for a replay of one row, however often is decoded."""
        pipe, call = pipe_and_call(case)
        rows = []
        encoders = [pipe.text_encoder, pipe.text_encoder_2]
        handles = [one.register_forward_hook(lambda module, args, out: rows.append(len(args[0]))) for one in encoders]
        output = steer(pipe, redness, FKSteering(3, 10.0, schedule=(1, 2, 3), noise=Noise()))(
            prompt=PROMPTS, **call, generator=row_generators(*range(6))
        )
        for handle in handles:
            handle.remove()
        assert len(output.trace.events) >= 3
        assert rows == [2, 2, 1, 1]

    def test_final_images_are_those_scored(self, case):
        pipe, call = pipe_and_call(case)
        output = steer(pipe, redness, "adaptive")(prompt=PROMPTS[0], **call, generator=row_generators(0))
        torch.testing.assert_close(output.rewards[0], redness(output.particles[0], []), atol=1e-4, rtol=0)
        assert output.rewards[0].diff().le(0).all()


@pytest.mark.parametrize(
    "search",
    [Lookahead(2), Lookahead(2, ahead=2, leaps=None), Metropolis(2, lmbda=10.0), DepthFirst(2), Evolution(2)],
    ids=lambda search: type(search).__name__,
)
def test_searches_that_go_back_do_what_they_do_in_the_plain_pipeline(search):
    pipe, call = pipe_and_call("sdxl text")
    outputs = []
    for one, more in ((pipe, {}), (plain("sdxl"), {"guidance_scale": 7.5})):
        steered = steer(one, redness, search)
        outputs.append(steered(prompt=PROMPTS[0], **call, **more, generator=row_generators(0)))
    first, second = outputs
    assert [(e.step, e.resume) for e in first.trace.events] == [(e.step, e.resume) for e in second.trace.events]
    assert first.trace.nfe == second.trace.nfe
    torch.testing.assert_close(first.images, second.images, atol=2e-5, rtol=0)


@pytest.mark.parametrize("window", [{"stop": 0.5}, {"start": 0.5}], ids=str)
def test_guidance_for_a_part_of_the_loop(window):
    """Blocks ask the guider how many conditions there are before the loop: what the main run had is what counts."""
    pipe, call = pipe_and_call("sdxl text")
    pipe.update_components(guider=ClassifierFreeGuidance(7.5, **window))
    alone = stock(pipe, call, (0,))
    pipe.update_components(guider=ClassifierFreeGuidance(7.5, **window))
    output = steer(pipe, redness, Moving(ancestors=(0, 0, 0)))(
        prompt=PROMPTS[0], **call, generator=row_generators(0, 1, 2)
    )
    torch.testing.assert_close(output.particles[0], alone.expand(3, -1, -1, -1), atol=2e-5, rtol=0)


def test_a_mask_with_padding_is_put_back_into_the_image():
    pipe, call = pipe_and_call("sdxl mask")
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 5:9, 5:9] = 1
    from diffusers.image_processor import VaeImageProcessor

    picture = VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(IMAGE))[0]
    hole = VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(mask.expand(1, 3, 16, 16)))[0]
    call |= {"image": picture, "mask_image": hole, "padding_mask_crop": 2, "output_type": "pil"}
    scored = []

    def reward(images, prompts):
        scored.append(images)
        return redness(images, prompts)

    output = steer(pipe, reward, FKSteering(2, 10.0, schedule=(1,)))(
        prompt=PROMPTS[0], **call, generator=row_generators(0, 1)
    )
    for images in scored:
        torch.testing.assert_close(images[:, :, 12:], IMAGE[:, :, 12:].expand(2, -1, -1, -1), atol=0.01, rtol=0)
    assert output.images[0].size == (16, 16)


class TestOutputs:
    def test_nothing_is_said_of_replays(self, caplog, capsys):
        pipe, call = pipe_and_call("sdxl text")
        for loop in loops_of(pipe):
            loop.set_progress_bar_config(disable=False)
        with caplog.at_level(logging.DEBUG):
            steer(pipe, redness, "adaptive")(prompt=PROMPTS[0], **call)
        assert not [record for record in caplog.records if "modular_pipeline" in record.name]
        bars = capsys.readouterr().err
        assert f"{STEPS}/{STEPS}" in bars
        assert bars.count("0/6") == 1

    def test_latents(self):
        pipe, call = pipe_and_call("sdxl text")
        alone = pipe(
            prompt=PROMPTS[0], **{**call, "output_type": "latent"}, generator=row_generators(0)[0], output="images"
        )
        output = steer(pipe, redness, FKSteering(1, 1.0, schedule=(), noise=STILL))(
            prompt=PROMPTS[0], **{**call, "output_type": "latent"}, generator=row_generators(0)
        )
        assert torch.equal(output.images, alone)
        torch.testing.assert_close(output.rewards[0], redness(stock(pipe, call, (0,)), []), atol=1e-4, rtol=0)

    def test_images_may_be_asked_for_by_name(self):
        pipe, call = pipe_and_call("flux text")
        output = steer(pipe, redness, FKSteering(2, 1.0))(prompt=PROMPTS[0], **call, output="images")
        assert output.images.shape == (1, 3, 16, 16)

    def test_blocks_are_those_of_before(self):
        pipe, call = pipe_and_call("sdxl text")
        before = {name: id(block) for name, block in pipe._blocks.sub_blocks.items()}
        steer(pipe, redness, FKSteering(2, 1.0))(prompt=PROMPTS[0], **call)
        assert {name: id(block) for name, block in pipe._blocks.sub_blocks.items()} == before


class TestMistakes:
    def check(self, message, pipe=None, **given):
        made, call = pipe_and_call("sdxl text")
        with pytest.raises(ValueError, match=message):
            steer(pipe or made, redness)(prompt=PROMPTS[0], **call, **given)

    def test_another_output(self):
        self.check("Leave `output='latents'` out", output="latents")
        self.check("whose `images` are what the pipeline calls `images`", output=["images", "latents"])

    def test_a_state(self):
        pipe, call = pipe_and_call("sdxl text")
        state = pipe(prompt=PROMPTS[0], **call)
        self.check("Pass what it needs of another by name", state=state)

    def test_components_that_are_not_loaded(self):
        self.check(
            "`scheduler`.* `pipe.load_components\\(\\)` loads them", StableDiffusionXLAutoBlocks().init_pipeline()
        )

    def test_blocks_that_make_no_images(self):
        blocks = StableDiffusionXLAutoBlocks()
        blocks.sub_blocks.pop("decode")
        self.check("make no images.* Steer a pipeline whose blocks go on to the decoder's", blocks.init_pipeline())

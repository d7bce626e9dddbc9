"""`steer` on stock pipelines: what it must not change, and what it must do."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from torch._dynamo.testing import CompileCounter

from fk_steer import Execution, FKSteering, Noise, Preview, Resampling, RewardError, Schedule, steer
from fk_steer.smc import TargetESS
from fk_steer.testing import CALLS, PROMPTS, SIZE, redness, row_generators, sd, sd_scheduler, sdxl


STEPS = 6
NO_OP = FKSteering(lmbda=0.0, noise=Noise(eta=0.0), schedule=Schedule())
RESAMPLE = FKSteering(lmbda=8.0, schedule=(0.2, 0.5, 0.7), potential="current", tempering="constant")


def in_slot_order(output) -> torch.Tensor:
    """Final images (N, k, 3, H, W) by slot instead of by reward."""
    rewards = torch.tensor(output.trace.events[-1].rewards)
    rank = rewards.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return torch.stack([population[order] for population, order in zip(output.particles, rank)])


@pytest.mark.parametrize("name", CALLS)
def test_no_op_is_bit_identical(name):
    make, call = CALLS[name]
    pipe = make()
    call = {**call, "num_inference_steps": STEPS, "output_type": "pt"}
    stock = pipe(PROMPTS, num_images_per_prompt=3, generator=row_generators(*range(6)), **call).images
    steering = FKSteering(
        num_particles=3,
        lmbda=0.0,
        schedule=(0.3, 0.6),
        resampling=Resampling(ess_threshold=0.0),
        noise=Noise(eta=0.0),
    )
    output = steer(pipe, redness, steering)(PROMPTS, generator=row_generators(*range(6)), **call)
    assert torch.equal(in_slot_order(output).flatten(0, 1), stock)
    assert len(output.trace.events) == 3


@pytest.mark.parametrize("name", CALLS)
def test_stochastic_no_op_is_bit_identical(name):
    """With the sampler's noise on; SD3 and Flux never hand the generator to the scheduler themselves."""
    make, call = CALLS[name]
    pipe = make()
    call = {**call, "num_inference_steps": STEPS, "output_type": "pt"}
    steered = steer(pipe, redness, FKSteering(num_particles=2, lmbda=0.0, schedule=Schedule()))
    output = steered(PROMPTS, generator=row_generators(*range(4)), **call)
    if name in ("sd", "sdxl"):
        call["eta"] = 1.0
        stock = pipe(PROMPTS, num_images_per_prompt=2, generator=row_generators(*range(4)), **call).images
        assert torch.equal(in_slot_order(output).flatten(0, 1), stock)
    else:
        again = steered(PROMPTS, generator=row_generators(*range(4)), **call)
        deterministic = steer(pipe, redness, NO_OP)(PROMPTS, generator=row_generators(*range(8)), **call)
        assert torch.equal(again.particles, output.particles)
        assert not torch.equal(in_slot_order(deterministic)[:, :2], in_slot_order(output))


@pytest.mark.parametrize("name", CALLS)
def test_two_prompts_together_equal_each_alone(name):
    make, call = CALLS[name]
    pipe = make()
    call = {**call, "num_inference_steps": STEPS, "output_type": "pt"}
    steered = steer(pipe, redness, RESAMPLE)
    seeded = lambda: torch.Generator().manual_seed(5)  # noqa: E731
    together = steered(PROMPTS, generator=seeded(), **call)
    alone = [steered(prompt, generator=seeded(), **call) for prompt in PROMPTS]
    assert any(any(event.resampled) for event in together.trace.events)
    particles = torch.cat([output.particles for output in alone])
    torch.testing.assert_close(together.particles, particles, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.rewards, torch.cat([output.rewards for output in alone]), atol=1e-4, rtol=1e-4)
    for index, event in enumerate(together.trace.events):
        assert event.parents == [output.trace.events[index].parents[0] for output in alone]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("size", [1, 3])
def test_chunk_sizes_do_not_change_the_images(name, size):
    make, call = CALLS[name]
    pipe = make()
    call = {**call, "num_inference_steps": STEPS, "output_type": "pt"}
    whole, parts = (
        steer(pipe, redness, RESAMPLE, execution)(PROMPTS, generator=torch.Generator().manual_seed(5), **call)
        for execution in (None, Execution.in_batches(size))
    )
    torch.testing.assert_close(parts.particles, whole.particles, atol=1e-5, rtol=1e-5)
    assert [event.parents for event in parts.trace.events] == [event.parents for event in whole.trace.events]
    assert parts.trace.nfe == whole.trace.nfe
    assert parts.trace.reward_calls == whole.trace.reward_calls


@pytest.mark.parametrize("name", CALLS)
def test_survivors_of_pruning_equal_the_same_rows_run_alone(name):
    make, call = CALLS[name]
    pipe = make()
    call = {**call, "num_inference_steps": 8, "output_type": "pt"}
    generators = row_generators(*range(16))
    psp = FKSteering.preset("psp", lmbda=1.0)
    output = steer(pipe, redness, psp)(PROMPTS, generator=generators, **call)
    assert output.particles.shape[:2] == output.rewards.shape == (2, 2)
    last = output.trace.events[-1]
    rows = [8 * prompt + slot for prompt in range(2) for slot in last.slots_before[prompt]]
    alone = pipe(
        PROMPTS, num_images_per_prompt=2, generator=row_generators(*rows), **call
    ).images  # fmt: skip
    torch.testing.assert_close(in_slot_order(output).flatten(0, 1), alone, atol=1e-5, rtol=1e-5)


SOLVERS = {
    "dpm++2m": ("DPMSolverMultistepScheduler", {}),
    "sde-dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "kdpm2-a": ("KDPM2AncestralDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "sa-solver": ("SASolverScheduler", {}),
    "lcm": ("LCMScheduler", {"original_inference_steps": 50}),
}


@pytest.mark.parametrize("solver", SOLVERS)
def test_pruning_carries_solver_history(solver):
    name, config = SOLVERS[solver]
    pipe = sd(sd_scheduler(kind=getattr(diffusers, name), **config))
    call = {**SIZE, "guidance_scale": 5.0, "num_inference_steps": 8, "output_type": "pt"}
    # The survivors' stock run has the sampler's own noise, if any.
    noise = Noise(eta=float(solver in ("sde-dpm++", "euler-a")))
    output = steer(pipe, redness, FKSteering.preset("psp", lmbda=1.0, noise=noise))(
        PROMPTS[0], generator=row_generators(*range(8, 16)), **call
    )
    rows = output.trace.events[-1].slots_before[0]
    assert rows != [0, 1], "the test needs survivors that are not simply the first rows"
    seeds = [8 + row for row in rows]
    alone = pipe(PROMPTS[0], num_images_per_prompt=2, generator=row_generators(*seeds), **call).images
    torch.testing.assert_close(in_slot_order(output)[0], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("solver", ["euler-a", "kdpm2-a", "sa-solver", "lcm", "sde-dpm++"])
def test_stochastic_solvers_can_be_steered(solver):
    name, config = SOLVERS[solver]
    pipe = sd(sd_scheduler(kind=getattr(diffusers, name), **config))
    output = steer(pipe, redness, RESAMPLE)(PROMPTS, num_inference_steps=8, generator=row_generators(0, 1), **SIZE)
    assert output.trace.events[-1].distinct_roots != [4, 4]
    assert len({image.tobytes() for images in output.particles for image in images}) == 8


def test_two_stage_solvers_are_scored_in_their_first_stage_only():
    pipe = sd(sd_scheduler(kind=diffusers.HeunDiscreteScheduler))
    steering = FKSteering(num_particles=2, lmbda=1.0, resampling=Resampling(ess_threshold=0.0), schedule=(1, 2, 5, 9))
    output = steer(pipe, redness, steering)(PROMPTS[0], num_inference_steps=6, **SIZE)
    # Eleven calls of `step`; even ones are first stages. 1 and 2 both wait for 2; 5 waits for 6, 9 for the last.
    assert [event.step for event in output.trace.events] == [2, 6, 11]


def test_resampling_before_the_noise_parts_copies_at_once_and_after_it_does_not():
    pipe, calls = sd(), []

    def run(**order):
        steering = FKSteering(
            lmbda=50.0, schedule=(2,), potential="current", tempering="constant", resampling=Resampling(**order)
        )
        seen = []

        def remember(pipe, index, timestep, kwargs):
            seen.append(kwargs["latents"].clone())
            return {}

        output = steer(pipe, redness, steering)(
            PROMPTS[0],
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(0),
            callback_on_step_end=remember,
            **SIZE,
        )
        calls.append(output.trace)
        return [len(latents.unique(dim=0)) for latents in seen]

    assert run() == [4] * STEPS
    distinct = run(after_noise=True)
    roots = calls[1].events[0].distinct_roots[0]
    assert roots < 4
    assert distinct[2] == roots
    assert distinct[3:] == [4] * (STEPS - 3)
    # The copies are run once in the step in which they are still equal: two rows each under guidance.
    assert calls[0].nfe - calls[1].nfe == 2 * (4 - roots)


def test_resampling_after_the_noise_moves_the_rows_the_reference_would():
    """The next latents are the stock ones, gathered by the recorded ancestors."""
    pipe = sd()
    seen: dict[str, list[torch.Tensor]] = {"stock": [], "steered": []}

    def remember(key):
        def callback(pipe, index, timestep, kwargs):
            seen[key].append(kwargs["latents"].clone())
            return {}

        return callback

    call = {**SIZE, "num_inference_steps": STEPS}
    pipe(
        PROMPTS[0],
        num_images_per_prompt=4,
        eta=1.0,
        generator=row_generators(0, 1, 2, 3),
        callback_on_step_end=remember("stock"),
        **call,
    )
    steering = FKSteering.preset("fk-paper", lmbda=5.0, schedule=(2,))
    output = steer(pipe, redness, steering)(
        PROMPTS[0], generator=row_generators(0, 1, 2, 3), callback_on_step_end=remember("steered"), **call
    )
    ancestors = output.trace.events[0].parents[0]
    assert ancestors != [0, 1, 2, 3]
    assert torch.equal(seen["steered"][1], seen["stock"][1])
    assert torch.equal(seen["steered"][2], seen["stock"][2][ancestors])


class TestCost:
    @pytest.mark.parametrize(("name", "rows_per_particle"), [("sd", 2), ("sdxl", 2), ("sd3", 2), ("flux", 1)])
    def test_pruned_particles_cost_nothing(self, name, rows_per_particle):
        make, call = CALLS[name]
        output = steer(make(), redness, FKSteering.preset("psp", lmbda=1.0))(PROMPTS, num_inference_steps=8, **call)
        # 8 particles for a quarter of the steps, 4 for the second, 2 for the rest: 4 trajectories; two prompts.
        assert output.trace.nfe == 2 * rows_per_particle * 4 * 8
        assert output.trace.denoiser_calls == 8
        assert output.trace.reward_calls == 2 * (8 + 4 + 2)

    def test_the_pipelines_own_decoding_is_of_survivors_only(self):
        pipe, sizes = sd(), []
        decode = pipe.vae.decode

        def count(z, *args, **kwargs):
            sizes.append(len(z))
            return decode(z, *args, **kwargs)

        pipe.vae.decode = count
        steer(pipe, redness, FKSteering.preset("psp", lmbda=1.0), Execution(decode_batch_size=3))(
            PROMPTS[0], num_inference_steps=8, **SIZE
        )
        assert sizes == [3, 3, 2, 3, 1, 2]
        assert pipe.vae.decode is count

    def test_seconds_add_up(self):
        seconds = steer(sd(), redness, RESAMPLE)(PROMPTS[0], num_inference_steps=4, **SIZE).trace.seconds
        parts = [seconds[part] for part in ("denoiser", "decode", "reward", "rest")]
        assert all(part > 0 for part in parts)
        assert sum(parts) == pytest.approx(seconds["total"])


class TestOutput:
    CALL = {**SIZE, "num_inference_steps": 4}

    def steered(self, pipe=None, **overrides):
        return steer(pipe or sd(), redness, FKSteering(num_particles=3, lmbda=1.0, **overrides))

    def run(self, output_type, **call):
        generator = torch.Generator().manual_seed(0)
        return self.steered()(PROMPTS, generator=generator, output_type=output_type, **self.CALL, **call)

    def test_best_first(self):
        output = self.run("pt")
        assert (output.rewards.diff(dim=1) <= 0).all()
        scored = redness(output.particles.flatten(0, 1), PROMPTS).view(2, 3)
        torch.testing.assert_close(output.rewards, scored, atol=1e-4, rtol=1e-4)
        assert torch.equal(output.images, output.particles[:, 0])
        assert output.log_weights.exp().sum(1).tolist() == pytest.approx([1, 1])

    def test_output_types_agree(self):
        pt, pil, numpy, latent = (self.run(kind) for kind in ("pt", "pil", "np", "latent"))
        pipe = sd()
        assert pt.images.shape == (2, 3, 16, 16)
        assert pt.particles.shape == (2, 3, 3, 16, 16)
        assert numpy.particles.shape == (2, 3, 16, 16, 3)
        assert [len(images) for images in pil.particles] == [3, 3]
        assert torch.equal(torch.from_numpy(numpy.particles).permute(0, 1, 4, 2, 3), pt.particles)
        for images, arrays in zip(pil.particles, numpy.particles):
            for image, array in zip(images, arrays):
                assert (abs(array * 255 - np.asarray(image)) <= 0.5001).all()
        assert [image.tobytes() for image in pil.images] == [images[0].tobytes() for images in pil.particles]
        assert (numpy.images == numpy.particles[:, 0]).all()
        assert torch.equal(latent.images, latent.particles[:, 0])
        latents = latent.particles.flatten(0, 1)
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]
        torch.testing.assert_close(pipe.image_processor.postprocess(decoded, "pt"), pt.particles.flatten(0, 1))
        torch.testing.assert_close(latent.rewards, pt.rewards)

    def test_tuple(self):
        images, nsfw, particles, rewards, log_weights, trace = self.run("pt", return_dict=False)
        output = self.run("pt")
        assert nsfw is None
        assert torch.equal(images, output.images)
        assert torch.equal(particles, output.particles)
        assert torch.equal(rewards, output.rewards)
        assert torch.equal(log_weights, output.log_weights)
        assert trace.events == output.trace.events

    def test_safety_flags_are_sorted_with_the_images(self):
        pipe = sd()
        flagged = []

        def check(image, device, dtype):
            image[::2] = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
            flagged.append(image[::2])  # which the pipeline then leaves as they are, red
            return image, [index % 2 == 0 for index in range(len(image))]

        def reward(images, prompts):
            return redness(images, prompts) * torch.tensor([1 if prompt == PROMPTS[0] else -1 for prompt in prompts])

        pipe.run_safety_checker = check
        output = steer(pipe, reward, FKSteering(3, lmbda=1.0))(PROMPTS, output_type="pt", **self.CALL)
        expected = [any(torch.equal(image, other) for other in flagged[0]) for image in output.images]
        assert output.nsfw_content_detected == expected == [True, False]

    def test_several_populations_per_prompt(self):
        output = self.steered()(PROMPTS[0], num_images_per_prompt=2, output_type="pt", **self.CALL)
        assert output.images.shape[0] == 2
        assert output.particles.shape[:2] == output.rewards.shape == (2, 3)
        assert output.trace.prompts == [PROMPTS[0]] * 2
        assert not torch.equal(output.particles[0], output.particles[1])

    def test_prompt_embeds(self):
        pipe = sd()
        with torch.no_grad():
            embeds, negative = pipe.encode_prompt(PROMPTS, "cpu", 1, True)
        by_text = self.steered(pipe)(PROMPTS, generator=torch.Generator().manual_seed(1), output_type="pt", **self.CALL)
        by_embeds = self.steered(pipe)(
            prompt_embeds=embeds,
            negative_prompt_embeds=negative,
            reward_prompt=PROMPTS,
            generator=torch.Generator().manual_seed(1),
            output_type="pt",
            **self.CALL,
        )
        assert torch.equal(by_text.particles, by_embeds.particles)
        assert by_embeds.trace.prompts == PROMPTS

    def test_positional_arguments(self):
        output = self.steered()(PROMPTS[0], 16, 32, 3, output_type="pt")
        assert output.particles.shape == (1, 3, 3, 16, 32)
        assert output.trace.num_steps == 3

    def test_one_particle_and_one_step(self):
        output = steer(sd(), redness, FKSteering(num_particles=1, lmbda=1.0))(PROMPTS[0], num_inference_steps=1, **SIZE)
        assert len(output.images) == 1
        assert output.log_weights.tolist() == [[0.0]]


class TestRandomness:
    CALL = {**SIZE, "num_inference_steps": 4, "output_type": "pt"}

    @pytest.fixture(autouse=True)
    def _make_pipeline(self):
        self.pipe = sd()

    def images(self, **call):
        return steer(self.pipe, redness, RESAMPLE)(PROMPTS, **self.CALL, **call).particles

    def test_a_generator_advances_and_can_be_repeated(self):
        generator = torch.Generator().manual_seed(3)
        first, second = self.images(generator=generator), self.images(generator=generator)
        assert not torch.equal(first, second)
        assert torch.equal(first, self.images(generator=torch.Generator().manual_seed(3)))

    def test_seed_of_the_settings(self):
        steering = RESAMPLE.replace(seed=7)
        first, second = (steer(self.pipe, redness, steering)(PROMPTS, **self.CALL).particles for _ in range(2))
        assert torch.equal(first, second)

    def test_without_either_runs_differ(self):
        assert not torch.equal(self.images(), self.images())

    def test_one_generator_per_prompt(self):
        both = self.images(generator=row_generators(3, 4))
        swapped = self.images(generator=row_generators(4, 3))
        assert torch.equal(both, self.images(generator=row_generators(3, 4)))
        assert not torch.equal(both, swapped)

    def test_one_generator_per_population(self):
        four = self.images(generator=tuple(row_generators(1, 2, 3, 4)), num_images_per_prompt=2)
        first, third = row_generators(1, 3)
        torch.testing.assert_close(four[0], self.images(generator=[first, third])[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(four[2], self.images(generator=row_generators(1, 3))[1], atol=1e-5, rtol=1e-5)

    def test_global_randomness_is_left_alone(self):
        torch.manual_seed(11)
        expected = torch.rand(3)
        torch.manual_seed(11)
        self.images(generator=torch.Generator().manual_seed(3))
        assert torch.equal(torch.rand(3), expected)

    def test_wrong_number_of_generators(self):
        with pytest.raises(ValueError, match=r"one per prompt \(2\), .* or one per particle \(8\), but got 3"):
            self.images(generator=row_generators(0, 1, 2))


class TestStockFeatures:
    CALL = {**SIZE, "num_inference_steps": 4, "output_type": "pt"}

    def test_negative_prompt_and_callback(self):
        steps = []

        def callback(pipe, index, timestep, kwargs):
            steps.append(index)
            return {"latents": kwargs["latents"] * 0.9}

        call = {**self.CALL, "negative_prompt": ["dull", "blurry"], "guidance_scale": 4.0}
        pipe = sd()
        plain = steer(pipe, redness, RESAMPLE)(PROMPTS, generator=row_generators(0, 1), **call)
        changed = steer(pipe, redness, RESAMPLE)(
            PROMPTS, generator=row_generators(0, 1), callback_on_step_end=callback, **call
        )
        assert steps == [0, 1, 2, 3]
        assert not torch.equal(plain.particles, changed.particles)

    def test_interrupt_finishes_from_the_last_state(self):
        def stop(pipe, index, timestep, kwargs):
            pipe._interrupt = index == 1
            return {}

        output = steer(sd(), redness, FKSteering(lmbda=1.0, schedule=(1, 3)))(
            PROMPTS[0], num_inference_steps=6, callback_on_step_end=stop, **SIZE
        )
        assert [event.step for event in output.trace.events] == [1, 6]

    def test_everything_is_put_back(self):
        pipe = sd()
        steer(pipe, redness, RESAMPLE)(PROMPTS, **self.CALL)
        for owner, name in ((pipe.scheduler, "step"), (pipe.unet, "forward"), (pipe.vae, "decode")):
            assert name not in vars(owner)

    def test_everything_is_put_back_after_an_exception(self):
        pipe = sd()

        def broken(images, prompts):
            raise KeyError("boom")

        with pytest.raises(RewardError):
            steer(pipe, broken, RESAMPLE)(PROMPTS, **self.CALL)
        for owner, name in ((pipe.scheduler, "step"), (pipe.unet, "forward"), (pipe.vae, "decode")):
            assert name not in vars(owner)
        assert len(pipe(PROMPTS, **self.CALL).images) == 2

    def test_switched_flow_sampler_is_put_back(self):
        make, call = CALLS["flux"]
        pipe = make()
        steer(pipe, redness, RESAMPLE)(PROMPTS, num_inference_steps=4, **call)
        assert not pipe.scheduler.config.stochastic_sampling

    def test_compiled_denoiser(self):
        counter = CompileCounter()
        pipe = sd()
        expected = steer(pipe, redness, RESAMPLE)(PROMPTS, generator=row_generators(0, 1), **self.CALL)
        pipe.unet = torch.compile(pipe.unet, backend=counter)
        output = steer(pipe, redness, RESAMPLE)(PROMPTS, generator=row_generators(0, 1), **self.CALL)
        graphs = counter.frame_count
        assert graphs > 0
        torch.testing.assert_close(output.particles, expected.particles, atol=1e-5, rtol=1e-5)
        steer(pipe, redness, RESAMPLE)(PROMPTS, generator=row_generators(0, 1), **self.CALL)
        assert counter.frame_count == graphs

    def test_denoiser_compiled_in_place(self):
        counter = CompileCounter()
        pipe = sd()
        expected = steer(pipe, redness, RESAMPLE)(PROMPTS, generator=row_generators(0, 1), **self.CALL)
        pipe.unet.compile(backend=counter)
        compiled = pipe.unet._compiled_call_impl
        output = steer(pipe, redness, RESAMPLE)(PROMPTS, generator=row_generators(0, 1), **self.CALL)
        assert counter.frame_count > 0
        torch.testing.assert_close(output.particles, expected.particles, atol=1e-5, rtol=1e-5)
        assert pipe.unet._compiled_call_impl is compiled

    def test_model_offload(self):
        expected = steer(sd(), redness, RESAMPLE)(PROMPTS, generator=row_generators(0, 1), **self.CALL)
        pipe = sd()
        pipe.enable_model_cpu_offload(device="cpu")
        output = steer(pipe, redness, RESAMPLE)(PROMPTS, generator=row_generators(0, 1), **self.CALL)
        assert torch.equal(output.particles, expected.particles)

    def test_lora(self):
        from peft import LoraConfig

        pipe = sd()
        plain = steer(pipe, redness, RESAMPLE)(PROMPTS, generator=row_generators(0, 1), **self.CALL)
        pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
        call = {**self.CALL, "generator": row_generators(0, 1)}
        adapted = steer(pipe, redness, RESAMPLE)(PROMPTS, cross_attention_kwargs={"scale": 0.5}, **call)
        assert not torch.equal(adapted.particles, plain.particles)

    def test_preview_decoder_scores_x0_predictions_but_not_final_images(self):
        tiny = AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
            upsampling_scaling_factor=2,
        )
        shown = []

        def reward(images, prompts):
            shown.append(images)
            return redness(images, prompts)

        pipe = sd()
        steering = FKSteering(lmbda=1.0, schedule=(1,), preview=tiny)
        output = steer(pipe, reward, steering)(PROMPTS[0], num_inference_steps=4, output_type="pt", **SIZE)
        assert len(shown) == 2
        assert shown[0].shape == (4, 3, 16, 16)
        final = {tuple(image.flatten()[:8].tolist()) for image in shown[1]}
        assert final == {tuple(image.flatten()[:8].tolist()) for image in output.particles[0]}
        assert output.trace.steering["preview"] == {"decoder": "AutoencoderTiny", "until": 1.0}

    def test_preview_decoder_gives_way_to_the_pipelines_own(self):
        """From the progress `until` on, the VAE decodes x0 predictions."""
        tiny = AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
            upsampling_scaling_factor=2,
        )
        pipe, used = sd(), []
        for name, decoder in (("preview", tiny), ("own", pipe.vae)):
            decoder.decoder.register_forward_pre_hook(lambda module, args, name=name: used.append(name))
        settings = FKSteering(lmbda=1.0, schedule=(0.25, 0.5, 0.75))
        used_by = {}
        for until in (0.0, 0.5, 0.6, 1.0):
            steer(pipe, redness, settings.replace(preview=Preview(tiny, until)))(
                PROMPTS[0], num_inference_steps=8, **SIZE
            )
            used_by[until], used[:] = list(used), []
        assert used_by == {
            0.0: ["own"] * 4,
            0.5: ["preview", "own", "own", "own"],
            0.6: ["preview", "preview", "own", "own"],
            1.0: ["preview", "preview", "preview", "own"],
        }

    def test_custom_latents(self):
        pipe = sd()
        latents = torch.randn(4, 4, 8, 8)
        steered = steer(pipe, redness, NO_OP)
        output = steered(PROMPTS[0], latents=latents, **self.CALL)
        stock = pipe(PROMPTS[0], num_images_per_prompt=4, latents=latents, **self.CALL).images
        assert torch.equal(in_slot_order(output)[0], stock)


class TestBadInput:
    CALL = {**SIZE, "num_inference_steps": 5}

    def test_deterministic_sampler_with_copies(self):
        with pytest.raises(ValueError, match="UniPCMultistepScheduler adds no noise.*DPMSolverMultistep.*'psp'"):
            steer(sd(sd_scheduler(kind=diffusers.UniPCMultistepScheduler)), redness, RESAMPLE)(PROMPTS, **self.CALL)
        with pytest.raises(ValueError, match="DDIMScheduler adds no noise.*`eta`"):
            steer(sd(), redness, RESAMPLE)(PROMPTS, eta=0.0, **self.CALL)
        closed = RESAMPLE.replace(schedule=Schedule(at=(0.5,)), noise=Noise(window=(0.0, 0.2)))
        with pytest.raises(ValueError, match="noise window"):
            steer(sd(), redness, closed)(PROMPTS, **self.CALL)

    def test_copies_that_grow_out_of_a_pruned_population_and_never_part(self):
        late = Schedule(at=(0.2, 0.6), alive=(0.5, 1.0))
        for settings in (
            FKSteering(resampling="top-k", schedule=late, noise=Noise(window=(0.2, 0.4))),
            FKSteering(resampling=Resampling(after_noise=True), schedule=(0.4,), noise=Noise(window=(0.0, 0.4))),
        ):
            with pytest.raises(ValueError, match="adds no noise after the first resampling"):
                steer(sd(), redness, settings)(PROMPTS, **self.CALL)

    def test_copies_of_the_last_resampling_that_never_part_are_warned_of(self):
        closed = FKSteering(schedule=(0.4, 0.8), noise=Noise(window=(0.0, 0.5)))
        with pytest.warns(
            UserWarning, match="adds no noise after step .* that the last resampling makes stay identical"
        ):
            steer(sd(), redness, closed)(PROMPTS, **self.CALL)

    def test_one_particle_needs_no_noise(self):
        pipe = sd(sd_scheduler(kind=diffusers.PNDMScheduler))
        assert len(steer(pipe, redness, FKSteering(num_particles=1))(PROMPTS, **self.CALL).images) == 2

    @pytest.mark.parametrize(
        ("call", "message"),
        [({"prompt": []}, "at least one prompt"), ({"prompt": PROMPTS, "generator": ()}, "but got 0")],
    )
    def test_nothing_to_do(self, call, message):
        with pytest.raises(ValueError, match=message):
            steer(sd(), redness, RESAMPLE)(**call, **self.CALL)

    def test_settings_of_another_kind(self):
        with pytest.raises(ValueError, match="`FKSteering`, another `Strategy` or the name of a preset, but got None"):
            steer(sd(), redness, None)

    def test_pruning_on_a_deterministic_sampler_is_fine(self):
        pipe = sd(sd_scheduler(kind=diffusers.UniPCMultistepScheduler))
        output = steer(pipe, redness, FKSteering.preset("psp", lmbda=1.0))(PROMPTS, **self.CALL)
        assert [len(images) for images in output.particles] == [2, 2]

    def test_eulers_noise_is_switched_on_for_sdxl(self):
        output = steer(sdxl(), redness, RESAMPLE)(PROMPTS, **self.CALL)
        assert len({image.tobytes() for images in output.particles for image in images}) == 8

    @pytest.mark.parametrize(
        ("reward", "message"),
        [
            (lambda images, prompts: torch.full((len(images),), torch.nan), r"NaN at step 0 .*'a red circle'"),
            (lambda images, prompts: images.mean((2, 3)), r"shape \(8, 3\) at step 0, but one number .* \(8,\)"),
            (lambda images, prompts: 1.0, r"shape \(\) at step 0"),
        ],
    )
    def test_unusable_rewards(self, reward, message):
        reward.__name__ = "my_reward"
        with pytest.raises(RewardError, match=f"Reward 'my_reward' returned {message}"):
            steer(sd(), reward, RESAMPLE)(PROMPTS, **self.CALL)

    def test_unusable_reward_of_the_final_images_names_the_prompt(self):
        def reward(images, prompts):
            return torch.tensor([torch.nan if prompt == PROMPTS[1] else 0.0 for prompt in prompts])

        with pytest.raises(RewardError, match="NaN for the final images for the prompt 'two blue squares'"):
            steer(sd(), reward, NO_OP)(PROMPTS, **self.CALL)

    def test_infinite_rewards_are_allowed(self):
        def reward(images, prompts):
            return torch.tensor([-torch.inf, 0.0, 0.0, 0.0])

        output = steer(sd(), reward, RESAMPLE)(PROMPTS[0], **self.CALL)
        assert output.rewards.tolist() == [[0.0, 0.0, 0.0, -torch.inf]]

    def test_no_lambda(self):
        with pytest.raises(ValueError, match="'redness' has no `default_lmbda`"):
            steer(sd(), redness, "fk")
        output = steer(sd(), redness, "adaptive")(PROMPTS, **self.CALL)
        assert all(value > 0 for value in output.trace.events[0].lmbda)

    def test_target_ess_ignores_the_rewards_scale(self):
        class Scaled:
            name, default_lmbda = "scaled", 3.0

            def __call__(self, images, prompts):
                return 1000 * redness(images, prompts)

        settings = FKSteering(tempering=TargetESS(0.6), seed=3)
        one, other = (steer(sd(), reward, settings)(PROMPTS, **self.CALL).trace for reward in (redness, Scaled()))
        assert [event.parents for event in one.events] == [event.parents for event in other.events]

    def test_schedule_outside_the_loop(self):
        with pytest.raises(ValueError, match="step 7, outside the loop of 5 steps"):
            steer(sd(), redness, FKSteering(lmbda=1.0, schedule=(7,)))(PROMPTS, **self.CALL)

    def test_unknown_preset(self):
        with pytest.raises(ValueError, match="Unknown preset 'best'. Known: adaptive, "):
            steer(sd(), redness, "best")

    def test_unsupported_scheduler_is_refused_at_once(self):
        with pytest.raises(ValueError, match="IPNDMScheduler does not say"):
            steer(sd(diffusers.IPNDMScheduler()), redness, RESAMPLE)

    def test_embeddings_without_a_text(self):
        embeds, negative = sd().encode_prompt(PROMPTS, "cpu", 1, True)
        with pytest.raises(ValueError, match="pass `reward_prompt`"):
            steer(sd(), redness, RESAMPLE)(prompt_embeds=embeds, negative_prompt_embeds=negative, **self.CALL)

    def test_wrong_number_of_reward_prompts(self):
        with pytest.raises(ValueError, match="each of 2 prompts, but got 1"):
            steer(sd(), redness, RESAMPLE)(PROMPTS, reward_prompt="one", **self.CALL)

    def test_no_prompt(self):
        with pytest.raises(ValueError, match="`prompt` or `prompt_embeds`"):
            steer(sd(), redness, RESAMPLE)(**self.CALL)

    def test_wrong_number_of_latents(self):
        with pytest.raises(ValueError, match="`latents` for 4 particles, but got 3"):
            steer(sd(), redness, RESAMPLE)(PROMPTS[0], latents=torch.randn(3, 4, 8, 8), guidance_scale=1.0, **self.CALL)

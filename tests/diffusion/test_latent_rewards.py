"""Rewards that read latents in place of images."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler

from fk_steer import FKSteering, steer
from fk_steer.diffusion import Execution
from fk_steer.diffusion.decode import LatentDecoder
from fk_steer.diffusion.particles import Particles
from fk_steer.diffusion.readings import Readings
from fk_steer.rewards import Cascade, LatentReward, RewardError, WeightedSum, load_reward
from fk_steer.search import Noise, preset
from fk_steer.testing import PROMPTS, redness, row_generators, sd, sd3, sdxl
from fk_steer.testing.tiny import FAMILIES


STEPS = 8
SMC = FKSteering(4, lmbda=20.0, tempering="constant", schedule=(0.25, 0.5, 0.75))
CALL = {"num_inference_steps": STEPS, "height": 32, "width": 32, "output_type": "pt"}


class Decoded(LatentReward):
    """The redness of the images that the x0 predictions stand for."""

    name = "decoded"

    def __init__(self, pipe, size=(32, 32)):
        self.decoder, self.seen = LatentDecoder(pipe, size=size), []

    def of_latents(self, latents, prompts):
        self.seen.append((latents, list(prompts)))
        return redness(self.decoder(latents.x0), prompts)


class Mean(LatentReward):
    name = "mean"

    def __init__(self, make=lambda latents: latents.x0.flatten(1).mean(1)):
        self.make, self.seen = make, []

    def of_latents(self, latents, prompts):
        self.seen.append(latents)
        return self.make(latents)


def run(pipe, reward, strategy=SMC, **call):
    arguments = {**CALL, "prompt": PROMPTS, "generator": row_generators(0, 1), **call}
    return steer(pipe, reward, strategy)(**arguments)


def counted(pipe):
    """Rows decoded by the pipeline's autoencoder so far."""
    rows, decode = [], pipe.vae.decode

    def counting(z, *args, **kwargs):
        rows.append(len(z))
        return decode(z, *args, **kwargs)

    pipe.vae.decode = counting
    return rows


@pytest.mark.parametrize("make", [sd, sdxl, sd3])
@pytest.mark.parametrize("strategy", [SMC, preset("finish", lmbda=20.0), preset("psp", num_particles=4)])
def test_one_that_decodes_its_latents_is_the_reward_of_images(make, strategy):
    pipe = make()
    of_images = run(pipe, redness, strategy)
    of_latents = run(pipe, Decoded(pipe), strategy)
    assert torch.equal(of_images.particles, of_latents.particles)
    torch.testing.assert_close(of_images.rewards, of_latents.rewards)
    for ours, theirs in zip(of_latents.trace.events, of_images.trace.events, strict=True):
        torch.testing.assert_close(torch.tensor(ours.rewards), torch.tensor(theirs.rewards))


def test_packed_latents_come_as_the_pipeline_has_them():
    make, call = FAMILIES["flux"]
    size = {name: call[name] for name in ("height", "width") if name in call}
    pipe = make()
    reward = Decoded(pipe, tuple(size.values()))
    of_latents = run(pipe, reward, **{**call, "num_inference_steps": STEPS, "output_type": "pt"})
    of_images = run(pipe, redness, **{**call, "num_inference_steps": STEPS, "output_type": "pt"})
    assert reward.seen[0][0].noisy.ndim == 3
    assert torch.equal(of_images.particles, of_latents.particles)


@pytest.mark.parametrize(
    "make, levels",
    [
        (sd, lambda scheduler, i: (scheduler.alphas_cumprod[scheduler.timesteps[i]] ** 0.5,) * 2),
        (lambda: with_scheduler(EulerDiscreteScheduler), lambda scheduler, i: (1.0, scheduler.sigmas[i])),
        (sd3, lambda scheduler, i: (1 - scheduler.sigmas[i], scheduler.sigmas[i])),
    ],
    ids=["variance-preserving", "exploding", "flow"],
)
def test_the_noise_of_each_event_is_the_schedulers(make, levels):
    pipe, reward = make(), Mean()
    output = run(pipe, reward)
    steps = [event.step for event in output.trace.events[:-1]]
    assert [latents.timestep for latents in reward.seen[:-1]] == [float(pipe.scheduler.timesteps[i]) for i in steps]
    for latents, step in zip(reward.seen, steps):
        signal, noise = (float(value) for value in levels(pipe.scheduler, step))
        if make is sd:
            noise = (1 - signal**2) ** 0.5
        assert (latents.signal, latents.noise) == pytest.approx((signal, noise), rel=1e-5)
    final = reward.seen[-1]
    assert (final.signal, final.noise, final.timestep) == (1.0, 0.0, None)
    assert torch.equal(final.noisy.float(), final.x0)


def with_scheduler(kind):
    pipe = sd()
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    return pipe


def test_what_is_noisy_and_what_was_predicted_belong_together():
    """A step of DDIM without noise goes from alpha x0 + sigma epsilon to the next level's, for the same two."""
    reward = Mean(lambda latents: torch.zeros(len(latents)))
    quiet_first = Noise(window=(0.6, 1.0))
    output = run(sd(), reward, FKSteering(4, lmbda=1.0, schedule=(0.3, 0.45), noise=quiet_first))
    before, after = reward.seen[:2]
    assert output.trace.events[1].step - output.trace.events[0].step == 1
    epsilon = (before.noisy - before.signal * before.x0) / before.noise
    torch.testing.assert_close(after.noisy, after.signal * before.x0 + after.noise * epsilon, rtol=1e-4, atol=1e-4)


def test_rows_that_are_asked_for_come_with_all_that_is_theirs():
    """Of three live rows the third and the first, where the batch has five."""
    solver = SimpleNamespace(levels=lambda index: (torch.tensor(0.8), torch.tensor(0.6)), timesteps=[900.0, 500.0])
    particles = Particles(1, 5)
    particles.rows.live = torch.tensor([0, 2, 4])
    readings = Readings(solver, particles)
    texts = torch.arange(5.0)[:, None]
    readings.remember((texts, None, "no tensor", torch.zeros(3, 2)))
    samples, x0 = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[10.0], [11.0], [12.0]])
    found = readings.noisy(samples, x0, 1, torch.tensor([2, 0]))
    assert (found.noisy.flatten().tolist(), found.x0.flatten().tolist()) == ([2.0, 0.0], [12.0, 10.0])
    assert (found.signal, found.noise, found.timestep) == pytest.approx((0.8, 0.6, 500.0))
    assert found.embeddings[0].flatten().tolist() == [4.0, 0.0]
    assert found.embeddings[1:] == (None, None, None)
    assert readings.clean(samples, torch.tensor([1])).noisy.tolist() == [[1.0]]


def test_no_image_is_decoded_for_events():
    pipe = sd()
    rows = counted(pipe)
    output = run(pipe, Mean())
    # Only the final images, by the pipeline itself.
    assert sum(rows) == 8
    assert len(output.trace.events) == 4
    rows.clear()
    kept = run(pipe, Mean(), keep_predictions=True)
    # The pictures in the trace are of images.
    assert sum(rows) > 8
    assert len(kept.trace.events[0].predictions[0]) == 4
    assert torch.equal(kept.particles, output.particles)


def test_final_images_may_be_anothers_to_judge():
    pipe, reward = sd(), Mean()
    rows = counted(pipe)
    output = run(pipe, Cascade(reward, redness, switch=1.0))
    assert sum(rows) == 8 and len(reward.seen) == 3
    torch.testing.assert_close(output.rewards, redness(output.particles.flatten(0, 1), []).view(2, 4))


def test_beside_rewards_of_images():
    pipe = sd()
    decoded = Decoded(pipe)
    output = run(pipe, WeightedSum({decoded: 1.0, redness: 1.0}))
    event = output.trace.events[0]
    assert set(event.scores) == {"decoded", "redness"}
    torch.testing.assert_close(torch.tensor(event.scores["decoded"]), torch.tensor(event.scores["redness"]))
    assert output.trace.reward_calls_by_part["decoded"] == output.trace.reward_calls_by_part["redness"]


@pytest.mark.parametrize("make, number", [(sd, 2), (sdxl, 4), (sd3, 4)])
def test_texts_come_as_the_pipeline_has_encoded_them(make, number):
    pipe, reward = make(), Mean()
    run(pipe, reward)
    with torch.no_grad():
        texts = {"prompt": PROMPTS, "device": torch.device("cpu"), "num_images_per_prompt": 1}
        more = {"prompt_2": PROMPTS, "prompt_3": PROMPTS} if make is sd3 else {}
        expected = pipe.encode_prompt(**texts, **more, do_classifier_free_guidance=True)
    for latents in reward.seen:
        assert len(latents.embeddings) == number == len(expected)
        halves = [half for half in (0, 1) for _ in range(len(latents) // 2)]
        if len(latents) == 8:  # distinct rows alone are read
            torch.testing.assert_close(latents.embeddings[0], expected[0][halves])
        assert all(len(one) == len(latents) for one in latents.embeddings)


def test_texts_follow_the_particles_of_a_pool():
    """A copy has the wording of the particle that it continues, whichever slot it lives in."""
    pipe, pool = sd(), [["a red circle", "circle, red"], ["two blue squares", "squares"]]
    with torch.no_grad():
        of = {text: pipe.encode_prompt(text, torch.device("cpu"), 1, False)[0][0] for texts in pool for text in texts}

    def worded(latents, text):
        return (latents.embeddings[0] - of[text]).abs().flatten(1).amax(1) < 1e-4

    # Slots 1 and 3 of each prompt begin with the second wording, which alone is liked.
    reward = Mean(lambda latents: (worded(latents, "circle, red") | worded(latents, "squares")).float())
    run(pipe, reward, prompt_pool=pool)
    first, *later = reward.seen
    wordings = [pool[prompt][slot % 2] for prompt in range(2) for slot in range(4)]
    torch.testing.assert_close(first.embeddings[0], torch.stack([of[text] for text in wordings]))
    for latents in later:
        assert (worded(latents, "circle, red") | worded(latents, "squares")).all()


@pytest.mark.parametrize("size", [1, 3, None])
def test_chunks_change_nothing(size):
    pipe, reward = sd(), Mean()
    execution = Execution(reward_batch_size=size)
    output = steer(pipe, reward, SMC, execution)(**CALL, prompt=PROMPTS, generator=row_generators(0, 1))
    assert max(len(latents) for latents in reward.seen) == (size or 8)
    assert torch.equal(output.particles, run(pipe, Mean()).particles)


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_other_samplers(scheduler):
    pipe, reward = with_scheduler(scheduler), Mean()
    output = run(pipe, reward, preset("svdd", num_particles=2))
    assert torch.isfinite(output.rewards).all()
    noise = [latents.noise / latents.signal for latents in reward.seen]
    assert noise == sorted(noise, reverse=True)


def test_videos():
    make, call = FAMILIES["wan"]
    reward = Mean()
    arguments = {**call, "num_inference_steps": 6, "output_type": "pt", "prompt": PROMPTS}
    output = steer(make(), reward, FKSteering(2, lmbda=1.0, schedule=(0.5,)))(
        **arguments, generator=row_generators(0, 1)
    )
    assert reward.seen[0].noisy.ndim == 5
    assert torch.isfinite(output.rewards).all()


@pytest.mark.parametrize(
    "make, error",
    [
        (lambda latents: torch.full((len(latents),), torch.nan), "'mean' returned NaN at step 1 for the prompt"),
        (lambda latents: torch.zeros(len(latents), 2), r"'mean' returned shape \(8, 2\) at step 1"),
        (lambda latents: latents.embeddings[7], "'mean' raised IndexError at step 1"),
    ],
)
def test_what_a_reward_returns_is_checked(make, error):
    with pytest.raises(RewardError, match=error):
        run(sd(), Mean(make))


def test_images_cannot_be_read():
    with pytest.raises(RewardError, match="'mean' reads the latents of a denoising loop, so it cannot score images"):
        Mean()(torch.zeros(1, 3, 8, 8), ["a"])
    with pytest.raises(RewardError, match="Expected the class LatentReward to define `of_latents`"):
        run(sd(), LatentReward(), FKSteering(2, lmbda=1.0, schedule=(0.5,)))
    assert not isinstance(load_reward("shapes-oracle"), LatentReward)

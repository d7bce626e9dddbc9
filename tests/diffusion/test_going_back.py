"""Sending the stock loop back and ahead, and the searches that do."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

import diffusers
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from lineages import check_lineages

from fk_steer import Execution, FKSteering, Noise, Strategy, steer
from fk_steer.diffusion import LatentDecoder
from fk_steer.search import DepthFirst, Evolution, Lookahead, Metropolis, Plan, Search
from fk_steer.testing import CALLS, PROMPTS, SIZE, quiet, redness, row_generators, sd, sd3, sd_scheduler


STEPS = 6
STILL = Noise(eta=0.0)
ROWS_PER_PARTICLE = {"sd": 2, "sdxl": 2, "sd3": 2, "flux": 1}


@dataclass(frozen=True)
class Return(Strategy):
    """At step `at`, goes once to step `to`."""

    at: int = 4
    to: int = 2
    by: str = "memory"
    goes_back: ClassVar[bool] = True

    def start(self, start):
        return Returning(self)


class Returning(Search):
    def __init__(self, settings):
        self.settings, self.gone = settings, False
        self.events = (settings.to, settings.at) if settings.by == "memory" else (settings.at,)

    def step(self, look):
        everyone = look.everyone
        if look.step == self.settings.to:
            return Plan(everyone, remember=everyone)
        if self.gone:
            return Plan(everyone)
        self.gone = True
        remembered = everyone + everyone.shape[1] if self.settings.by == "memory" else everyone
        return Plan(remembered, resume=self.settings.to, by=self.settings.by)


def in_slot_order(output):
    rewards = torch.tensor(output.trace.events[-1].rewards)
    rank = rewards.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return torch.stack([population[order] for population, order in zip(output.particles, rank)])


SOLVERS = {
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
}


def sd_with(solver):
    name, config = SOLVERS[solver]
    return sd(sd_scheduler(kind=getattr(diffusers, name), **config))


class TestByMemory:
    """On a sampler without noise, going back to what was changes nothing, to the last bit."""

    def check(self, pipe, prompts=PROMPTS, **call):
        call["output_type"] = "pt"
        stock = pipe(prompts, num_images_per_prompt=2, generator=row_generators(*range(4)), **call).images
        output = steer(pipe, redness, Return(2, noise=STILL))(prompts, generator=row_generators(*range(4)), **call)
        assert torch.equal(in_slot_order(output).flatten(0, 1), stock)
        events = output.trace.events
        assert [event.step for event in events] == [2, 4, 2, 4, output.trace.num_steps]
        assert [event.resume for event in events] == [None, 2, None, None, None]
        assert events[1].parent_events == [[0, 0], [0, 0]]
        assert events[0].rewards == events[2].rewards
        assert events[1].rewards == events[3].rewards
        check_lineages(output.trace, 2)
        return output.trace

    @pytest.mark.parametrize("name", CALLS)
    def test_every_pipeline(self, name):
        make, call = CALLS[name]
        trace = self.check(make(), num_inference_steps=STEPS, **call)
        assert trace.nfe == ROWS_PER_PARTICLE[name] * 4 * (STEPS + 3)

    @pytest.mark.parametrize("solver", SOLVERS)
    def test_every_kind_of_solver(self, solver):
        """The solver's history is that of the step gone back to."""
        self.check(sd_with(solver), num_inference_steps=8, **SIZE)

    @pytest.mark.parametrize("solver", ["ddim", "euler", "dpm++2m", "heun"])
    def test_a_loop_over_the_last_timesteps_alone(self, solver):
        trace = self.check(img2img(solver), **HALF)
        assert trace.num_steps == (15 if solver == "heun" else 8)

    def test_the_scheduler_is_left_as_it_was(self):
        pipe = sd()
        self.check(pipe, num_inference_steps=STEPS, **SIZE)
        assert type(pipe.scheduler.timesteps) is torch.Tensor
        assert not {"step", "set_timesteps"} & vars(pipe.scheduler).keys()


def levels(scheduler, step):
    """alpha and sigma of a step's samples, by what the scheduler's forward process does to ones and zeros."""
    timestep = scheduler.timesteps[step : step + 1]
    if hasattr(scheduler, "scale_noise"):
        sigma = scheduler.sigmas[step]
        return 1 - sigma, sigma
    fresh = copy.copy(scheduler)
    if hasattr(fresh, "_step_index"):
        fresh._step_index = fresh._begin_index = None
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    return fresh.add_noise(one, zero, timestep)[0, 0], fresh.add_noise(zero, one, timestep)[0, 0]


def kept_run(pipe, steering, **call):
    """The output, the latents after each call of `step`, and the x0 predictions that were scored, as images."""
    latents, images = [], []

    def remember(pipe, index, timestep, kwargs):
        latents.append(kwargs["latents"].clone())
        return {}

    output = steer(pipe, redness, steering)(
        PROMPTS[0],
        generator=row_generators(3, 4),
        callback_on_step_end=remember,
        on_event=lambda event: images.append(event.predictions()),
        **{"num_inference_steps": 8, **call},
    )
    return output, latents, images


def img2img(solver):
    return quiet(StableDiffusionImg2ImgPipeline(**sd_with(solver).components, requires_safety_checker=False))


# Of the last, loops go over the last 8 of 16 timesteps.
HALF = {"image": torch.full((1, 3, 16, 16), 0.3), "strength": 0.5, "num_inference_steps": 16}
PIPELINES = {
    **{name: lambda name=name: (CALLS[name][0](), CALLS[name][1]) for name in CALLS},
    **{solver: lambda solver=solver: (sd_with(solver), SIZE) for solver in SOLVERS},
    **{f"img2img {solver}": lambda solver=solver: (img2img(solver), HALF) for solver in ("ddim", "euler", "dpm++2m")},
}


@pytest.mark.parametrize("name", PIPELINES)
def test_noise_is_added_up_to_the_level_of_the_step(name):
    """x = alpha x0 + sigma epsilon, with the x0 prediction that was scored and the row's own next noise."""
    pipe, call = PIPELINES[name]()
    _, latents, images = kept_run(pipe, Return(2, by="renoise", noise=STILL), **call)
    noised = latents[4]
    noise = []
    for generator in row_generators(3, 4):
        for _ in range(2 if "image" in call else 1):  # the initial latents, and what the image is encoded with
            torch.randn(noised.shape[1:], generator=generator)
        noise.append(torch.randn(noised.shape[1:], generator=generator))
    alpha, sigma = levels(pipe.scheduler, 10 if "image" in call else 2)
    x0 = (noised - sigma * torch.stack(noise)) / alpha
    decoded = LatentDecoder(pipe, size=(16, 16))(x0)
    torch.testing.assert_close(decoded, images[0][0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_leap_keeps_the_direction_of_the_noise(name):
    """Two samples with the same x0 and epsilon tell which these are; x0 is the prediction that was scored."""
    pipe, call = PIPELINES[name]()
    output, latents, images = kept_run(pipe, Return(2, at=2, to=6, by="leap", noise=STILL), **call)
    before, after = latents[1], latents[2]
    first = 8 if "image" in call else 0
    (a, s), (b, t) = levels(pipe.scheduler, first + 2), levels(pipe.scheduler, first + 6)
    x0 = (t * before - s * after) / (t * a - s * b)
    torch.testing.assert_close(LatentDecoder(pipe, size=(16, 16))(x0), images[0][0], atol=1e-4, rtol=1e-4)
    rows = ROWS_PER_PARTICLE.get(name, 2) * 2
    assert output.trace.nfe == rows * (output.trace.num_steps - 3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_after_new_noise_a_solver_starts_afresh(solver):
    pipe = sd_with(solver)
    output, latents, _ = kept_run(
        pipe, Return(2, by="renoise", noise=STILL), guidance_scale=1.0, output_type="latent", **SIZE
    )
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(8)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(2)
    with torch.no_grad():
        embeddings = pipe.encode_prompt(PROMPTS[0], "cpu", 2, False)[0]
        sample = latents[4]
        for timestep in scheduler.timesteps[2:]:
            predicted = pipe.unet(scheduler.scale_model_input(sample, timestep), timestep, embeddings)[0]
            sample = scheduler.step(predicted, timestep, sample)[0]
    torch.testing.assert_close(in_slot_order(output)[0], sample, atol=1e-5, rtol=1e-5)


def test_a_solver_that_counts_its_steps_is_refused():
    pipe = sd(sd_scheduler(kind=diffusers.PNDMScheduler))
    with pytest.raises(ValueError, match="PNDMScheduler counts its steps and cannot.*DDIMScheduler"):
        steer(pipe, redness, Return(2))(PROMPTS, num_inference_steps=8, **SIZE)
    # What does not go back is welcome.
    steer(pipe, redness, FKSteering(num_particles=1))(PROMPTS[0], num_inference_steps=4, **SIZE)


def test_nothing_remembered():
    @dataclass(frozen=True)
    class Forgetful(Return):
        def start(self, start):
            search = Returning(self)
            search.events = (self.at,)
            return search

    with pytest.raises(ValueError, match="continues remembered particles, but none are remembered"):
        steer(sd(), redness, Forgetful(2))(PROMPTS, num_inference_steps=8, **SIZE)


def test_memory_is_of_the_step_gone_back_to():
    @dataclass(frozen=True)
    class Mixed(Return):
        def start(self, start):
            search = Returning(self)
            plan = search.step

            def step(look):
                found = plan(look)
                return found if found.resume is None else replace(found, ancestors=found.ancestors * look.everyone)

            search.step = step
            return search

    with pytest.raises(ValueError, match="goes back by memory, but continues particles of the present step"):
        steer(sd(), redness, Mixed(2))(PROMPTS, num_inference_steps=8, **SIZE)


# At step 3 of 6, back to step 1: three denoiser calls a time.
SEARCHES = {
    "depth-first": DepthFirst(3, at=3, back=3, attempts=2, noise=STILL),
    "evolution": Evolution(3, at=3, back=3, generations=2, noise=STILL),
    "metropolis": Metropolis(3, lmbda=1.0, at=5, back=3, moves=2),
    "lookahead": Lookahead(3, schedule=(1, 2), leaps=2),
    "lookahead-ahead": Lookahead(3, schedule=(1, 2), leaps=None, ahead=2),
}
CALLS_OF_DENOISER = {
    "depth-first": STEPS + 2 * 3,
    "evolution": STEPS + 2 * 3,
    "metropolis": STEPS + 2 * 3,
    # Two steps further, and the event's own again.
    "lookahead": STEPS + 2 * 3,
    "lookahead-ahead": STEPS + 2 * 3,
}
EVENTS = {
    "depth-first": [3, 3, 3, 6],
    "evolution": [3, 3, 3, 6],
    "metropolis": [5, 5, 5, 6],
    # From step 1 to 2 and 4, from step 2 to 3 and 4.
    "lookahead": [4, 4, 6],
    "lookahead-ahead": [3, 4, 6],
}


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("name", CALLS)
class TestSearches:
    def run(self, pipe, name, search, prompts=PROMPTS, execution=None, seed=5):
        call = {**CALLS[name][1], "num_inference_steps": STEPS, "output_type": "pt"}
        generator = torch.Generator().manual_seed(seed)
        return steer(pipe, redness, SEARCHES[search], execution)(prompts, generator=generator, **call)

    def test_cost_and_lineages(self, name, search):
        output = self.run(CALLS[name][0](), name, search)
        trace = output.trace
        assert [event.step for event in trace.events] == EVENTS[search]
        assert trace.denoiser_calls == CALLS_OF_DENOISER[search]
        most = ROWS_PER_PARTICLE[name] * 3 * 2 * CALLS_OF_DENOISER[search]
        if search.startswith("lookahead"):
            # Copies made at an event are one row when its step is run again.
            copies = sum(
                3 - len({(slot, seen) for slot, seen in zip(parents, events)})
                for event in trace.events[:-1]
                for parents, events in zip(event.parents, event.parent_events)
            )
            assert copies > 0
            assert trace.nfe == most - ROWS_PER_PARTICLE[name] * copies
        else:
            assert trace.nfe == most
        check_lineages(trace, 3)
        assert (output.rewards.diff(dim=1) <= 0).all()
        torch.testing.assert_close(redness(output.images, PROMPTS), output.rewards[:, 0], atol=1e-4, rtol=1e-4)

    def test_chunks_and_neighbours_change_nothing(self, name, search):
        pipe = CALLS[name][0]()
        whole = self.run(pipe, name, search)
        parts = self.run(pipe, name, search, execution=Execution.in_batches(2))
        torch.testing.assert_close(parts.particles, whole.particles, atol=1e-5, rtol=1e-5)
        assert parts.trace.nfe == whole.trace.nfe
        assert parts.trace.reward_calls == whole.trace.reward_calls
        for index, prompt in enumerate(PROMPTS):
            alone = self.run(pipe, name, search, prompt)
            torch.testing.assert_close(alone.particles[0], whole.particles[index], atol=1e-5, rtol=1e-5)
            for event, together in zip(alone.trace.events, whole.trace.events, strict=True):
                assert event.parents[0] == together.parents[index]
                assert event.parent_events[0] == together.parent_events[index]


class TestDepthFirst:
    @staticmethod
    def reward(images, prompts):
        """Whatever the image, the first prompt is good enough."""
        return torch.tensor([10.0 * (prompt == PROMPTS[0]) for prompt in prompts]) + redness(images, prompts) / 100

    def test_a_prompt_that_is_good_enough_sleeps(self):
        pipe = sd()
        call = {**SIZE, "num_inference_steps": STEPS, "output_type": "pt"}
        settings = DepthFirst(2, target_reward=5.0, at=3, back=3, attempts=2, noise=STILL)
        output = steer(pipe, self.reward, settings)(PROMPTS, generator=row_generators(*range(4)), **call)
        assert output.trace.nfe == 2 * 2 * (STEPS + STEPS + 2 * 3)
        stock = pipe(PROMPTS, num_images_per_prompt=2, generator=row_generators(*range(4)), **call).images
        torch.testing.assert_close(in_slot_order(output)[0], stock[:2], atol=1e-5, rtol=1e-5)
        # The other one goes on from its best attempt.
        attempts = [max(event.rewards[1]) for event in output.trace.events[:3]]
        best = attempts.index(max(attempts))
        assert set(output.trace.events[2].parent_events[1]) == {best}

    def test_when_all_are_good_enough_there_is_no_further_attempt(self):
        settings = DepthFirst(2, target_reward=-1e9, at=3, back=3, noise=STILL)
        output = steer(sd(), redness, settings)(PROMPTS, num_inference_steps=STEPS, **SIZE)
        assert output.trace.nfe == 2 * 4 * STEPS


@pytest.mark.parametrize("make", [lambda: sd(sd_scheduler(set_alpha_to_one=True)), sd3], ids=["ddim", "flow"])
@pytest.mark.parametrize("kind", [DepthFirst, Evolution])
def test_never_worse_than_the_best_of_the_same_seeds(make, kind):
    """Judged by the last x0 predictions, which are the images."""
    pipe = make()
    call = {**SIZE, "guidance_scale": 5.0, "num_inference_steps": STEPS, "output_type": "pt"}
    gains = []
    for seed in range(3):
        best_of_n, searched = (
            steer(pipe, redness, settings)(PROMPTS, generator=torch.Generator().manual_seed(seed), **call)
            for settings in (
                FKSteering.preset("best-of-n", num_particles=3),
                kind(3, at=STEPS - 1, back=3, noise=STILL),
            )
        )
        first, final = searched.trace.events[0].rewards, best_of_n.trace.events[-1].rewards
        torch.testing.assert_close(torch.tensor(first), torch.tensor(final), atol=1e-4, rtol=1e-4)
        gains += (searched.rewards[:, 0] - best_of_n.rewards[:, 0]).tolist()
    assert min(gains) > -1e-4
    assert max(gains) > 1e-3

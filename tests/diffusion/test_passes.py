"""Strategies that make several passes: screening by few steps, allocation over prompts."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, LCMScheduler

from fk_steer import FKSteering, load_reward, steer
from fk_steer.diffusion.samplers import sampled_with
from fk_steer.loading import load_pipeline
from fk_steer.report.trace import Trace
from fk_steer.search import Allocation, Evolution, Screen, Stop, Strategy
from fk_steer.search.screen import best_of
from fk_steer.testing import PROMPTS, redness, row_generators, sd_scheduler, sdxl
from fk_steer.testing.tiny import FAMILIES


STEPS = 8
SMC = FKSteering(4, lmbda=2.0, tempering="constant", schedule=(0.25, 0.5))


def pipe_and_call(name, **options):
    make, call = FAMILIES[name]
    return make(), {**call, "num_inference_steps": STEPS, "output_type": "pt", **options}


class Latents:
    """Notes what the denoiser is called with first in every loop."""

    def __init__(self, pipe):
        self.first, self.rows = [], 0
        denoiser = getattr(pipe, "unet", None) or pipe.transformer
        self.last = None
        self.handle = denoiser.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, module, args, kwargs):
        sample = args[0] if args else kwargs["hidden_states"]
        time = (args[1] if len(args) > 1 else kwargs["timestep"]).flatten()[0].item()
        if self.last is None or time > self.last:
            self.first.append(sample.clone())
        self.last = time
        self.rows += len(sample)


class TestScreen:
    @pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
    def test_seeds_that_are_kept_start_from_the_same_noise(self, name):
        pipe, call = pipe_and_call(name)
        seen = Latents(pipe)
        output = steer(pipe, redness, Screen(num_particles=5, keep=2, few_steps=3, few_sampler="own"))(
            PROMPTS, generator=row_generators(0, 1), **call
        )
        few, ((populations, full),) = output.trace, output.trace.retries
        assert populations == [0, 1] and (few.num_steps, full.num_steps) == (3, STEPS)
        kept = [sorted(sorted(range(5), key=lambda slot: -rewards[slot])[:2]) for rewards in few.events[-1].rewards]
        first, second = seen.first
        rows = [5 * p + slot for p in range(2) for slot in kept[p]]
        copies = len(first) // 10
        assert torch.equal(second[:4], first[rows])
        # Every row of both passes is counted.
        assert few.nfe == seen.rows == copies * (10 * 3 + 4 * STEPS)
        assert few.reward_calls == 10 + 4
        assert output.rewards.shape == (2, 2)
        both = torch.cat([torch.tensor(trace.events[-1].rewards) for trace in (few, full)], 1)
        torch.testing.assert_close(output.rewards[:, 0], both.amax(1).float())

    @pytest.mark.parametrize(
        "name, inner",
        [(name, inner) for name in ("sd", "sdxl", "flux") for inner in (best_of(4), SMC, Evolution(4))]
        + [("wan", SMC)],
    )
    def test_that_keeps_all_is_the_inner_run(self, name, inner):
        """Bit for bit, wherever no few-step image is better."""
        reward = redness if name != "wan" else frames_redness
        pipe, call = pipe_and_call(name, num_inference_steps=6)
        screen = Screen(inner, num_particles=4, keep=4, few_steps=2, few_sampler="own", seed=3)
        found = steer(pipe, reward, screen)(PROMPTS, **call)
        plain = steer(pipe, reward, inner.replace(seed=3))(PROMPTS, **call)
        ((_, full),) = found.trace.retries
        assert [event.rewards for event in full.events] == [event.rewards for event in plain.trace.events]
        assert [event.parents for event in full.events] == [event.parents for event in plain.trace.events]
        few = torch.tensor(found.trace.events[-1].rewards).amax(1)
        for p in range(len(PROMPTS)):
            if few[p] <= plain.rewards[p, 0]:
                assert torch.equal(found.particles[p], plain.particles[p])
                assert torch.equal(found.log_weights[p], plain.log_weights[p])
            else:
                assert found.rewards[p, 0] == few[p].float()

    def test_as_many_steps_as_the_full_loop_find_the_same_images(self):
        pipe, call = pipe_and_call("sd")
        screen = Screen(num_particles=4, keep=4, few_steps=STEPS, few_sampler="own", seed=0)
        found = steer(pipe, redness, screen)(PROMPTS, **call)
        plain = steer(pipe, redness, best_of(4).replace(seed=0))(PROMPTS, **call)
        assert torch.equal(found.particles, plain.particles) and torch.equal(found.log_weights, plain.log_weights)

    @pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
    def test_the_few_step_images_can_be_all_there_is(self, name):
        pipe, call = pipe_and_call(name)
        output = steer(pipe, redness, Screen(num_particles=5, keep=0, few_steps=3))(
            PROMPTS, generator=row_generators(*range(10)), **call
        )
        assert output.trace.retries == [] and output.rewards.shape == (2, 5)
        assert output.trace.nfe == 2 * 10 * 3
        with sampled_with(pipe, "dpmsolver++"):
            other = pipe.scheduler
        assert isinstance(other, DPMSolverMultistepScheduler) == (name != "sd3")
        pipe.scheduler = other
        call["num_inference_steps"] = 3
        images = torch.cat([pipe(PROMPTS[0], generator=row_generators(seed), **call).images for seed in range(5)])
        best = redness(images, PROMPTS[:1] * 5).argmax()
        torch.testing.assert_close(output.images[0], images[best], atol=1e-5, rtol=1e-5)

    def test_the_pipeline_has_its_scheduler_back(self):
        def broken(images, prompts):
            raise RuntimeError("out of order")

        pipe, call = pipe_and_call("sd")
        own = pipe.scheduler
        steer(pipe, redness, Screen(num_particles=3))(PROMPTS, **call)
        assert pipe.scheduler is own and isinstance(own, DDIMScheduler)
        with pytest.raises(Exception, match="out of order"):
            steer(pipe, broken, Screen(num_particles=3))(PROMPTS, **call)
        assert pipe.scheduler is own

    def test_models_distilled_for_few_steps_keep_their_sampler(self):
        def few_steps(scheduler):
            pipe = FAMILIES["sd"][0]()
            pipe.scheduler = scheduler
            with sampled_with(pipe, "dpmsolver++"):
                return pipe.scheduler

        for own in (sd_scheduler(kind=LCMScheduler), FAMILIES["flux"][0]().scheduler):
            assert few_steps(own) is own
        for kind in (DDIMScheduler, EulerDiscreteScheduler):
            scheduler = few_steps(sd_scheduler(kind=kind))
            assert isinstance(scheduler, DPMSolverMultistepScheduler)
            assert scheduler.config.prediction_type == "v_prediction"
            scheduler.set_timesteps(4)
            assert scheduler.timesteps[0] == 999 and scheduler.sigmas[-1] == 0

    def test_a_prompt_does_not_know_of_the_others(self):
        pipe, call = pipe_and_call("sd")
        steered = steer(pipe, redness, Screen(SMC, num_particles=8, keep=4, seed=5))
        both, alone = steered(PROMPTS, **call), steered(PROMPTS[1], **call)
        torch.testing.assert_close(both.particles[1:], alone.particles, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(both.rewards[1:], alone.rewards, atol=1e-4, rtol=1e-4)

    def test_latents_are_those_of_the_seeds(self):
        pipe, call = pipe_and_call("sd")
        latents = torch.randn(10, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        seen = Latents(pipe)
        output = steer(pipe, redness, Screen(num_particles=5, keep=1))(PROMPTS, latents=latents, **call)
        kept = [5 * p + rewards.index(max(rewards)) for p, rewards in enumerate(output.trace.events[-1].rewards)]
        assert torch.equal(seen.first[0][:10], latents) and torch.equal(seen.first[1][:2], latents[kept])

    def test_timesteps_of_ones_own_are_those_of_the_full_loop(self):
        _, call = pipe_and_call("sdxl")
        pipe = sdxl(sd_scheduler("epsilon", EulerDiscreteScheduler))
        own = {**call, "num_inference_steps": None, "timesteps": [900, 700, 500, 300, 100]}
        output = steer(pipe, redness, Screen(num_particles=3, few_steps=2, few_sampler="own"))(PROMPTS, **own)
        assert [output.trace.num_steps, output.trace.retries[0][1].num_steps] == [2, 5]

    def test_the_call_with_noise_screens_without(self):
        pipe, call = pipe_and_call("sd", eta=1.0)
        steered = steer(pipe, redness, Screen(num_particles=4, keep=0, few_sampler="own", few_steps=4, seed=0))
        plain = steered(PROMPTS, **{**call, "eta": 0.0})
        assert torch.equal(steered(PROMPTS, **call).particles, plain.particles)

    @pytest.mark.parametrize("output_type", ["pil", "np", "latent"])
    def test_any_output_type(self, output_type):
        pipe, call = pipe_and_call("sd", output_type=output_type)
        output = steer(pipe, redness, Screen(num_particles=5, keep=3))(PROMPTS, **call)
        assert len(output.images) == 2 and [len(particles) for particles in output.particles] == [3, 3]

    def test_says_what_it_did(self, tmp_path):
        pipe, call = pipe_and_call("sd")
        trace = steer(pipe, redness, Screen(num_particles=5))(PROMPTS, **call).trace
        assert trace.steering["strategy"] == "screen" and trace.steering["few_steps"] == 4
        trace.save(tmp_path / "trace.json")
        assert Trace.load(tmp_path / "trace.json").to_dict() == trace.to_dict()
        parts = {part: trace.seconds[part] for part in ("denoiser", "decode", "reward", "rest")}
        assert sum(parts.values()) == pytest.approx(trace.seconds["total"])


def frames_redness(videos, prompts):
    return redness(videos[:, 0], prompts)


frames_redness.takes_videos = True


@pytest.fixture(scope="module")
def shapes():
    return load_pipeline("shapes"), load_reward("clip-score", path="shapes")


class TestAllocation:
    WORDS = ["a red circle", "a blue square", "two yellow circles"]

    def run(self, pipe, reward, strategy, seed=0):
        call = {"num_inference_steps": 4, "output_type": "pt", "generator": torch.Generator().manual_seed(seed)}
        return steer(pipe, reward, strategy)(self.WORDS, **call)

    def test_on_the_bundled_model(self, shapes):
        """Within the budget, never worse than the first passes, and the same each time."""
        pipe, reward = shapes
        seen = Latents(pipe)
        inner = FKSteering(2, schedule=(0.5,))
        output = self.run(pipe, reward, Allocation(inner, passes=3))
        seen.handle.remove()
        first = self.run(pipe, reward, inner)
        trace = output.trace
        whole = 2 * 3 * 2 * 4
        assert first.trace.nfe <= whole
        assert trace.nfe == seen.rows <= 3 * whole and trace.nfe > 2.5 * whole
        assert trace.nfe == first.trace.nfe + sum(retry.nfe for _, retry in trace.retries)
        assert all(len(populations) == 1 for populations, _ in trace.retries)
        assert (output.rewards[:, 0] >= first.rewards[:, 0]).all()
        assert (output.rewards[:, 0] > first.rewards[:, 0]).any()
        seen_best = torch.tensor(trace.events[-1].rewards).amax(1)
        for (p,), retry in trace.retries:
            seen_best[p] = max(seen_best[p], max(retry.events[-1].rewards[0]))
        torch.testing.assert_close(output.rewards[:, 0], seen_best.float())
        again = self.run(pipe, reward, Allocation(inner, passes=3))
        assert torch.equal(again.particles, output.particles)
        assert [p for p, _ in again.trace.retries] == [p for p, _ in trace.retries]

    def test_one_prompt(self):
        pipe, call = pipe_and_call("sd")
        output = steer(pipe, redness, Allocation(SMC, passes=3))(PROMPTS[0], **call)
        assert [populations for populations, _ in output.trace.retries] == [[0], [0]]
        finals = [trace.events[-1].rewards[0] for trace in (output.trace, *(t for _, t in output.trace.retries))]
        assert output.rewards[0, 0].item() == pytest.approx(max(map(max, finals)), abs=1e-5)
        assert len({reward for rewards in finals for reward in rewards}) == 12, "other noise each time"

    def test_passes_may_be_of_any_strategy(self):
        pipe, call = pipe_and_call("sd")
        for inner in (Screen(num_particles=4, keep=1, few_steps=2), Evolution(2), best_of(1)):
            once = steer(pipe, redness, inner.replace(seed=0))(PROMPTS, **call)
            output = steer(pipe, redness, Allocation(inner, passes=2, seed=0))(PROMPTS, **call)
            assert 1.5 * once.trace.nfe <= output.trace.nfe <= 2 * once.trace.nfe
            assert (output.rewards[:, 0] >= once.rewards[:, 0]).all()

    def test_of_screens_counts_the_rows_of_both_loops(self):
        pipe, call = pipe_and_call("sd")
        seen = Latents(pipe)
        screen = Screen(num_particles=4, keep=1, few_steps=2)
        trace = steer(pipe, redness, Allocation(screen, passes=2, seed=0))(PROMPTS, **call).trace
        assert trace.nfe == seen.rows == 2 * 2 * 2 * (4 * 2 + STEPS)

    def test_a_target_ends_a_prompt(self):
        pipe, call = pipe_and_call("sd")

        def reward(images, prompts):
            return torch.tensor([float(prompt == PROMPTS[0]) for prompt in prompts]) + redness(images, prompts) / 100

        steering = Allocation(SMC.replace(stop=Stop(0.9)), passes=2)
        output = steer(pipe, reward, steering)(PROMPTS, generator=row_generators(0, 1), **call)
        assert {tuple(populations) for populations, _ in output.trace.retries} == {(1,)}
        # What the first prompt has saved goes to the second too.
        assert len(output.trace.retries) == 2


class Silent(Strategy):
    def conduct(self, passes):
        pass


class OneOnly(Strategy):
    def conduct(self, passes):
        passes.run(self, [0])


class Fewer(Strategy):
    def conduct(self, passes):
        passes.run(best_of(2), slots=torch.tensor([[0, 1, 2]] * 2))


@pytest.mark.parametrize(
    "strategy, message",
    [
        (Silent(), "Silent has made no pass"),
        (OneOnly(), "The first pass of OneOnly has to be over all prompts"),
        (Fewer(), "a pass of 3 particles, but got 2"),
    ],
)
def test_mistakes_of_strategies_are_told(strategy, message):
    pipe, call = pipe_and_call("sd")
    with pytest.raises(ValueError, match=message):
        steer(pipe, redness, strategy)(PROMPTS, **call)

"""What saves compute or keeps it from being wasted: early stop, the elite, cascades, rows that come back."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, KDPM2AncestralDiscreteScheduler, LCMScheduler

from fk_steer import FKSteering, Noise, Resampling, Schedule, Stop, steer
from fk_steer.report.trace import Trace
from fk_steer.rewards import Cascade, ZScoreSum
from fk_steer.testing import PROMPTS, SIZE, redness, row_generators, sd, sd_scheduler, sdxl


CALL = {**SIZE, "num_inference_steps": 8, "output_type": "pt"}


def brightness(images, prompts):
    return images.mean((1, 2, 3))


class TestEarlyStop:
    ALWAYS = FKSteering(lmbda=2.0, schedule=(0.25, 0.5, 0.75), stop=-1e9)

    def test_goes_on_with_the_best_particle_alone_and_without_noise(self):
        """The image is that of the stock pipeline from the best particle's state, sampled deterministically."""
        pipe = sd()
        seen = {}

        def remember(pipe, index, timestep, kwargs):
            seen[index] = kwargs["latents"].clone()
            return {}

        still = self.ALWAYS.replace(noise=Noise(eta=0.0), resampling=Resampling(ess_threshold=0.0))
        output = steer(pipe, redness, still)(
            PROMPTS[0], generator=row_generators(*range(4)), callback_on_step_end=remember, **CALL
        )
        first = output.trace.events[0]
        best = torch.tensor(first.rewards[0]).argmax().item()
        alone = pipe(PROMPTS[0], generator=row_generators(best), **CALL).images
        torch.testing.assert_close(output.images[0], alone[0], atol=1e-5, rtol=1e-5)
        assert torch.equal(output.particles, output.images[:, None].expand_as(output.particles))
        assert first.stopped == [True]
        # Two rows for each of 4 particles in 2 steps, and of one in 6.
        assert output.trace.nfe == 2 * (4 * 2 + 1 * 6)
        assert output.trace.nfe_saved == 2 * 3 * 6
        # One image at each later event.
        assert output.trace.reward_calls == 4 + 1 + 1 + 1

    def test_prompts_stop_one_by_one(self):
        def reward(images, prompts):
            return torch.tensor([float(prompt == PROMPTS[0]) for prompt in prompts]) + redness(images, prompts) / 100

        steering = FKSteering(lmbda=2.0, schedule=(0.25, 0.5), stop=0.9)
        output = steer(sd(), reward, steering)(PROMPTS, generator=row_generators(0, 1), **CALL)
        assert output.trace.events[-1].stopped == [True, False]
        # All slots of the stopped prompt are one; final events move nothing.
        assert len(set(output.trace.events[-1].parents[0])) == 1
        assert len(set(output.trace.events[-1].parents[1])) == 4
        assert torch.equal(output.particles[0, 0], output.particles[0, 3])
        assert not torch.equal(output.particles[1, 0], output.particles[1, 3])
        alone = steer(sd(), reward, steering)(PROMPTS[1], generator=row_generators(1), **CALL)
        torch.testing.assert_close(output.particles[1:], alone.particles, atol=1e-5, rtol=1e-5)
        assert torch.tensor(output.trace.log_normalizer).isnan().all()

    @pytest.mark.parametrize("kind", [DDIMScheduler, DDPMScheduler, LCMScheduler, KDPM2AncestralDiscreteScheduler])
    def test_one_that_stops_leaves_the_noise_of_others_alone(self, kind):
        """Also on samplers that cannot do without noise."""

        def reward(images, prompts):
            return torch.tensor([float(prompt == PROMPTS[0]) for prompt in prompts]) + redness(images, prompts) / 100

        steered = steer(sd(sd_scheduler(kind=kind)), reward, FKSteering(schedule=(0.25, 0.5), stop=0.9, seed=0))
        both, alone = steered(PROMPTS, **CALL), steered(PROMPTS[1], **CALL)
        assert both.trace.events[-1].stopped == [True, False]
        torch.testing.assert_close(both.particles[1:], alone.particles, atol=1e-5, rtol=1e-5)

    def test_a_cascade_stops_by_its_last_reward(self):
        def expensive(images, prompts):
            return brightness(images, prompts) / 1e3

        cascade = Cascade(lambda images, prompts: 1e3 + brightness(images, prompts), expensive, switch=0.5)
        steering = FKSteering(schedule=(0.25, 0.5, 0.75), stop=1.0, seed=0)
        assert steer(sd(), cascade, steering)(PROMPTS, **CALL).trace.nfe_saved == 0
        cascade = Cascade(expensive, lambda images, prompts: 1e3 + brightness(images, prompts), switch=0.5)
        trace = steer(sd(), cascade, steering)(PROMPTS, **CALL).trace
        assert [event.stopped for event in trace.events] == [[False, False], *[[True, True]] * 3]

    def test_needs_a_reward_with_a_scale_of_its_own(self):
        both = ZScoreSum({redness: 1.0, brightness: 2.0})
        with pytest.raises(ValueError, match="`target_reward` needs a reward with a scale of its own"):
            steer(sd(), both, FKSteering(stop=1.0))

    def test_a_target_out_of_reach_changes_nothing(self):
        steering = FKSteering(lmbda=2.0, schedule=(0.25, 0.5))
        free = steer(sd(), redness, steering)(PROMPTS, generator=row_generators(0, 1), **CALL)
        bound = steer(sd(), redness, steering.replace(stop=1e9))(PROMPTS, generator=row_generators(0, 1), **CALL)
        assert torch.equal(free.particles, bound.particles)
        assert bound.trace.nfe_saved == 0


class TestRollover:
    @staticmethod
    def reward(images, prompts):
        """Whatever the image, the first prompt has reached 0.9."""
        return torch.tensor([float(prompt == PROMPTS[0]) for prompt in prompts]) + redness(images, prompts) / 100

    STEERING = FKSteering(lmbda=2.0, schedule=(0.25, 0.5))

    def run(self, prompts, rollover, output_type="pt", **call):
        settings = self.STEERING.replace(stop=Stop(0.9, rollover))
        generators = row_generators(*range(len(prompts)))
        return steer(sd(), self.reward, settings)(
            prompts,
            generator=generators,
            negative_prompt=["blur"] * len(prompts),
            **{**CALL, "output_type": output_type, **call},
        )

    def test_savings_of_one_prompt_give_another_further_tries(self):
        prompts = [PROMPTS[0], PROMPTS[0], PROMPTS[1]]
        plain, rolled = self.run(prompts, False), self.run(prompts, True)
        ((populations, retry),) = rolled.trace.retries
        assert populations == [2]
        assert retry.prompts == [PROMPTS[1]]
        assert rolled.trace.nfe == plain.trace.nfe + retry.nfe <= plain.trace.nfe + plain.trace.nfe_saved
        assert rolled.trace.nfe_saved == plain.trace.nfe_saved
        assert rolled.trace.reward_calls == plain.trace.reward_calls + retry.reward_calls
        # 6 of 8 steps of 3 particles are saved twice, the rerun costs 8 steps of 4.
        assert retry.nfe == 2 * 4 * 8
        assert torch.equal(rolled.particles[:2], plain.particles[:2])
        tried = max(retry.events[-1].rewards[0])
        assert rolled.rewards[2, 0].item() == pytest.approx(max(plain.rewards[2, 0].item(), tried), abs=1e-6)
        torch.testing.assert_close(
            rolled.rewards.flatten(),
            self.reward(rolled.particles.flatten(0, 1), [p for p in prompts for _ in range(4)]),
        )

    def test_new_tries_start_from_other_noise_and_the_same_each_time(self):
        prompts = [PROMPTS[0], PROMPTS[0], PROMPTS[1]]
        first, again = (self.run(prompts, True) for _ in range(2))
        assert torch.equal(first.particles, again.particles)
        old, new = first.trace.events[-1].rewards[2], first.trace.retries[0][1].events[-1].rewards[0]
        assert not set(old) & set(new)

    @pytest.mark.parametrize("output_type", ["pil", "np", "latent"])
    def test_any_output_type(self, output_type):
        output = self.run([PROMPTS[0], PROMPTS[0], PROMPTS[1]], True, output_type)
        assert len(output.images) == 3
        assert [len(particles) for particles in output.particles] == [4, 4, 4]
        assert len(output.trace.retries) == 1

    def test_without_savings_there_are_none(self):
        output = self.run([PROMPTS[1]], True)
        assert output.trace.retries == []

    def test_survives_json(self, tmp_path):
        output = self.run([PROMPTS[0], PROMPTS[0], PROMPTS[1]], True)
        output.trace.save(tmp_path / "trace.json")
        assert Trace.load(tmp_path / "trace.json").to_dict() == output.trace.to_dict()

    def test_needs_a_target(self):
        with pytest.raises(ValueError, match="target_reward"):
            FKSteering(stop={"rollover": True})


class TestElite:
    @pytest.mark.parametrize("make", [sd, sdxl], ids=["ddim", "euler"])
    def test_is_the_best_seeds_own_image(self, make):
        pipe = make()
        steering = FKSteering(
            lmbda=50.0,
            schedule=(0.25, 0.5, 0.75),
            noise=Noise(window=(0.25, 0.8)),
            elite=True,
        )
        output = steer(pipe, redness, steering)(PROMPTS[0], generator=row_generators(*range(4)), **CALL)
        first = output.trace.events[0]
        best = torch.tensor(first.rewards[0]).argmax().item()
        alone = pipe(PROMPTS[0], generator=row_generators(best), **CALL).images[0]
        distances = (output.particles[0] - alone).flatten(1).abs().amax(1)
        assert distances.min() < 1e-5
        assert distances.max() > 1e-3
        assert output.rewards[0, 0] >= redness(alone[None], PROMPTS[:1]).item() - 1e-5

    def test_needs_noise_that_can_be_switched_off(self):
        pipe = sd(sd_scheduler(kind=DDPMScheduler))
        with pytest.raises(ValueError, match="`elite` needs a sampler whose noise can be switched off.*DDPMScheduler"):
            steer(pipe, redness, FKSteering(elite=True))(PROMPTS, **CALL)

    def test_without_noise_there_is_none(self):
        steering = FKSteering.preset("psp", lmbda=1.0)
        plain = steer(sd(), redness, steering)(PROMPTS, generator=row_generators(0, 1), **CALL)
        elite = steer(sd(), redness, steering.replace(elite=True))(PROMPTS, generator=row_generators(0, 1), **CALL)
        assert torch.equal(plain.particles, elite.particles)


class TestSeveralRewards:
    def test_cascade(self):
        cascade = Cascade(redness, brightness, switch=0.5)
        output = steer(sd(), cascade, FKSteering(schedule=(0.25, 0.5, 0.75)))(
            PROMPTS, generator=row_generators(0, 1), **CALL
        )
        events = output.trace.events
        assert [list(event.scores) for event in events] == [["redness"], ["brightness"], ["brightness"], ["brightness"]]
        assert output.trace.reward_calls_by_part.keys() == {"redness", "brightness"}
        assert sum(output.trace.reward_calls_by_part.values()) == output.trace.reward_calls
        # Images are ranked by the expensive reward, in its own units.
        rewards = brightness(output.particles.flatten(0, 1), PROMPTS * 4).view(2, 4)
        torch.testing.assert_close(output.rewards, rewards, atol=1e-6, rtol=1e-6)

    @pytest.mark.parametrize("scale", [1e-3, 1e4])
    def test_scale_of_a_standardised_reward_does_not_matter(self, scale):
        def run(reward):
            steering = FKSteering(lmbda=2.0, schedule=(0.25, 0.5, 0.75), standardize=True)
            return steer(sd(), reward, steering)(PROMPTS, generator=row_generators(0, 1), **CALL)

        one, other = run(redness), run(lambda images, prompts: 3.0 + scale * redness(images, prompts))
        assert [event.parents for event in one.trace.events] == [event.parents for event in other.trace.events]
        assert torch.equal(one.particles, other.particles)

    def test_z_score_sum(self):
        both = ZScoreSum({redness: 1.0, brightness: 2.0})
        output = steer(sd(), both, "fk")(PROMPTS, generator=row_generators(0, 1), **CALL)
        final = output.trace.events[-1]
        parts = {name: torch.tensor(final.scores[name], dtype=torch.float64) for name in ("redness", "brightness")}
        z = {
            name: (score - score.mean(1, True)) / score.std(1, correction=0, keepdim=True)
            for name, score in parts.items()
        }
        assert torch.tensor(output.trace.log_normalizer).isnan().all()
        expected = z["redness"] + 2.0 * z["brightness"]
        torch.testing.assert_close(torch.tensor(final.rewards, dtype=torch.float64), expected)
        torch.testing.assert_close(
            output.rewards.double(), expected.sort(1, descending=True).values, rtol=1e-5, atol=1e-6
        )


def test_rows_come_back():
    """2 of 6 seeds live on and are branched to 5 later on; the denoiser runs on distinct rows only."""
    steering = FKSteering(
        num_particles=6,
        lmbda=1.0,
        potential="current",
        resampling="top-k",
        schedule=Schedule(at=(0.25, 0.5, 0.75), alive=(2, 5, 3)),
        noise=Noise(window=(0.5, 1.0)),
    )
    output = steer(sd(), redness, steering)(PROMPTS[0], generator=row_generators(*range(6)), **CALL)
    events = output.trace.events
    assert [len(event.slots[0]) for event in events] == [2, 5, 3, 3]
    assert events[1].distinct_roots == [2]
    # Steps 0-1 on 6 particles, 2-3 on 2; at step 4 the 5 are still copies of 2, and noise parts them in it.
    assert output.trace.nfe == 2 * (6 * 2 + 2 * 2 + 2 * 1 + 5 * 1 + 3 * 2)
    assert len({image.numpy().tobytes() for image in output.particles[0]}) == 3

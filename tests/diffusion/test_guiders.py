"""Guiders: what they remember goes where the particles go, and what they cost is counted."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from diffusers import AdaptiveProjectedGuidance, AutoGuidance, ClassifierFreeGuidance, PerturbedAttentionGuidance
from diffusers.guiders import (
    AdaptiveProjectedMixGuidance,
    ClassifierFreeZeroStarGuidance,
    SmoothedEnergyGuidance,
    TangentialClassifierFreeGuidance,
)
from diffusers.guiders.guider_utils import GuiderOutput
from diffusers.hooks import LayerSkipConfig, SmoothedEnergyGuidanceConfig

from fk_steer import Execution, FKSteering, Noise, Strategy, steer
from fk_steer.diffusion.guiders import Guiders
from fk_steer.search import Plan, Search
from fk_steer.testing import PROMPTS, SIZE, redness, row_generators, sd_scheduler, sdxl
from fk_steer.testing.tiny import modular_of


STEPS = 6
STILL = Noise(eta=0.0)
LAYERS = "mid_block.attentions.0.transformer_blocks"


@dataclass(frozen=True)
class Moving(Strategy):
    """At `at`, without noise, particles go on as those of `ancestors`."""

    num_particles: int = 3
    noise: Noise = STILL
    at: int = 2
    ancestors: tuple[int, ...] = (2, 2, 0)
    after_noise: bool = False

    def events(self, num_steps: int) -> Collection[int]:
        return [self.at]

    def step(self, look):
        return Plan(torch.tensor([self.ancestors] * len(look.slots)), after_noise=self.after_noise)

    def copying(self, num_steps: int) -> list[int]:
        return []


@dataclass(frozen=True)
class Returning(Strategy):
    """At step 4 it goes once to step 2, where it has looked before, by memory or by renoising."""

    num_particles: int = 3
    noise: Noise = STILL
    by: str = "memory"
    goes_back = True

    def start(self, start):
        return _Returning(self.by)


class _Returning(Search):
    events = (2, 4)

    def __init__(self, by):
        self.by, self.gone = by, False

    def step(self, look):
        everyone, K = look.everyone, look.everyone.shape[1]
        if look.step == 2:
            return Plan(everyone, remember=None if self.gone else everyone)
        if self.gone:
            return Plan(everyone)
        self.gone = True
        return Plan(everyone.flip(1) + (K if self.by == "memory" else 0), resume=2, by=self.by)


def output(pred, pred_cond, pred_uncond):
    return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)


class Trailing(ClassifierFreeGuidance):
    """Guidance that trails behind: what it keeps lies in an object of its own, rows not in front, changed in place."""

    class Memory:
        mean = None

        def __call__(self, value):
            value = value.movedim(0, 1)
            self.mean = value.clone() if self.mean is None else self.mean.mul_(0.5).add_(value, alpha=0.5)
            return self.mean.movedim(1, 0)

    def prepare_inputs(self, data):
        if self._step == 0:
            self.kept = {"memory": self.Memory()}
        return super().prepare_inputs(data)

    def forward(self, pred_cond, pred_uncond=None):
        trailing = self.kept["memory"](pred_cond - pred_uncond)
        return output(pred_uncond + self.guidance_scale * trailing, pred_cond, pred_uncond)


GUIDERS = {
    "apg": lambda: AdaptiveProjectedGuidance(adaptive_projected_guidance_momentum=0.8),
    "apg-mix": lambda: AdaptiveProjectedMixGuidance(
        adaptive_projected_guidance_momentum=0.8, adaptive_projected_guidance_start_step=1
    ),
    "own": lambda: Trailing(),
}


@cache
def plain():
    return sdxl(sd_scheduler("epsilon"))


def pipe_with(guider):
    pipe = modular_of(plain())
    pipe.update_components(guider=guider)
    return pipe


CALL = {**SIZE, "num_inference_steps": STEPS, "output_type": "pt"}


def stock(pipe, seeds, prompt=PROMPTS[0]):
    return torch.cat([pipe(prompt=prompt, **CALL, generator=g, output="images") for g in row_generators(*seeds)])


def in_slot_order(output):
    rewards = torch.tensor(output.trace.events[-1].rewards)
    rank = rewards.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return torch.stack([population[order] for population, order in zip(output.particles, rank)])


def close(a, b):
    torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", GUIDERS)
class TestMemory:
    """Without noise a particle that continues another has the image that the other would have had, which it has only
    with the other's memory."""

    @pytest.mark.parametrize(
        ("ancestors", "late", "size"),
        [
            ((2, 2, 0), False, None),
            ((2, 2, 0), True, None),
            ((2, 2, 0), False, 1),
            ((1, 0, 2), False, None),
            ((1, 2), False, None),
            ((2, 2), True, 2),
            ((2,), False, None),
        ],
    )
    def test_goes_where_the_particles_go(self, name, ancestors, late, size):
        pipe = pipe_with(GUIDERS[name]())
        alone = stock(pipe, (0, 1, 2))
        steered = steer(pipe, redness, Moving(ancestors=ancestors, after_noise=late), Execution(size))
        images = in_slot_order(steered(prompt=PROMPTS[0], **CALL, generator=row_generators(0, 1, 2)))[0]
        close(images, alone[list(ancestors)])
        for a, b in zip(ancestors, ancestors[1:]):
            if a == b:
                assert torch.equal(images[0], images[1])

    def test_of_other_prompts_stays_apart(self, name):
        pipe = pipe_with(GUIDERS[name]())
        steered = steer(pipe, redness, Moving())
        together = steered(prompt=PROMPTS, **CALL, generator=row_generators(0, 1, 2, 3, 4, 5))
        for p, seeds in enumerate([(0, 1, 2), (3, 4, 5)]):
            close(in_slot_order(together)[p], stock(pipe, seeds, PROMPTS[p])[[2, 2, 0]])

    def test_comes_back_with_the_particles(self, name):
        pipe = pipe_with(GUIDERS[name]())
        alone = stock(pipe, (0, 1, 2))
        output = steer(pipe, redness, Returning())(prompt=PROMPTS[0], **CALL, generator=row_generators(0, 1, 2))
        assert [(event.step, event.resume) for event in output.trace.events] == [
            (2, None),
            (4, 2),
            (2, None),
            (4, None),
            (STEPS, None),
        ]
        close(in_slot_order(output)[0], alone.flip(0))

    def test_of_renoised_particles_is_empty(self, name):
        """Their images depend on what they are renoised from and with, and on nothing that was before."""
        pipe = pipe_with(GUIDERS[name]())
        seen = []
        guider_call = type(pipe.guider).forward

        class Watched(type(pipe.guider)):
            def forward(self, *args, **kwargs):
                place = self.kept["memory"] if name == "own" else self.momentum_buffer
                kept = place.mean if name == "own" else place.running_average
                seen.append((self._step, isinstance(kept, torch.Tensor), len(args or kwargs["pred_cond"])))
                return guider_call(self, *args, **kwargs)

        pipe.guider.__class__ = Watched
        steer(pipe, redness, Returning(by="renoise"))(prompt=PROMPTS[0], **CALL, generator=row_generators(0, 1, 2))
        loop = [(step, kept) for step, kept, rows in seen if rows == 3]
        again = loop.index((2, False))
        assert [step for step, _ in loop[again:]].count(2) >= 1
        assert (2, True) in loop[:again]

    def test_another_number_of_rows_than_in_the_last_call(self, name):
        pipe = pipe_with(GUIDERS[name]())
        for particles in (3, 2):
            settings = replace(Moving(), num_particles=particles, ancestors=(1,) * particles)
            output = steer(pipe, redness, settings)(
                prompt=PROMPTS[0], **CALL, generator=row_generators(*range(particles))
            )
            close(in_slot_order(output)[0], stock(pipe, (1,)).expand(particles, -1, -1, -1))

    def test_decoding_leaves_the_guider_in_its_place(self, name):
        pipe = pipe_with(guider := GUIDERS[name]())
        steer(pipe, redness, Moving())(prompt=PROMPTS[0], **CALL, generator=row_generators(0, 1, 2))
        assert pipe.guider is guider
        assert "set_state" not in vars(guider)


def test_a_guider_that_is_not_in_use_is_left_alone():
    """As that for prompts with lettering is, where there is none in the prompt."""
    used, other = (AdaptiveProjectedGuidance(adaptive_projected_guidance_momentum=0.8) for _ in range(2))
    parts = {"guider": used, "ocr_guider": other}
    guiders = Guiders(SimpleNamespace(components=parts, _execution_device=torch.device("cpu")), 3, True, True)
    used.set_state(step=0, num_inference_steps=4, timestep=torch.tensor(0))
    used.prepare_inputs({})
    used.momentum_buffer.update(torch.arange(3.0)[:, None])
    guiders.take(torch.tensor([0, 2]))
    memory = guiders.memory()
    guiders.gather(torch.tensor([1, 1]))
    guiders.spread(torch.tensor([0, 1, 1]))
    assert used.momentum_buffer.running_average.flatten().tolist() == [2.0, 2.0, 2.0]
    guiders.restore(memory)
    assert used.momentum_buffer.running_average.flatten().tolist() == [0.0, 2.0]
    guiders.rewind()
    guiders.forget()
    assert used.momentum_buffer.running_average == 0
    assert other.momentum_buffer is None


def skipped(**what):
    return LayerSkipConfig(indices=[0], fqn=LAYERS, **what)


ATTENTION = {"skip_attention": False, "skip_attention_scores": True, "skip_ff": False}
CONDITIONS = {
    "classifier-free": (lambda: ClassifierFreeGuidance(5.0), [2] * STEPS),
    "classifier-free in part": (lambda: ClassifierFreeGuidance(5.0, start=0.5), [1, 1, 1, 2, 2, 2]),
    "switched off": (lambda: ClassifierFreeGuidance(1.0), [1] * STEPS),
    "zero star": (lambda: ClassifierFreeZeroStarGuidance(5.0, zero_init_steps=1), [2] * STEPS),
    "tangential": (lambda: TangentialClassifierFreeGuidance(5.0), [2] * STEPS),
    "projected": (lambda: AdaptiveProjectedGuidance(5.0, 0.5), [2] * STEPS),
    "auto": (lambda: AutoGuidance(5.0, auto_guidance_config=skipped()), [2] * STEPS),
    "attention": (
        lambda: PerturbedAttentionGuidance(
            5.0,
            perturbed_guidance_start=0.0,
            perturbed_guidance_stop=1.0,
            perturbed_guidance_config=skipped(**ATTENTION),
        ),
        [2, 3, 3, 3, 3, 3],
    ),
    "energy": (
        lambda: SmoothedEnergyGuidance(
            5.0,
            seg_guidance_start=0.0,
            seg_guidance_stop=0.5,
            seg_guidance_config=SmoothedEnergyGuidanceConfig(indices=[0], fqn=LAYERS),
        ),
        [2, 3, 3, 2, 2, 2],
    ),
}


@pytest.mark.parametrize("name", CONDITIONS)
class TestForwards:
    def test_are_those_of_the_stock_loop_for_one_particle(self, name):
        make, conditions = CONDITIONS[name]
        pipe, rows = pipe_with(make()), []
        handle = pipe.unet.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
        alone = stock(pipe, (0,))
        handle.remove()
        assert sum(rows) == sum(conditions)
        plain = FKSteering(num_particles=1, schedule=(), noise=STILL, lmbda=1.0)
        output = steer(pipe, redness, plain)(prompt=PROMPTS[0], **CALL, generator=row_generators(0))
        assert torch.equal(output.images, alone)
        assert (output.trace.nfe, output.trace.denoiser_calls) == (sum(rows), len(rows))

    def test_of_pruned_particles_are_left_out(self, name):
        make, conditions = CONDITIONS[name]
        pipe = pipe_with(make())
        steered = steer(pipe, redness, Moving(ancestors=(2,), at=3), Execution(2))
        output = steered(prompt=PROMPTS[0], **CALL, generator=row_generators(0, 1, 2))
        assert output.trace.nfe == sum(3 * n if step <= 3 else n for step, n in enumerate(conditions))
        close(output.images, stock(pipe, (2,)))


class Mixing(ClassifierFreeGuidance):
    """Guidance by the mean of the batch."""

    def forward(self, pred_cond, pred_uncond=None):
        return output(pred_cond + (pred_cond - pred_uncond).mean(0, keepdim=True), pred_cond, pred_uncond)


class Summing(ClassifierFreeGuidance):
    """Keeps what cannot be told apart by particle."""

    def forward(self, pred_cond, pred_uncond=None):
        self.total = torch.cat([pred_cond, pred_uncond])
        return output(pred_cond, pred_cond, pred_uncond)


class Collecting(ClassifierFreeGuidance):
    """Keeps more with every step."""

    def forward(self, pred_cond, pred_uncond=None):
        self.past = [*(self.past if self._step else []), pred_cond]
        return output(pred_cond, pred_cond, pred_uncond)


class Demanding(ClassifierFreeGuidance):
    """Cannot be tried by itself."""

    def prepare_inputs(self, data):
        data["prompt_embeds"]
        return super().prepare_inputs(data)


class TestRefusals:
    @pytest.mark.parametrize(
        ("guider", "message"),
        [
            (Mixing, r"`pipe.guider` \(Mixing\) mixes the predictions of different rows"),
            (Summing, r"\(Summing\) keeps in `total` what cannot follow particles that are resampled"),
            (Collecting, r"\(Collecting\) keeps in `past.0` what cannot follow"),
            (Demanding, r"\(Demanding\) cannot be tried on predictions of its own.*KeyError: 'prompt_embeds'"),
            (
                lambda: AdaptiveProjectedGuidance(5.0, adaptive_projected_guidance_norm_dim=(0, 1, 2, 3)),
                "mixes the predictions of different rows",
            ),
            (
                lambda: AutoGuidance(5.0, auto_guidance_config=skipped(dropout=0.5)),
                r"\(AutoGuidance\) draws what it drops anew in every call .* Use a `dropout` of 1.0",
            ),
        ],
        ids=["mixing", "summing", "collecting", "demanding", "norm over rows", "dropout"],
    )
    def test_before_the_denoiser_runs(self, guider, message):
        pipe, ran = pipe_with(guider()), []
        handle = pipe.unet.register_forward_pre_hook(lambda module, args: ran.append(module))
        with pytest.raises(ValueError, match=message):
            steer(pipe, redness, Moving())(prompt=PROMPTS[0], **CALL)
        handle.remove()
        assert not ran

    @pytest.mark.parametrize("guider", [Mixing, Summing, Collecting, Demanding])
    def test_not_where_no_particle_moves(self, guider):
        pipe = pipe_with(guider())
        output = steer(pipe, redness, "best-of-n")(prompt=PROMPTS[0], **CALL)
        assert torch.isfinite(output.rewards).all()

"""What holds in every run, whatever the settings: found by looking for a counterexample."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lineages import check_lineages

from fk_steer import PRESETS, FKSteering, Resampling, Schedule, steer
from fk_steer.smc import POTENTIALS, RESAMPLERS, TEMPERINGS
from fk_steer.testing import PROMPTS, SIZE, redness, row_generators, sd


STEPS = 6
CALL = {**SIZE, "num_inference_steps": STEPS, "guidance_scale": 5.0, "output_type": "pt"}


@pytest.fixture(scope="module")
def pipe():
    return sd()


@st.composite
def steerings(draw):
    num_particles = draw(st.integers(1, 6))
    at = sorted(draw(st.sets(st.integers(0, STEPS - 2), max_size=4)))
    alive = [draw(st.integers(1, num_particles)) for _ in at] if draw(st.booleans()) else None
    return FKSteering(
        num_particles=num_particles,
        lmbda=draw(st.sampled_from([0.0, 1.0, 30.0])),
        potential=draw(st.sampled_from(list(POTENTIALS))),
        tempering=draw(st.sampled_from(list(TEMPERINGS))),
        schedule=Schedule(at=tuple(at), alive=alive),
        resampling=Resampling(draw(st.sampled_from(list(RESAMPLERS))), draw(st.sampled_from([0.0, 0.5, 1.0]))),
        elite=draw(st.booleans()),
        stop=draw(st.sampled_from([None, 0.5])),
    )


class Rows:
    """Counts the rows a denoiser runs on, and how many of them are equal to another in the same call."""

    def __init__(self, pipe):
        self.total = self.repeated = 0
        self.handle = pipe.unet.conv_in.register_forward_pre_hook(self.count)

    def count(self, module, inputs):
        # Under guidance every particle is two equal rows, one of them with the empty prompt.
        half = inputs[0][: len(inputs[0]) // 2]
        self.total += len(inputs[0])
        self.repeated += 2 * (len(half) - len({row.numpy().tobytes() for row in half}))

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.handle.remove()


@settings(max_examples=40, deadline=None)
@given(steerings())
def test_every_run(pipe, steering):
    with Rows(pipe) as rows:
        output = steer(pipe, redness, steering)(PROMPTS, generator=row_generators(0, 1), **CALL)
    trace = output.trace
    # Rows run are those counted, none of them twice.
    assert trace.nfe == rows.total
    assert rows.repeated == 0
    check_populations(trace, steering)
    # The best image that was kept comes first, and its reward is its own.
    best = torch.tensor(trace.events[-1].rewards).amax(1)
    torch.testing.assert_close(output.rewards[:, 0], best, rtol=1e-6, atol=1e-6)
    count = output.rewards.shape[1]
    texts = [prompt for prompt in PROMPTS for _ in range(count)]
    torch.testing.assert_close(
        redness(output.particles.flatten(0, 1), texts), output.rewards.flatten(), rtol=1e-4, atol=1e-4
    )


def check_populations(trace, steering):
    for p in range(len(PROMPTS)):
        alive, roots = list(range(steering.num_particles)), steering.num_particles
        for event in trace.events:
            # A pruned particle never returns: who is scored was alive, who lives on continues one that was scored.
            assert event.slots_before[p] == alive
            assert set(event.parents[p]) <= set(alive)
            assert event.distinct_roots[p] <= roots
            assert 1.0 - 1e-9 <= event.ess[p] <= len(alive) + 1e-9
            assert sum(torch.tensor(event.log_weights[p], dtype=torch.float64).exp()) == pytest.approx(1.0)
            if not event.resampled[p]:
                assert event.parents[p] == alive
            # A particle that is continued at all is continued in its own slot, copies take free ones.
            if not event.stopped[p] and steering.resampling.scheme not in ("multinomial", "argmax"):
                assert all(parent in event.slots[p] for parent in event.parents[p])
            alive, roots = event.slots[p], event.distinct_roots[p]
        assert trace.events[-1].slots[p] == alive


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["constant", "rising", "geometric"]), st.sampled_from(["ssp", "multinomial", "residual"]),
    st.sampled_from([0.0, 0.5, 1.0]), st.booleans(),
)  # fmt: skip
def test_weights_telescope(pipe, tempering, resampler, ess_threshold, shrinks):
    """Under the difference potential the log-weight of a particle is lambda_t r_t less what its lineage had been
    credited with when it was last resampled."""
    schedule = Schedule(at=(0, 2, 3), alive=(5, 4, 3) if shrinks else None)
    steering = FKSteering(
        num_particles=5, lmbda=3.0, tempering=tempering, resampling=Resampling(resampler, ess_threshold),
        schedule=schedule,
    )  # fmt: skip
    trace = steer(pipe, redness, steering)(PROMPTS, generator=row_generators(2, 3), **CALL).trace
    for p in range(len(PROMPTS)):
        credited = dict.fromkeys(range(5), 0.0)
        for event in trace.events:
            level = {slot: event.lmbda[p] * reward for slot, reward in zip(event.slots_before[p], event.rewards[p])}
            expected = torch.tensor([level[slot] - credited[slot] for slot in event.slots_before[p]]).double()
            actual = torch.tensor(event.log_weights[p], dtype=torch.float64)
            torch.testing.assert_close(actual, expected.log_softmax(0), rtol=1e-4, atol=1e-5)
            source = level if event.resampled[p] else credited
            credited = {slot: source[parent] for slot, parent in zip(event.slots[p], event.parents[p])}
        assert event.lmbda[p] == pytest.approx(3.0)


def with_lambda(name):
    settings = PRESETS[name].settings
    return settings.replace(lmbda=1.0) if hasattr(settings, "lmbda") else settings


SHARING = {"fk-paper", "hybrid", "lookahead"}
"""Presets whose copies are denoised together before noise parts them."""


@pytest.mark.parametrize("name", PRESETS)
def test_presets(pipe, name):
    """Nobody who was kept to the end is better than the image that comes first, and a run costs what it says."""
    steering = with_lambda(name)
    with Rows(pipe) as rows:
        output = steer(pipe, redness, steering)(
            PROMPTS, generator=row_generators(4, 5), **{**CALL, "num_inference_steps": 20}
        )
    trace = output.trace
    assert output.rewards[:, 0].tolist() == output.rewards.amax(1).tolist()
    assert rows.repeated == 0
    assert trace.nfe == rows.total
    check_lineages(trace, steering.num_particles)
    most = 2 * len(PROMPTS) * steering.cost(20)  # rows under guidance, two for each call
    if name in SHARING:
        assert 0.9 * most < trace.nfe < most
    else:
        assert trace.nfe == most
    if type(steering) is FKSteering:
        assert len(trace.events) == len(steering.schedule.at) + 1

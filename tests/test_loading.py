"""Schedulers that the command line and the benchmarks sample with."""

from __future__ import annotations

from types import SimpleNamespace

import diffusers
import pytest

from fk_steer import FKSteering, Schedule
from fk_steer.loading import set_scheduler
from fk_steer.testing import sd_scheduler


ADAPTIVE = FKSteering()


def chosen(scheduler, steering=ADAPTIVE, name=None, num_steps=None):
    """The scheduler that a pipeline with `scheduler` gets, and what was said about it."""
    pipe = SimpleNamespace(scheduler=scheduler)
    note = set_scheduler(pipe, name, steering, num_steps)
    return pipe.scheduler, note


@pytest.mark.parametrize("preset", ["best-of-n", "psp"])
@pytest.mark.parametrize("kind", [diffusers.PNDMScheduler, diffusers.EulerDiscreteScheduler])
def test_presets_that_copy_nothing_keep_the_models_own(preset, kind):
    scheduler = sd_scheduler(kind=kind)
    assert chosen(scheduler, FKSteering.preset(preset)) == (scheduler, None)


def test_a_preset_that_copies_late_needs_noise():
    scheduler, note = chosen(sd_scheduler(kind=diffusers.PNDMScheduler), FKSteering.preset("hybrid"))
    assert isinstance(scheduler, diffusers.DDIMScheduler)
    assert "PNDMScheduler adds no noise" in note
    assert "DDIMScheduler" in note


def test_events_are_those_of_the_loop():
    late = FKSteering(schedule=Schedule(at=(0.1, 20)))
    assert isinstance(
        chosen(sd_scheduler(kind=diffusers.PNDMScheduler), late, num_steps=30)[0], diffusers.DDIMScheduler
    )


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0), diffusers.FlowMatchEulerDiscreteScheduler),
        (
            diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
            diffusers.FlowMatchEulerDiscreteScheduler,
        ),
        (diffusers.EDMEulerScheduler(sigma_max=70.0), diffusers.EDMDPMSolverMultistepScheduler),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_parametrisation_is_kept(scheduler, expected):
    found, note = chosen(scheduler)
    assert isinstance(found, expected)
    assert expected.__name__ in note
    if expected is diffusers.FlowMatchEulerDiscreteScheduler:
        assert found.config.shift == 3.0
    else:
        assert found.config.sigma_max == 70.0


def test_one_asked_for_by_name():
    scheduler, note = chosen(sd_scheduler(), name="UniPCMultistepScheduler")
    assert isinstance(scheduler, diffusers.UniPCMultistepScheduler)
    assert note is None

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from fk_steer import PRESETS, FKSteering, Schedule
from fk_steer.config import DEFAULT_PRESET
from fk_steer.smc import Constant, Rising, TargetESS


def test_defaults_are_the_default_preset():
    assert FKSteering() == FKSteering.preset(DEFAULT_PRESET)


def test_published_settings():
    """Singhal et al.: DDIM eta 1, max potential, resampling at 20, 40, 60 and 80 of 100 steps."""
    paper = FKSteering.preset("fk-paper")
    assert (paper.potential, paper.resampler, paper.floor, paper.eta) == ("max", "multinomial", 0.0, 1.0)
    assert paper.schedule.events(100, 4) == {20: 4, 40: 4, 60: 4, 80: 4}
    assert paper.tempering == Constant()
    assert paper.ess_threshold == 1.0
    assert paper.resample_after_noise


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name):
    settings = FKSteering.preset(name)
    assert PRESETS[name].summary
    assert FKSteering.preset(name, num_particles=16).num_particles == 16
    assert FKSteering.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


def test_names_become_settings():
    assert FKSteering(tempering="rising").tempering == Rising()
    assert FKSteering(schedule=(0.1, 5)).schedule == Schedule(at=(0.1, 5))
    settings = FKSteering(tempering=TargetESS(0.7))
    assert settings.to_dict()["tempering"] == {"name": "target-ess", "ess": 0.7}
    assert FKSteering.from_dict(settings.to_dict()) == settings


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FKSteering().lmbda = 3.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_particles": 0}, "`num_particles` to be an integer of at least 1, but got 0"),
        ({"lmbda": math.inf}, "`lmbda` to be finite"),
        ({"lmbda": math.nan}, "`lmbda` to be finite"),
        ({"lmbda": -1.0}, "at least 0, but got -1.0"),
        ({"ess_threshold": 1.5}, "`ess_threshold` to be between 0.0 and 1.0, but got 1.5"),
        ({"eta": -0.1}, "`eta` to be between"),
        ({"potential": "min"}, "Unknown potential 'min'. Known: difference, max, sum, current"),
        ({"resampler": "ssr"}, "Unknown resampler 'ssr'. Known: ssp, systematic"),
        ({"tempering": "hot"}, "Unknown tempering 'hot'. Known: constant, rising"),
        ({"schedule": (1.2,)}, "fractions in `at`"),
        ({"floor": 0.0}, "only used by the potential 'max'"),
        ({"denoise_batch_size": 0}, "`denoise_batch_size` to be None or an integer of at least 1"),
        ({"num_particles": 2.5}, "`num_particles` to be an integer of at least 1, but got 2.5"),
        ({"seed": -1}, "`seed` to be None or an integer of at least 0"),
        ({"target_reward": float("nan")}, "`target_reward` to be a number"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        FKSteering(**arguments)


def test_unknown_preset():
    with pytest.raises(ValueError, match="Unknown preset 'fkd'. Known: adaptive, fk, fk-paper"):
        FKSteering.preset("fkd")


@pytest.mark.parametrize(
    ("settings", "events", "expected"),
    [
        (FKSteering(), {3: 4, 5: 4}, [3, 5]),
        (FKSteering(), {}, []),
        (FKSteering(ess_threshold=0.0), {3: 4}, []),
        (FKSteering(ess_threshold=0.0), {3: 2, 4: 2}, [3]),
        (FKSteering(resampler="top-k"), {3: 2, 5: 1}, []),
        (FKSteering(resampler="top-k"), {3: 2, 5: 4}, [5]),
        (FKSteering(num_particles=1), {3: 1}, []),
        (FKSteering(num_particles=4), {3: 1}, []),
    ],
)
def test_duplicating(settings, events, expected):
    assert settings.duplicating(events) == expected


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("num_steps", [25, 50, 100])
def test_budget(name, num_steps):
    for budget in (1, 2, 4, 8, 16):
        settings = FKSteering.preset(name).within(budget, num_steps)
        more = dataclasses.replace(settings, num_particles=settings.num_particles + 1)
        assert settings.trajectories(num_steps) <= budget < more.trajectories(num_steps)
        assert dataclasses.replace(settings, num_particles=4) == FKSteering.preset(name, num_particles=4)


def test_cost():
    assert FKSteering.preset("psp").trajectories(64) == 4.0
    assert FKSteering.preset("fk", num_particles=5).trajectories(7) == 5.0
    counts = FKSteering(schedule=Schedule(at=(0.5,), alive=(6,)), num_particles=8)
    assert counts.trajectories(10) == 7.0
    assert counts.within(9.0, 10).num_particles == 12
    with pytest.raises(ValueError, match="No number of particles fits a budget of 5 trajectories"):
        counts.within(5.0, 10)

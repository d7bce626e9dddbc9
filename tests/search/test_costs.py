"""What searches cost, and as many particles as fit a budget."""

from __future__ import annotations

from dataclasses import dataclass, fields

import pytest

from fk_steer import FKSteering, Schedule, Strategy
from fk_steer.search import PRESETS, DepthFirst, Evolution, Lookahead, Metropolis, preset


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("num_steps", [14, 25, 100])
def test_as_many_particles_as_fit(name, num_steps):
    for calls in (400, 777, 1600):
        settings = preset(name).within(calls=calls).resolved(num_steps)
        more = settings.replace(num_particles=settings.num_particles + 1)
        assert settings.cost(num_steps) <= calls < more.cost(num_steps)
        assert settings == preset(name, num_particles=settings.num_particles)


@pytest.mark.parametrize(
    ("settings", "num_steps", "expected"),
    [
        (FKSteering(num_particles=5), 7, 35),
        (FKSteering.preset("psp"), 64, 4 * 64),
        (FKSteering(schedule=Schedule(at=(0.5,), alive=(6,)), num_particles=8), 10, 70),
        (DepthFirst(2, attempts=3, at=5, back=2), 10, 2 * (10 + 3 * 2)),
        (Evolution(4, generations=2, at=0.6, back=0.3), 10, 4 * (10 + 2 * 3)),
        (Metropolis(3, moves=4), 10, 3 * (10 + 4 * 5)),
        (Lookahead(4, schedule=(2, 5), leaps=2), 10, 4 * (10 + 2 * (2 + 1))),
        (Lookahead(4, schedule=(2, 5), leaps=None, ahead=3), 10, 4 * (10 + 2 * (3 + 1))),
        # The last step but one has one step ahead of it.
        (Lookahead(4, schedule=(8,), leaps=None, ahead=3), 10, 4 * (10 + 1 + 1)),
    ],
)
def test_cost(settings, num_steps, expected):
    assert settings.cost(num_steps) == expected


def test_a_budget_of_the_class_is_one_of_its_defaults():
    assert FKSteering.within(calls=400) == FKSteering().within(calls=400) == FKSteering(calls=400)
    assert Evolution.within(400) == Evolution(calls=400)
    assert FKSteering(elite=True).within(calls=400) == FKSteering(elite=True, calls=400)
    assert FKSteering.preset("psp").within(calls=400) == FKSteering.preset("psp", calls=400)


def test_without_a_budget_settings_are_as_they_were():
    assert FKSteering(num_particles=7).resolved(25) == FKSteering(num_particles=7)


def test_a_budget_too_small():
    with pytest.raises(ValueError, match="A budget of 9 denoiser calls per image is too small: 1 particle over a loop"):
        FKSteering.within(calls=9).resolved(10)
    assert FKSteering.within(calls=10).resolved(10).num_particles == 1
    counts = FKSteering(schedule=Schedule(at=(0.5,), alive=(6,)))
    with pytest.raises(ValueError, match="6 particles over a loop of 10 steps take 60. Allow at least 60, or take few"):
        counts.within(calls=59).resolved(10)
    assert counts.within(calls=90).resolved(10).num_particles == 12


@dataclass(frozen=True)
class Back(Strategy):
    goes_back = True


@dataclass(frozen=True)
class Twice(Strategy):
    goes_back = True

    def cost(self, num_steps):
        return 2 * num_steps * self.num_particles


def test_searches_of_ones_own():
    assert Strategy(3).cost(10) == 30
    assert Twice.within(calls=100).resolved(10).num_particles == 5
    with pytest.raises(NotImplementedError, match="Back goes back, so its `cost` has to be defined"):
        Back.within(calls=100).resolved(10)


def test_settings_survive_being_written_down():
    for kind in (FKSteering, DepthFirst, Evolution, Lookahead, Metropolis):
        settings = kind(steps=14, sampler="ddim", calls=400)
        plain = settings.to_dict()
        assert (plain["steps"], plain["sampler"], plain["calls"]) == (14, "ddim", 400)
        assert Strategy.from_dict(plain) == settings
        assert {entry.default for entry in fields(kind) if entry.name in ("steps", "sampler", "calls")} == {None}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "Expected `steps`"),
        ({"calls": 0}, "Expected `calls`"),
        ({"calls": 1.5}, "Expected `calls`"),
        ({"sampler": 3}, "Expected `sampler` to be a name"),
        ({"sampler": ""}, "Expected `sampler` to be a name"),
    ],
)
def test_values_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        FKSteering(**settings)
    if "calls" in settings:
        with pytest.raises(ValueError, match=message):
            FKSteering.within(**settings)

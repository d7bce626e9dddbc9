"""Settings as command lines write them."""

from __future__ import annotations

import pytest

from fk_steer import FKSteering, Noise, Schedule
from fk_steer.options import read_assignments
from fk_steer.search import PRESETS, Refine, preset
from fk_steer.search.assignments import changed, check_once
from fk_steer.search.presets import asked
from fk_steer.smc import Constant, Rising


def made(name, *texts):
    return changed(preset(name), read_assignments(texts))


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["num_particles=8"], {"num_particles": 8}),
        (["lmbda=1e-1"], {"lmbda": 0.1}),
        (["lmbda=null"], {"lmbda": None}),
        (["elite=true"], {"elite": True}),
        (["tempering=constant"], {"tempering": Constant()}),
        (["tempering={name: rising, end: 3}"], {"tempering": Rising(end=3)}),
        (["tempering=rising", "tempering.end=3"], {"tempering": Rising(end=3)}),
        (["schedule=0.4,0.6"], {"schedule": Schedule(at=(0.4, 0.6))}),
        (["schedule.at=0.4,0.6"], {"schedule": Schedule(at=(0.4, 0.6))}),
        (["schedule.at=[0.4, 0.6]", "schedule.alive=0.5,0.5"], {"schedule": Schedule(at=(0.4, 0.6), alive=(0.5, 0.5))}),
        (["schedule.at=0.5"], {"schedule": Schedule(at=(0.5,))}),
        (["noise=0.5", "noise.window=0,0.9"], {"noise": Noise(0.5, (0.0, 0.9))}),
        (["stop.target_reward=0.8"], {"stop": 0.8}),
        (["resampling.ess_threshold=0.5"], {"resampling": {"ess_threshold": 0.5}}),
        (["preview.decoder=shapes"], {"preview": "shapes"}),
    ],
)
def test_any_setting_can_be_given(texts, expected):
    assert made("adaptive", *texts) == FKSteering(**expected)


def test_parts_that_are_not_named_stay():
    before = preset("psp")
    after = made("psp", "schedule.at=0.3,0.6")
    assert after.schedule == Schedule(at=(0.3, 0.6), alive=before.schedule.alive)
    assert after.replace(schedule=before.schedule) == before


def test_settings_of_other_searches():
    assert made("refine", "strengths=0.4") == Refine(strengths=(0.4,))
    assert made("allocation", "inner.lmbda=3", "passes=2").inner.lmbda == 3
    assert made("allocation", "inner.schedule.at=0.5").inner.schedule == Schedule(at=(0.5,))


@pytest.mark.parametrize("name", PRESETS)
def test_every_setting_as_it_is_changes_nothing(name):
    import yaml

    settings = preset(name)
    described = {field: value for field, value in settings.to_dict().items() if field != "strategy"}
    texts = [f"{field}={yaml.safe_dump(value, default_flow_style=True)}" for field, value in described.items()]
    assert changed(settings, read_assignments([text.removesuffix("...\n") for text in texts])) == settings


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["schedul.at=0.4"], r"Unknown setting 'schedul' of 'feynman-kac'.*Did you mean 'schedule'\?"),
        (["particles=4"], r"Unknown setting 'particles'.*Did you mean 'num_particles'\?"),
        (["schedule.att=0.4"], r"Unknown setting 'att' of Schedule.*Did you mean 'at'\?"),
        (["tempering=constnt"], r"Unknown tempering 'constnt'.*Did you mean 'constant'\?"),
        (["tempering.end=3"], r"Unknown setting 'end'"),
        (["num_particles=0"], "`num_particles` to be an integer of at least 1"),
        (["num_particles=many"], "`num_particles` to be an integer"),
        (["num_particles.x=3"], "`num_particles` is 4, which has no parts"),
        (["noise.eta=2"], "`eta` to be between 0.0 and 1.0"),
        (["strategy=refine"], "Unknown setting 'strategy'"),
        (["noise.eta"], "Expected --set as FIELD=VALUE"),
        (["=3"], "Expected --set as FIELD=VALUE"),
        (["noise.=3"], "Expected --set as FIELD=VALUE"),
        (["tempering={name"], "a value that YAML can read"),
        (["lmbda=1", "lmbda=2"], "Expected --set lmbda once"),
    ],
)
def test_mistakes_say_what_is_known(texts, message):
    with pytest.raises(ValueError, match=message):
        made("adaptive", *texts)


@pytest.mark.parametrize(
    ("texts", "given", "message"),
    [
        (["num_particles=8"], {"particles": 4}, "by --particles or by --set num_particles=..., but got both"),
        (["lmbda=8"], {"lmbda": 4.0}, "by --lmbda or by --set lmbda"),
        (["calls=100"], {"budget": 50}, "by --budget or by --set calls"),
        (["num_particles=8"], {"budget": 50}, "--set num_particles=... does not go with --budget"),
        (["calls=100"], {"particles": 5}, "--set calls=... does not go with --particles"),
        (["calls=100", "num_particles=3"], {}, "leave out --set num_particles"),
        (["steps=9"], {"elsewhere": ["steps"]}, "by --steps or by --set steps"),
        (["sampler=ddim"], {"elsewhere": ["sampler"]}, "by --scheduler or by --set sampler"),
        (["seed=1"], {}, "give --seed or --seeds"),
    ],
)
def test_what_is_given_in_two_ways_is_refused(texts, given, message):
    with pytest.raises(ValueError, match=message):
        asked("adaptive", changes=read_assignments(texts), **given)


def test_what_does_not_touch_goes_together():
    check_once({"noise.eta": 0.5, "schedule.at": [0.5]}, ["num_particles", "lmbda", "steps"])
    settings = asked("adaptive", particles=6, lmbda=3.0, changes={"noise.eta": 0.5})
    assert settings == FKSteering(6, lmbda=3.0, noise=0.5)

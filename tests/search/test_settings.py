from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusion_1d import MIXTURE
from driver import drive, num_steps, start

from fk_steer.search import (
    DEFAULT_PRESET,
    PRESETS,
    STRATEGIES,
    Allocation,
    DepthFirst,
    Evolution,
    Finish,
    FKSteering,
    Look,
    Lookahead,
    Metropolis,
    Noise,
    Plan,
    Preview,
    Refine,
    RewardFacts,
    Screen,
    Stop,
    Strategy,
    preset,
)
from fk_steer.smc import (
    Constant,
    Current,
    Difference,
    Geometric,
    Max,
    Resampling,
    Rising,
    Schedule,
    Sum,
    TargetESS,
)


STEERING = [name for name, entry in PRESETS.items() if isinstance(entry.settings, FKSteering)]
OTHERS = {
    "allocation": Allocation,
    "depth-first": DepthFirst,
    "evolution": Evolution,
    "finish": Finish,
    "lookahead": Lookahead,
    "metropolis": Metropolis,
    "refine": Refine,
    "screen": Screen,
}


def through_json(settings: Strategy) -> Strategy:
    return Strategy.from_dict(json.loads(json.dumps(settings.to_dict(), allow_nan=False)))


def test_defaults_of_the_classes_are_presets():
    assert FKSteering() == FKSteering.preset("adaptive") == preset("adaptive")
    assert Finish() == Finish.preset(DEFAULT_PRESET) == preset(DEFAULT_PRESET)


def test_published_settings():
    """Singhal et al.: DDIM eta 1, max potential, resampling at 20, 40, 60 and 80 of 100 steps."""
    paper = FKSteering.preset("fk-paper")
    assert paper.potential == Max(floor=0.0, exact_terminal=False)
    assert paper.noise == Noise(eta=1.0)
    assert paper.schedule.events(100, 4) == {20: 4, 40: 4, 60: 4, 80: 4}
    assert paper.tempering == Constant()
    assert paper.resampling == Resampling("multinomial", ess_threshold=1.0, after_noise=True)


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name):
    settings = preset(name)
    assert PRESETS[name].summary.endswith(".")
    assert preset(name, num_particles=16).num_particles == 16
    assert preset(name, num_particles=16).replace(num_particles=settings.num_particles) == settings
    assert through_json(settings) == settings
    assert type(settings) is OTHERS.get(name, FKSteering)
    assert settings.to_dict()["strategy"] == OTHERS.get(name, FKSteering)().name in STRATEGIES


@pytest.mark.parametrize("name", PRESETS)
def test_presets_start(name):
    """Their searches begin, and look at steps of the loop."""
    settings = preset(name)
    settings.check(RewardFacts(default_lmbda=1.0))
    search = start(settings, dataclasses.replace(MIXTURE, num_steps=49), 2, default_lmbda=1.0)
    assert all(0 <= step < 50 for step in search.events) and all(step in search.events for step in search.unscored)
    assert settings.copying(50) == sorted(settings.copying(50))


FULL = [
    FKSteering(
        8, 2.5, Max(floor=-1.0, exact_terminal=False), Rising(2.0, 3.0), Schedule((3, 0.5), (4, 0.25)),
        Resampling("systematic", 0.7, True), noise=Noise(0.3, (0.1, 0.9)), preview=Preview("shapes", 0.5), seed=7,
        elite=True, stop=Stop(1.5, True), standardize=True,
    ),
    FKSteering(potential=Sum(), tempering=Geometric(0.02)),
    FKSteering(potential=Current(False), tempering=TargetESS(0.7)),
    FKSteering(potential=Difference()),
    DepthFirst(3, 0.5, 7, at=4, back=2, noise=Noise(0.0), seed=1),
    Evolution(6, 3, at=0.9, back=0.1, preview=Preview("madebyollin/taesd")),
    Lookahead(6, Schedule((2, 0.5)), 3, None, TargetESS(0.2), Resampling("residual")),
    Metropolis(6, 3.0, 9, at=0.8, back=5),
    Allocation(Metropolis(6, 3.0), 3.5, 0.25, num_particles=5, noise=Noise(0.5), preview="shapes", seed=2),
    Screen(Evolution(4), 3, 6, "own", num_particles=9, seed=4),
]  # fmt: skip


@pytest.mark.parametrize("settings", FULL, ids=lambda settings: settings.name)
def test_through_json_with_everything_set(settings):
    again = through_json(settings)
    assert again == settings and type(again) is type(settings)
    for entry in dataclasses.fields(settings):
        one, other = getattr(again, entry.name), getattr(settings, entry.name)
        assert type(one) is type(other)


def test_what_is_left_out_of_a_mapping_takes_its_default():
    assert Strategy.from_dict({"strategy": "evolution", "generations": 3}) == Evolution(generations=3)
    assert FKSteering.from_dict({"lmbda": 3.0}) == FKSteering(lmbda=3.0)
    assert FKSteering.from_dict({"tempering": {"name": "rising"}}) == FKSteering(tempering=Rising())


def test_names_and_mappings_become_settings():
    assert FKSteering(tempering="rising").tempering == Rising()
    assert FKSteering(tempering={"name": "rising", "end": 2}).tempering == Rising(end=2)
    assert FKSteering(potential="max").potential == Max()
    assert FKSteering(potential={"name": "max", "floor": 0}).potential == Max(floor=0.0)
    assert FKSteering(schedule=(0.1, 5)).schedule == Schedule(at=(0.1, 5))
    assert FKSteering(schedule={"at": [0.1, 5], "alive": [3, 2]}).schedule == Schedule((0.1, 5), (3, 2))
    assert FKSteering(resampling="top-k").resampling == Resampling("top-k")
    assert FKSteering(resampling={"ess_threshold": 0.2}).resampling == Resampling(ess_threshold=0.2)
    assert FKSteering(stop=0.5).stop == FKSteering(stop={"target_reward": 0.5}).stop == Stop(0.5)
    assert FKSteering(noise={"window": [0.2, 0.4]}).noise == Noise(window=(0.2, 0.4))
    assert FKSteering(noise=0).noise == Noise(eta=0.0)
    assert (
        FKSteering(preview="shapes").preview == FKSteering(preview={"decoder": "shapes"}).preview == Preview("shapes")
    )
    assert Lookahead(schedule=[0.5], tempering="target-ess", resampling="systematic") == Lookahead(
        schedule=Schedule((0.5,)), resampling=Resampling("systematic")
    )
    assert FKSteering(tempering=TargetESS(0.7)).to_dict()["tempering"] == {"name": "target-ess", "ess": 0.7}


def single(value: Any) -> Any:
    return np.float32(value) if isinstance(value, float) else np.asarray(value)[()]


SCALARS: list[Callable[[Any], Any]] = [np.asarray, lambda value: np.asarray(value)[()], single, torch.tensor]


@pytest.mark.parametrize("scalar", SCALARS, ids=["array", "scalar", "single", "tensor"])
def test_numbers_of_other_libraries(scalar):
    """Everywhere, and they become Python's."""
    s = scalar
    given = [
        FKSteering(
            s(8), s(2.5), Max(floor=s(-1.0), exact_terminal=s(False)), Rising(s(2.0), s(3)),
            Schedule((s(3), s(0.5)), (s(4), s(0.25))), Resampling("ssp", s(0.7), s(True)),
            noise=Noise(s(0.3), (s(0.1), s(1))), preview=Preview("shapes", s(0.5)), seed=s(7),
            elite=s(True), stop=s(1.5), standardize=s(True),
        ),
        FKSteering(stop=Stop(s(2), s(True)), tempering=Geometric(s(0.02))),
        DepthFirst(s(3), s(0.5), s(7), at=s(4), back=s(0.3)),
        Evolution(s(6), s(3), at=s(0.9), back=s(1)),
        Lookahead(s(6), [s(2), s(0.5)], s(3), None, TargetESS(s(0.2))),
        Metropolis(s(6), s(3.0), s(9), at=s(0.8), back=s(5)),
    ]  # fmt: skip
    expected = [
        FKSteering(
            8, 2.5, Max(floor=-1.0, exact_terminal=False), Rising(2.0, 3), Schedule((3, 0.5), (4, 0.25)),
            Resampling("ssp", 0.7, True), noise=Noise(0.3, (0.1, 1)), preview=Preview("shapes", 0.5), seed=7,
            elite=True, stop=1.5, standardize=True,
        ),
        FKSteering(stop=Stop(2, True), tempering=Geometric(0.02)),
        DepthFirst(3, 0.5, 7, at=4, back=0.3),
        Evolution(6, 3, at=0.9, back=1),
        Lookahead(6, [2, 0.5], 3, None, TargetESS(0.2)),
        Metropolis(6, 3.0, 9, at=0.8, back=5),
    Allocation(Metropolis(6, 3.0), 3.5, 0.25, num_particles=5, noise=Noise(0.5), preview="shapes", seed=2),
    Screen(Evolution(4), 3, 6, "own", num_particles=9, seed=4),
    ]  # fmt: skip
    for one, other in zip(given, expected):
        assert one == other
        assert json.dumps(one.to_dict()) == json.dumps(other.to_dict())


@pytest.mark.parametrize("settings", [FKSteering(), *(kind() for kind in OTHERS.values())], ids=lambda s: s.name)
def test_frozen_and_hashable(settings):
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.num_particles = 3
    assert len({settings, through_json(settings)}) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_particles": 0}, "`num_particles` to be an integer of at least 1, but got 0"),
        ({"num_particles": 2.5}, "`num_particles` to be an integer of at least 1, but got 2.5"),
        ({"num_particles": True}, "`num_particles` to be an integer of at least 1, but got True"),
        ({"num_particles": None}, "`num_particles` to be an integer"),
        ({"lmbda": math.inf}, "`lmbda` to be None or finite and at least 0.0, but got inf"),
        ({"lmbda": math.nan}, "`lmbda` to be None or finite and at least 0.0, but got nan"),
        ({"lmbda": -1.0}, "`lmbda` to be None or finite and at least 0.0, but got -1.0"),
        ({"lmbda": "10"}, "`lmbda` to be None or finite and at least 0.0, but got '10'"),
        ({"lmbda": [1.0]}, "`lmbda` to be None or finite and at least 0.0"),
        ({"resampling": {"ess_threshold": 1.5}}, "`ess_threshold` to be between 0.0 and 1.0, but got 1.5"),
        ({"resampling": "ssr"}, "Unknown resampler 'ssr'. Known: ssp, systematic"),
        ({"resampling": {"shceme": "ssp"}}, "Unknown setting 'shceme' of Resampling. Known: scheme, ess_threshold"),
        ({"resampling": None}, "Unknown resampler None"),
        ({"potential": "min"}, "Unknown potential 'min'. Known: difference, max, sum, current"),
        ({"potential": Max}, "Unknown potential the class Max. Known: difference"),
        ({"potential": {"floor": 1.0}}, "Unknown potential None"),
        ({"potential": {"name": "max", "flor": 1.0}}, "Unknown setting 'flor' of Max. Known: exact_terminal, floor"),
        ({"potential": {"name": "max", "floor": "low"}}, "`floor` to be None or a finite number, but got 'low'"),
        ({"potential": {"name": "sum", "exact_terminal": "no"}}, "`exact_terminal` to be True or False, but got 'no'"),
        ({"tempering": "hot"}, "Unknown tempering 'hot'. Known: constant, rising, geometric, target-ess"),
        ({"tempering": ["rising"]}, "Unknown tempering"),
        ({"tempering": {"name": "constant", "end": 2}}, "Unknown setting 'end' of Constant. It has none"),
        ({"schedule": (1.2,)}, "fractions in `at`"),
        ({"schedule": 0.5}, "`at` to be a sequence of numbers, but got 0.5"),
        ({"schedule": "fast"}, "`at` to be a sequence of numbers, but got 'fast'"),
        ({"schedule": {"when": [0.5]}}, "Unknown setting 'when' of Schedule. Known: at, alive"),
        ({"noise": Schedule()}, "`eta` to be between 0.0 and 1.0"),
        ({"noise": {"eta": -0.1}}, "`eta` to be between 0.0 and 1.0, but got -0.1"),
        ({"noise": None}, "`eta` to be between"),
        ({"seed": -1}, "`seed` to be None or an integer of at least 0"),
        ({"stop": math.nan}, "`target_reward` to be a finite number"),
        ({"stop": {"target_reward": 1.0, "rollover": 1}}, "`rollover` to be True or False, but got 1"),
        ({"preview": {"decoder": "shapes", "until": 2}}, "`until` to be between 0.0 and 1.0, but got 2"),
        ({"elite": "False"}, "`elite` to be True or False, but got 'False'"),
        ({"standardize": 1}, "`standardize` to be True or False, but got 1"),
    ],
    ids=str,
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        FKSteering(**arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DepthFirst(target_reward="high"), "`target_reward` to be None or a finite number"),
        (lambda: DepthFirst(attempts=0), "`attempts` to be an integer of at least 1"),
        (lambda: DepthFirst(at=-0.1), "`at` to be finite and at least 0.0"),
        (lambda: DepthFirst(back="far"), "`back` to be finite and at least 0.0"),
        (lambda: Evolution(generations=0), "`generations` to be an integer of at least 1"),
        (lambda: Metropolis(moves=1.5), "`moves` to be an integer of at least 1"),
        (lambda: Metropolis(lmbda=-1), "`lmbda` to be None or finite and at least 0.0"),
        (lambda: Lookahead(tempering="rising"), "Unknown tempering 'rising'. Known: target-ess"),
        (lambda: Lookahead(resampling="best"), "Unknown resampler 'best'"),
        (lambda: Lookahead(num_particles=0), "`num_particles`"),
    ],
)
def test_bad_settings_of_the_others(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="Unknown preset 'fkd'. Known: adaptive, sparing, fk, fk-paper"):
        FKSteering.preset("fkd")
    with pytest.raises(
        ValueError, match="'evolution' is not Feynman-Kac steering. Those that are: adaptive, sparing, fk"
    ):
        FKSteering.preset("evolution")
    with pytest.raises(ValueError, match="Unknown setting 'particles' of FKSteering. Known: num_particles, noise"):
        preset("fk", particles=3)
    with pytest.raises(ValueError, match="Unknown setting 'lmbda' of Evolution. Known: num_particles"):
        Evolution().replace(lmbda=3)
    with pytest.raises(ValueError, match="Unknown strategy 'search'. Known: feynman-kac, depth-first, evolution"):
        Strategy.from_dict({"strategy": "search"})
    with pytest.raises(ValueError, match="Unknown strategy None"):
        Strategy.from_dict({"strategy": None})
    with pytest.raises(ValueError, match="Unknown setting 'eta' of FKSteering"):
        Strategy.from_dict({"strategy": "feynman-kac", "eta": 1.0})


def test_a_decoder_in_memory_cannot_be_written_down_but_is_named():
    settings = FKSteering(preview=torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="A preview decoder in memory cannot be written down"):
        settings.to_dict()
    assert settings.describe()["preview"] == {"decoder": "Linear", "until": 1.0}
    assert FKSteering(preview="shapes").to_dict()["preview"] == {"decoder": "shapes", "until": 1.0}


def test_noise_window():
    noise = Noise(window=(0.25, 0.5))
    assert [step for step in range(20) if noise.on(step, 20)] == [5, 6, 7, 8, 9]
    assert all(Noise().on(step, 7) for step in range(7))
    assert not any(Noise(window=(0.0, 0.0)).on(step, 7) for step in range(7))
    for window in ((0.5, 0.2), (0.5,), (0.1, 0.2, 0.3)):
        with pytest.raises(ValueError, match="start <= stop"):
            Noise(window=window)
    with pytest.raises(ValueError, match="`window` to be between 0.0 and 1.0"):
        Noise(window=(0.0, 1.5))


# A strategy of one's own.


@dataclass(frozen=True)
class FollowTheBest(Strategy):
    every: int = 3

    def events(self, num_steps):
        return range(self.every, num_steps, self.every)

    def step(self, look):
        return Plan(look.ranked()[:, :1].expand_as(look.rewards))


def test_ten_lines_make_a_strategy():
    settings = FollowTheBest(5, every=2)
    run = drive(start(settings, MIXTURE, 3), MIXTURE, (3, 5))
    assert [seen.look.step for seen in run.seen] == [2, 4, 6, 8]
    for seen in run.seen:
        best = seen.before.gather(1, seen.look.rewards.argmax(1, keepdim=True))
        assert torch.equal(seen.after, best.expand_as(seen.before))
    assert torch.allclose(run.outcome.weights.normalized, torch.full((3, 5), 1 / 5).double())
    assert run.search.log_normalizer is None
    assert settings.copying(num_steps(MIXTURE)) == [2, 4, 6, 8] and not settings.goes_back
    passes = []
    settings.conduct(SimpleNamespace(run=passes.append))
    assert passes == [settings]


def test_a_strategy_of_ones_own_is_data_too():
    settings = FollowTheBest(5, every=2, noise=0.5, seed=3)
    assert settings.name == "FollowTheBest"
    assert FollowTheBest.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert settings.replace(every=4).every == 4
    with pytest.raises(ValueError, match="Unknown setting 'each' of FollowTheBest. Known: num_particles, noise"):
        settings.replace(each=4)
    with pytest.raises(ValueError, match="`num_particles` to be an integer of at least 1"):
        FollowTheBest(0)


def test_a_strategy_that_says_nothing():
    look = Look(0, 2, torch.tensor([[0]]), torch.tensor([[0.0]]))
    with pytest.raises(NotImplementedError, match="Strategy defines neither `step` nor `start`"):
        Strategy().step(look)
    assert start(Strategy(), MIXTURE, 1).events == frozenset()


# What settings cost.


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (FKSteering(schedule=(3, 5)), [3, 5]),
        (FKSteering(schedule=()), []),
        (FKSteering(schedule=(3,), resampling=Resampling(ess_threshold=0.0)), []),
        (FKSteering(schedule=Schedule((3, 4), (2, 2)), resampling=Resampling(ess_threshold=0.0)), [3]),
        (FKSteering(schedule=Schedule((3, 5), (2, 1)), resampling="top-k"), []),
        (FKSteering(schedule=Schedule((3, 5), (2, 4)), resampling="top-k"), [5]),
        (FKSteering(1, schedule=(3,)), []),
        (FKSteering(4, schedule=Schedule((3,), (1,))), []),
        (FKSteering(schedule=(3, 5), resampling=Resampling(after_noise=True)), [4, 6]),
        (Lookahead(schedule=(3, 5)), [3, 5]),
        (Evolution(), []),
        (DepthFirst(), []),
        (Metropolis(), []),
        (FollowTheBest(every=4), [4, 8]),
    ],
)
def test_when_copies_may_be_made(settings, expected):
    assert settings.copying(10) == expected


def test_what_a_reward_must_have():
    FKSteering().check(RewardFacts())
    with pytest.raises(ValueError, match="Reward 'mine' has no `default_lmbda`"):
        FKSteering.preset("fk").check(RewardFacts("mine"))
    FKSteering.preset("fk").check(RewardFacts("mine", default_lmbda=2.0))
    FKSteering.preset("fk", lmbda=2.0).check(RewardFacts("mine"))
    with pytest.raises(ValueError, match="`target_reward` needs a reward with a scale of its own, but 'mine'"):
        FKSteering(stop=1.0).check(RewardFacts("mine", relative=True))

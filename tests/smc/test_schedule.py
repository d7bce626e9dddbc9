from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fk_steer.smc import Schedule, step_of


def test_fractions_and_indices():
    assert Schedule(at=(0.21, 0.41, 0.61, 0.81)).events(100, 4) == {20: 4, 40: 4, 60: 4, 80: 4}
    assert Schedule(at=(3, 0.5, 7)).events(10, 4) == {3: 4, 4: 4, 7: 4}
    assert Schedule(at=(0.0,)).events(5, 2) == {0: 2}


def test_population_sizes():
    assert Schedule(at=(0.25, 0.5), alive=(0.5, 0.25)).events(64, 8) == {15: 4, 31: 2}
    assert Schedule(at=(0.25, 0.5), alive=(6, 0.01)).events(8, 8) == {1: 6, 3: 1}


def test_short_loops():
    """Entries that fall together leave the last of them; the last step is left to the final image."""
    assert Schedule(at=(0.25, 0.5), alive=(4, 2)).events(2, 8) == {0: 2}
    assert Schedule(at=(0.25, 0.3), alive=(4, 2)).events(4, 8) == {0: 2}
    assert Schedule(at=(0.2, 0.9)).events(1, 2) == {}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(at=(1.0,)), "but not 1.0"),
        (dict(at=(-0.1,)), "from 0.0"),
        (dict(at=(-3,)), "at least 0"),
        (dict(at=(0.5, 0.25)), "ascending"),
        (dict(at=(0.5,), alive=(1, 2)), "one entry of `alive`"),
        (dict(at=(0.5,), alive=(0,)), "at least 1"),
        (dict(at=(0.5,), alive=(1.5,)), "fractions in"),
        (dict(at=(0.5,), alive=(math.nan,)), "fractions in"),
        (dict(at=(math.nan,)), "but not 1.0"),
        (dict(at=(True,)), "`at` to hold numbers"),
        (dict(at=("0.5",)), "`at` to hold numbers"),
        (dict(at="0.5"), "`at` to be a sequence of numbers, but got '0.5'"),
        (dict(at=0.5), "`at` to be a sequence of numbers, but got 0.5"),
        (dict(at=(0.5,), alive=2), "`alive` to be a sequence"),
    ],
)
def test_bad_schedules(arguments, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**arguments)


def test_outside_the_loop():
    with pytest.raises(ValueError, match="step 30, outside the loop of 25 steps"):
        Schedule(at=(10, 30)).events(25, 4)
    with pytest.raises(ValueError, match="keeps 9 particles alive, but there are only 8"):
        Schedule(at=(0.5,), alive=(9,)).events(25, 8)
    with pytest.raises(ValueError, match="ascending order"):
        Schedule(at=(10, 0.1)).events(25, 4)


@pytest.mark.parametrize("library", [np.array, torch.tensor])
def test_numbers_of_other_libraries(library):
    schedule = Schedule(at=library([0.25, 0.5]), alive=library([4, 2]))
    assert schedule == Schedule(at=(0.25, 0.5), alive=(4, 2))
    assert {type(entry) for entry in schedule.at} == {float} and {type(entry) for entry in schedule.alive} == {int}
    assert Schedule(at=[library(0.25), library(6)]).at == (0.25, 6)


def test_single_precision_shares_are_those_that_are_meant():
    """The nearest to 0.7 lies below it, which is a step less of ten."""
    every_tenth = Schedule(at=torch.linspace(0.1, 0.9, 9))
    assert every_tenth.at == tuple(step / 10 for step in range(1, 10))
    assert list(every_tenth.events(10, 1)) == list(range(9))


def test_steps_of_shares():
    assert [step_of(share, 10) for share in (0.0, 0.1, 0.19, 0.3, 0.6, 1.0)] == [0, 0, 0, 2, 5, 9]
    assert step_of(7, 10) == 7

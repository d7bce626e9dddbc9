from __future__ import annotations

import pytest

from fk_steer.smc import Geometric, Rising, Schedule, TargetESS


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


def test_noise_window():
    schedule = Schedule(noise=(0.25, 0.5))
    assert [step for step in range(20) if schedule.injects_noise(step, 20)] == [5, 6, 7, 8, 9]
    assert all(Schedule().injects_noise(step, 7) for step in range(7))
    assert not any(Schedule(noise=(0.0, 0.0)).injects_noise(step, 7) for step in range(7))


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
        (dict(noise=(0.5, 0.2)), "start <= stop"),
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


def test_temperings():
    assert Rising(end=2.0).scale(0.5) == 1.0
    assert Geometric().scale(0.0) == 0.0 and Geometric().scale(1.0) == 1.0
    assert Geometric().scale(0.5) == pytest.approx(1.008**50 - 1)
    for bad in (lambda: Rising(end=0.0), lambda: Geometric(gamma=-1.0), lambda: TargetESS(1.0)):
        with pytest.raises(ValueError, match="Expected"):
            bad()

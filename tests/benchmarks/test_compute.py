from __future__ import annotations

import math

import pytest

from benchmarks.compute.run import difference_columns, with_seconds_of
from fk_steer.evaluation.world import Record
from fk_steer.shapes.captions import TASKS


def records(rewards: list[float], correct: bool = True) -> list[Record]:
    """One record per task and reward."""
    return [
        Record(
            index=10 * task + number, tag=tag, prompt="", seed=0, correct=correct, share_correct=1.0, reward=reward,
            mean_reward=reward, held_out=2 * reward, oracle=0.0, nfe=50.0, reward_calls=1.0, seconds=1.0,
        )
        for task, tag in enumerate(TASKS)
        for number, reward in enumerate(rewards)
    ]  # fmt: skip


def test_differences_to_each_baseline():
    runs = {
        "adaptive@4": records([3.0, 5.0]),
        "bfs@4": records([2.0, 2.0], correct=False),
        "best-of-n@4": records([1.0, 1.0]),
        "best-of-n@8": records([3.0, 3.0]),
    }
    columns = difference_columns(runs)
    # 1 and 3 in turn, twice for each of six tasks: a variance of 12 / 11.
    error = math.sqrt(12 / 11 / 12)
    assert columns["bfs@4"]["reward - adaptive"] == pytest.approx((-2.0, error))
    assert columns["bfs@4"]["held out - adaptive"] == pytest.approx((-4.0, 2 * error))
    assert columns["bfs@4"]["overall - adaptive"] == (-100.0, 0.0)
    assert columns["adaptive@4"]["reward - best-of-n"] == pytest.approx((3.0, error))
    assert columns["adaptive@4"]["reward - best-of-n at twice the budget"] == pytest.approx((1.0, error))
    assert not any("fk-paper" in name for row in columns.values() for name in row)
    assert columns["best-of-n@8"] == {}
    assert {name.split(" - ")[1] for name in columns["best-of-n@4"]} == {"adaptive", "best-of-n at twice the budget"}


def test_differences_over_budgets():
    runs = {
        "adaptive@1": records([0.0, 0.0]),
        "bfs@1": records([9.0, 9.0]),
        "adaptive@2": records([3.0, 5.0]),
        "bfs@2": records([2.0, 2.0]),
        "adaptive@8": records([4.0, 8.0]),
        "bfs@8": records([5.0, 5.0]),
        "psp@8": records([5.0, 5.0]),
    }
    columns = difference_columns(runs)
    # Of each prompt the mean over budgets: 0 and -3 in turn. One image leaves nothing to choose.
    error = math.sqrt(1.5**2 * 12 / 11 / 12)
    assert columns["bfs, all budgets"]["reward - adaptive"] == pytest.approx((-1.5, error))
    assert not {"psp, all budgets", "adaptive, all budgets"} & columns.keys()


def test_seconds_of_other_runs():
    rows = {"bfs@4": {"reward": (1.0, 0.1), "seconds": (9.0, None)}}
    timed = {"bfs@4": {"reward": [2.0, 0.2], "seconds": [3.0, None]}, "bfs@8": {"seconds": [4.0, None]}}
    assert with_seconds_of(rows, timed) == {"bfs@4": {"reward": (1.0, 0.1), "seconds": (3.0, None)}}
    with pytest.raises(ValueError, match="seconds of bfs@8, but they were not timed"):
        with_seconds_of({"bfs@8": {}}, {})

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from typer.testing import CliRunner

from benchmarks.compute import real
from benchmarks.compute.run import against, best_of, fits, plot, strategy_of
from fk_steer.evaluation.world import Record, markdown, summarize
from fk_steer.search import FKSteering, Refine
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


def test_runs_by_name():
    fixed, open_to_the_budget = strategy_of("psp@200/10/dpmsolver++"), strategy_of("refine@400")
    assert fixed == FKSteering.preset("psp", steps=10, sampler="dpmsolver++", calls=100)
    assert open_to_the_budget == Refine(calls=200)
    # A particle takes 14 + 7 rows.
    assert strategy_of("finish@200/14/ddim/.5").resolved(14).num_particles == 200 // 21
    within = fixed.resolved(10)
    assert within.cost(10) <= 100 < within.replace(num_particles=within.num_particles + 1).cost(10)


@pytest.mark.parametrize(
    "name", ["psp", "psp@", "psp@ten", "psp@200/10", "psp@200/ten/ddim", "psp@200/10/ddim/half", "psp@200/.5"]
)
def test_what_is_no_run(name):
    with pytest.raises(ValueError, match="PRESET@ROWS"):
        strategy_of(name)


@pytest.mark.parametrize(("name", "enough"), [("adaptive@50/25/ddim", True), ("adaptive@48/25/ddim", False)])
def test_a_budget_is_enough_for_one_particle(name, enough):
    assert fits(name) is enough


def test_what_the_exact_detector_would_choose():
    """A record counts where any of its particles is correct; tasks count equally."""
    found = records([0.1, 0.2], correct=False)
    shares = [0.0, 0.25] * (len(TASKS) - 1) + [0.5, 1.0]
    row = summarize([dataclasses.replace(one, share_correct=share) for one, share in zip(found, shares)])
    assert row["any particle"][0] == pytest.approx((50.0 * (len(TASKS) - 1) + 100.0) / len(TASKS))
    assert row["overall"][0] == 0.0


def test_each_method_is_taken_at_its_best():
    guide = {
        "bfs@200/10/ddim": 0.5,
        "bfs@200/25/ddim": 0.7,
        "bfs@400/10/ddim": 0.8,
        "svdd@200/10/ddim": 0.9,
        "bfs@400/25/ddim": 0.8,
    }
    chosen = best_of({run: {"reward": (value, 0.1)} for run, value in guide.items()})
    assert chosen == {
        "bfs": {"200": "bfs@200/25/ddim", "400": "bfs@400/10/ddim"},
        "svdd": {"200": "svdd@200/10/ddim"},
    }


def test_paired_gains():
    runs = {
        "refine@200": records([3.0, 5.0]),
        "bfs@200/10/ddim": records([2.0, 2.0], correct=False),
        "adaptive@200/25/ddim": records([1.0, 1.0]),
    }
    gains = against(runs, ["refine@200"])
    # 1 and 3 in turn, twice for each of six tasks: a variance of 12 / 11.
    error = math.sqrt(12 / 11 / 12)
    assert list(gains) == ["refine@200 less bfs@200/10/ddim", "refine@200 less adaptive@200/25/ddim"]
    assert gains["refine@200 less bfs@200/10/ddim"]["reward"] == pytest.approx((2.0, error))
    assert gains["refine@200 less bfs@200/10/ddim"]["held out"] == pytest.approx((4.0, 2 * error))
    assert gains["refine@200 less bfs@200/10/ddim"]["overall"] == (100.0, 0.0)
    assert gains["refine@200 less adaptive@200/25/ddim"]["overall"] == (0.0, 0.0)


def test_lines_of_the_plot():
    """One per method over its budgets; another run at the same budget is not on it."""
    row = {"reward": (0.5, 0.1), "overall": (50.0, None)}
    runs = ["finish@200", "bfs@200/7/ddim", "finish@400", "bfs@200/25/ddim", "bfs@400/7/ddim"]
    axes = plot({run: {**row, "reward": (number / 10, 0.1)} for number, run in enumerate(runs)}).axes
    found = {line.get_label(): line.lines[0].get_xydata().tolist() for line in axes[0].containers}
    assert {name: [[x, round(y, 3)] for x, y in points] for name, points in found.items()} == {
        "finish": [[200, 0.0], [400, 0.2]],
        "bfs": [[200, 0.1], [400, 0.4]],
        "bfs, 25 ddim": [[200, 0.3]],
    }
    assert [[text.get_text() for text in axis.get_xticklabels()] for axis in axes] == [["200", "400"]] * 2


def test_steps_against_particles_of_any_model(tmp_path):
    """The command for real checkpoints, on the bundled model."""
    options = [
        *("--out", str(tmp_path), "--model", "shapes", "--reward", "clip-score", "--judge", "image-reward"),
        *("--prompts", "shapes", "--limit", "2", "--rows", "20", "--device", "cpu"),
        *("--preset", "best-of-n", "--preset", "refine", "--steps", "3", "--steps", "25", "--sampler", "dpmsolver++"),
    ]
    for _ in range(2):
        result = CliRunner().invoke(real.app, options)
        assert result.exit_code == 0, result.output
        assert "20 rows are too few for 25 steps" in result.output
    table = json.loads((tmp_path / "table.json").read_text())
    assert list(table) == ["best-of-n@20/3/dpmsolver++", "refine@20/3/dpmsolver++"]
    for row in table.values():
        assert 6 <= row["nfe"][0] <= 20 and {"guide", "image-reward", "guide - first"} <= row.keys()
    assert len(list(tmp_path.glob("*/images/*.png"))) == 4
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/records/*.json")}
    assert written and CliRunner().invoke(real.app, options).exit_code == 0
    assert written == {path: path.stat().st_mtime_ns for path in written}, "nothing is made twice"


def test_tables_keep_the_names_of_votes_whole():
    lines = [["run", "reward"], ["a|b|c", "1.0"]]
    assert markdown(lines).splitlines()[-1] == r"| a\|b\|c | 1.0 |"

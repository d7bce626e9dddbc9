"""Parity with the FKD class of the reference implementation (Fk-Diffusion-Steering at 9413005, recorded in golden/).

Where it is right we agree with its weights, effective sample sizes, draws and running statistics; where it saturates,
underflows or drops weights, the tests say what it does and what is right.
"""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from conftest import golden_root, shipped_golden

from fk_steer.smc import Current, Difference, Event, FeynmanKac, Max, Potential, Resampling, State, Sum


FOLDER = next(
    (folder for root in (golden_root(), shipped_golden()) for folder in sorted(root.glob("fkd*")) if folder.is_dir()),
    golden_root() / "fkd*",
)
RUNS: dict[str, dict[str, Any]] = (
    {run["name"]: run for run in json.loads((FOLDER / "expected.json").read_text())["runs"]} if FOLDER.exists() else {}
)
pytestmark = pytest.mark.skipif(not RUNS, reason=f"no recorded runs under {FOLDER}")

POTENTIAL: dict[str, type[Potential]] = {"diff": Difference, "max": Max, "add": Sum, "rt": Current}
NEVER = Resampling(ess_threshold=0.0)
EVERY_STEP = [
    "diff_every",
    "diff_every_lam20",
    "max_every",
    "max_every_lam20",
    "add_every",
    "rt_every",
    "rt_every_lam20",
    "max_every_rmin_-2",
    "max_every_negative_rewards_rmin0",
    "final_step_is_adaptive",
    "interval_end_beyond_T",
]


def replay(name: str, *, ess_threshold: float = 1.0) -> list[tuple[dict[str, Any], Event]]:
    """Our model on the recorded rewards, drawing from the recorded seed."""
    config = RUNS[name]["config"]
    options = {"floor": config["reward_min_value"]} if config["potential"] == "max" else {}
    potential = POTENTIAL[config["potential"]](exact_terminal=False, **options)
    model = FeynmanKac(config["lmbda"], potential, resampling=Resampling("multinomial", ess_threshold))
    generator = torch.Generator().manual_seed(config["torch_manual_seed"])
    state = model.start(1, config["num_particles"])
    replayed = []
    for step in active_steps(name):
        rewards = torch.tensor([step["rewards"]])
        if step["i"] == config["time_steps"] - 1:
            state, event = model.finish(state, rewards)
        else:
            state, event = model.step(state, rewards, step["i"] / config["time_steps"], generator=generator)
            compare_state(step, state)
        replayed.append((step, event))
    return replayed


def active_steps(name: str) -> list[dict[str, Any]]:
    return [step for step in RUNS[name]["steps"] if step.get("active")]


def compare_state(step: dict[str, Any], state: State) -> None:
    step["statistic_agrees"] = torch.allclose(
        state.statistic[0], torch.tensor(step["population_rs_after"]).double(), rtol=1e-5, atol=1e-6
    )
    products = torch.tensor([float(value) for value in step["product_of_potentials_after"]]).double()
    step["path_agrees"] = torch.allclose(state.path[0], products.log(), rtol=1e-5, atol=1e-5)


def recorded_weights(step: dict[str, Any]) -> torch.Tensor:
    w = torch.tensor(step["w"], dtype=torch.float64)
    return w / w.sum()


@pytest.mark.parametrize("name", EVERY_STEP)
def test_agrees_where_the_reference_does_not_saturate(name):
    replayed = replay(name)
    assert len(replayed) >= 4
    for step, event in replayed:
        assert torch.allclose(event.weights.normalized[0], recorded_weights(step), rtol=2e-5, atol=1e-9)
        assert event.weights.ess.item() == pytest.approx(step["ess"], rel=2e-5)
        if "statistic_agrees" in step:
            assert event.ancestors[0].tolist() == step["indices"]
            assert step["statistic_agrees"] and step["path_agrees"]


@pytest.mark.parametrize("name", ["lam60_ladder_rt_every", "lam60_ladder_diff_every", "lam60_ladder_max_every"])
def test_reference_ties_rewards_at_lambda_60(name):
    step, event = replay(name)[0]
    rewards = torch.tensor(step["rewards"])
    assert rewards.max() == pytest.approx(0.8)
    assert sum(w == 1e10 for w in step["w"]) > 1, "the reference gives several rewards the same, clamped weight"
    assert torch.allclose(event.weights.log_normalized[0].diff(), 60 * rewards.double().diff(), rtol=1e-4)


def test_reference_ties_negative_rewards_under_max():
    step = active_steps("max_every_negative_rewards_rmin0")[0]
    rewards = torch.tensor([step["rewards"]])
    assert (rewards < 0).all() and len(set(step["w"])) == 1
    model = FeynmanKac(5.0, Max(), resampling=NEVER)
    _, event = model.step(model.start(*rewards.shape), rewards, 0.5)
    assert torch.allclose(event.weights.normalized, (5.0 * rewards).double().softmax(1))


def test_reference_drops_weights_in_adaptive_mode():
    """None of its increments alone triggers a resampling, so it never acts on their sum; carried weights do."""
    name = "adaptive_drops_weights_diff"
    config = RUNS[name]["config"]
    steps = active_steps(name)
    assert not any(step["resampled"] for step in steps)
    carried = replay(name, ess_threshold=0.0)
    for step, event in carried:
        rewards = torch.tensor(step["rewards"]).double()
        assert torch.allclose(event.weights.normalized[0], (config["lmbda"] * rewards).softmax(0), rtol=1e-6)
    assert carried[-1][1].weights.ess.item() < 0.5 * config["num_particles"] < steps[-1]["ess"]


@pytest.mark.parametrize("name", ["lam60_negative_diff_every", "lam60_negative_rt_every", "lam60_negative_max_every"])
def test_reference_underflows(name):
    """All its weights are zero and it stops with an error; the right weights are finite, ordered like the rewards."""
    assert "invalid multinomial distribution" in RUNS[name]["error"]
    crashed = RUNS[name]["steps"][-1]
    rewards = torch.tensor([crashed["rewards"]])
    model = FeynmanKac(60.0, resampling=NEVER)
    _, event = model.step(model.start(*rewards.shape), rewards, 0.5)
    assert event.weights.log_normalized.isfinite().all()
    assert event.weights.log.argmax() == rewards.argmax()
    assert math.isclose(event.weights.normalized.sum().item(), 1.0)

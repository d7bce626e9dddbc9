"""Search rules on stored rewards."""

from __future__ import annotations

import itertools
import json
from functools import partial

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.offline import rules as offline_rules
from benchmarks.offline import stored as offline_stored
from benchmarks.offline import tables
from benchmarks.offline.rules import best_of, improvement, prune, screen, stop
from benchmarks.offline.run import app
from benchmarks.offline.stored import FULL, Stored
from fk_steer.bundled import bundled_options
from fk_steer.diffusion import steer
from fk_steer.loading import load_guide, load_pipeline
from fk_steer.search import FKSteering, Noise, Screen, Strategy
from fk_steer.shapes import GUIDANCE_SCALE
from fk_steer.shapes.captions import TASKS, tuning_prompts
from fk_steer.smc import Schedule


FEW = 1


def stored(
    full: list[list[float]], few: list[list[float]], predictions: list[list[list[float]]] | None = None
) -> Stored:
    """A loop of four steps and one of two; the other measures are multiples of the guide's reward.

    Args:
        full, few: (P, S).
        predictions: T of (P, S); None for the final rewards at every step.
    """
    rewards = torch.tensor([full, few], dtype=torch.float64)
    steps = torch.tensor(predictions or [full] * 4, dtype=torch.float64).permute(1, 2, 0)
    finals = {"reward": rewards, "held out": 2 * rewards, "oracle": 3 * rewards, "correct": (rewards > 0.5).double()}
    tags = [TASKS[p % 6] for p in range(rewards.shape[1])]
    return Stored(tags, steps, finals, steps=[4, 2], rows=[8, 4])


def by_chance(P: int, S: int, T: int = 4) -> Stored:
    generator = torch.Generator().manual_seed(0)
    predictions = torch.rand(T, P, S, generator=generator, dtype=torch.float64).tolist()
    full, few = torch.rand(2, P, S, generator=generator, dtype=torch.float64).tolist()
    return stored(full, few, predictions)


def guide_of_shapes():
    return load_guide("clip-score", "cpu", **bundled_options("shapes", "clip-score"))


def in_order(tensor: Stored) -> torch.Tensor:
    """The pools once, as they are."""
    P, S = tensor.predictions.shape[:2]
    return torch.arange(S).expand(P, 1, S)


def taken(chosen: offline_rules.Chosen) -> list[tuple[int, int, float]]:
    """(loop, seed, rows) of each prompt of pools given once."""
    return list(zip(chosen.loop[:, 0].tolist(), chosen.seed[:, 0].tolist(), chosen.rows[:, 0].tolist()))


TWO = stored(
    full=[[0.1, 0.8, 0.8, 0.9], [0.7, 0.2, 0.3, 0.4]],
    few=[[0.6, 0.2, 0.3, 0.1], [0.1, 0.3, 0.5, 0.4]],
    predictions=[
        [[0.3, 0.2, 0.4, 0.1], [0.1, 0.2, 0.3, 0.4]],
        [[0.1, 0.4, 0.3, 0.2], [0.4, 0.3, 0.2, 0.1]],
        [[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]],
        [[0.1, 0.8, 0.8, 0.9], [0.7, 0.2, 0.3, 0.4]],
    ],
)


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        (partial(best_of, number=4), [(FULL, 3, 32.0), (FULL, 0, 32.0)]),
        (partial(best_of, number=3), [(FULL, 1, 24.0), (FULL, 0, 24.0)]),  # of equal ones the first
        (partial(best_of, number=1, loop=FEW), [(FEW, 0, 4.0), (FEW, 0, 4.0)]),
        (partial(best_of, number=4, loop=FEW), [(FEW, 0, 16.0), (FEW, 2, 16.0)]),
        # After one of four steps two of four go on, of the first prompt 2 and 0, of the second 3 and 2.
        (
            partial(prune, number=4, schedule=Schedule(at=(0.25,), alive=(2,))),
            [(FULL, 2, (4 + 2 * 3) * 2.0), (FULL, 3, (4 + 2 * 3) * 2.0)],
        ),
        # And after two of them the better: 2 and 2.
        (
            partial(prune, number=4, schedule=Schedule(at=(0.25, 0.5), alive=(2, 1))),
            [(FULL, 2, (4 + 2 + 2) * 2.0), (FULL, 2, (4 + 2 + 2) * 2.0)],
        ),
        (
            partial(prune, number=3, schedule=Schedule(at=(0.5,), alive=(1,))),
            [(FULL, 1, (3 * 2 + 2) * 2.0), (FULL, 0, (3 * 2 + 2) * 2.0)],
        ),
        # Seeds 0 and 2 of the first, 2 and 3 of the second.
        (partial(screen, number=4, loop=FEW, keep=2), [(FULL, 2, 32.0), (FEW, 2, 32.0)]),
        (partial(screen, number=4, loop=FEW, keep=1), [(FEW, 0, 24.0), (FEW, 2, 24.0)]),
        (partial(screen, number=2, loop=FEW, keep=0), [(FEW, 0, 8.0), (FEW, 1, 8.0)]),
        (partial(stop, number=4, target=0.7), [(FULL, 1, 16.0), (FULL, 0, 8.0)]),
        (partial(stop, number=3, target=0.85), [(FULL, 1, 24.0), (FULL, 0, 24.0)]),
        (partial(stop, number=4, target=0.45, loop=FEW), [(FEW, 0, 4.0), (FEW, 2, 12.0)]),
    ],
)
def test_what_rules_choose_and_what_it_costs(rule, wanted):
    assert taken(rule(TWO, in_order(TWO))) == wanted


def test_of_equal_images_the_full_one():
    equal = stored(full=[[0.5, 0.1]], few=[[0.5, 0.2]])
    assert taken(screen(equal, in_order(equal), number=2, loop=FEW, keep=1)) == [(FULL, 0, 16.0)]


def test_rules_take_seeds_in_the_order_given():
    pools = torch.tensor([[[3, 2, 1, 0], [2, 0, 1, 3]], [[1, 2, 3, 0], [0, 1, 2, 3]]])
    chosen = best_of(TWO, pools, number=2)
    assert chosen.seed.tolist() == [[3, 2], [2, 0]]
    assert stop(TWO, pools, number=4, target=0.5).rows.tolist() == [[8.0, 8.0], [32.0, 8.0]]


def test_improvement_goes_where_it_is_expected():
    """All images of the first two prompts are alike, those of the third are not."""
    full = [[0.5, 0.501, 0.499, 0.9, 0.9], [0.6, 0.601, 0.599, 0.9, 0.9], [0.3, 0.7, 0.5, 0.1, 0.8]]
    tensor = stored(full, few=full)
    pools = in_order(tensor)[:2]
    two = Stored(tensor.tags[1:], tensor.predictions[1:], {m: v[:, 1:] for m, v in tensor.finals.items()}, [4], [8])
    assert taken(improvement(two, pools, number=4, first=3)) == [(FULL, 1, 24.0), (FULL, 4, 40.0)]
    # Until its pool is empty: then another's.
    chosen = improvement(tensor, in_order(tensor), number=4, first=3)
    assert chosen.rows[2].item() == 40.0 and sorted(chosen.rows[:2, 0].tolist()) == [24.0, 32.0]
    everything = improvement(tensor, in_order(tensor), number=5, first=3)
    assert taken(everything) == [(FULL, 3, 40.0), (FULL, 3, 40.0), (FULL, 4, 40.0)]


def test_improvement_spends_its_budget():
    tensor = by_chance(7, 6)
    chosen = improvement(tensor, offline_rules.pools_of(tensor, 5, seed=0), number=3, first=1)
    assert chosen.rows.sum(0).tolist() == [7 * 3 * 8.0] * 5
    assert chosen.rows.min() >= 8.0 and len(chosen.rows.unique()) > 2


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_all_orders_are_all_subsets(number):
    """Best-of-n over all orders of a pool is its mean over all subsets; sampled orders come close."""
    tensor = by_chance(3, 4)
    everyone = torch.tensor(list(itertools.permutations(range(4)))).expand(3, -1, -1)
    wanted = {name: [] for name in offline_stored.MEASURES}
    for p in range(3):
        rewards = tensor.rewards[FULL, p].tolist()
        best = [max(subset, key=rewards.__getitem__) for subset in itertools.combinations(range(4), number)]
        for name in offline_stored.MEASURES:
            wanted[name].append(sum(tensor.finals[name][FULL, p, seed].item() for seed in best) / len(best))
    found = tables.outcome(tensor, best_of(tensor, everyone, number))
    sampled = tables.outcome(tensor, best_of(tensor, offline_rules.pools_of(tensor, 4000, seed=1), number))
    for name in offline_stored.MEASURES:
        assert found[name].tolist() == pytest.approx(wanted[name])
        assert sampled[name].tolist() == pytest.approx(wanted[name], abs=0.05)
    assert found["rows"].tolist() == [8.0 * number] * 3


def test_orders_are_drawn_by_their_seed():
    tensor = by_chance(3, 5)
    pools = offline_rules.pools_of(tensor, 10, seed=3)
    assert torch.equal(pools.sort(dim=2).values, torch.arange(5).expand(3, 10, 5))
    assert torch.equal(pools, offline_rules.pools_of(tensor, 10, seed=3))
    assert not torch.equal(pools, offline_rules.pools_of(tensor, 10, seed=4))


def test_table_of_rules():
    """Means over prompts, and differences to best-of-n, paired by prompt."""
    tensor = stored(full=[[0.2, 0.6]] * 3 + [[0.4, 0.8]] * 3, few=[[0.9, 0.1]] * 3 + [[0.2, 0.1]] * 3)
    rules = {"two": partial(best_of, number=2), "few": partial(best_of, number=2, loop=FEW)}
    rows = tables.compare(tensor, rules, in_order(tensor))
    assert rows["two"]["reward"] == pytest.approx((0.7, 0.1 / 5**0.5))
    assert rows["two"]["oracle"][0] == pytest.approx(2.1) and rows["two"]["overall"] == (100.0, None)
    assert rows["two"]["reward - best-of-2"] == (0.0, 0.0)
    assert rows["few"]["reward"][0] == pytest.approx(0.55)
    assert rows["few"]["reward - best-of-2"] == pytest.approx((-0.15, 0.45 / 5**0.5))
    assert rows["few"]["overall - best-of-2"][0] == pytest.approx(-50.0)
    assert (rows["two"]["rows"][0], rows["few"]["rows"][0]) == (16.0, 8.0)


def test_what_predicts_the_full_image():
    full = [[0.1, 0.2, 0.3, 0.4, 0.5]]
    backwards, one_off = [[0.5, 0.4, 0.3, 0.2, 0.1]], [[0.1, 0.2, 0.3, 0.5, 0.4]]
    rows = tables.predictors(stored(full, one_off, [backwards, [[0.0] * 5], one_off, full]))
    assert {name: row["rows"][0] for name, row in rows.items()} == {
        "x0 after step 1 of 4": 2.0,
        "x0 after step 2 of 4": 4.0,
        "x0 after step 3 of 4": 6.0,
        "x0 after step 4 of 4": 8.0,
        "image in 2 steps": 4.0,
    }
    correlations = [row["rank correlation"][0] for row in rows.values()]
    assert correlations == pytest.approx([-1.0, 0.0, 0.9, 1.0, 0.9])
    # One of five is their top quarter, and of a tie all.
    assert [row["best in top quarter"][0] for row in rows.values()] == [0.0, 100.0, 0.0, 100.0, 0.0]


@pytest.mark.parametrize("steps", [6, 10, 25])
def test_costs_are_those_of_the_searches(steps):
    tensor = by_chance(2, 12, steps)
    tensor = Stored(tensor.tags, tensor.predictions, tensor.finals, steps=[steps, 4], rows=[2 * steps, 8])
    schedule = Schedule(at=(0.25, 0.5), alive=(4, 2))
    pruned = prune(tensor, in_order(tensor), number=8, schedule=schedule)
    assert pruned.rows.unique().tolist() == [2.0 * FKSteering.preset("psp").cost(steps)]
    screened = screen(tensor, in_order(tensor), number=12, loop=FEW, keep=2)
    assert screened.rows.unique().tolist() == [2.0 * Screen().cost(steps)]


def test_rules_need_their_seeds():
    tensor = by_chance(6, 16, 25)
    tensor = Stored(tensor.tags, tensor.predictions, tensor.finals, steps=[25, 6], rows=[50, 12])
    many = offline_rules.rules_of(tensor)
    assert {
        "best-of-16",
        "best-of-16 in 6 steps",
        "prune 8-4-2 at 25, 50%",
        "screen 8 in 6 steps, keep 2",
        "expected improvement, 4 on average",
    } <= many.keys()
    pools = offline_rules.pools_of(tensor, 2, seed=0)
    budget = offline_rules.REFERENCE * 50
    for name, rule in many.items():
        chosen = rule(tensor, pools)
        assert chosen.seed.shape == chosen.loop.shape == chosen.rows.shape == (6, 2)
        if name.startswith(("prune", "screen", "expected")):
            assert 0.85 * budget <= chosen.rows.mean() <= budget, name
    assert not any(name.startswith(("prune", "expected")) for name in offline_rules.rules_of(by_chance(6, 4)))


# From beginning to end.

STEPS, SEEDS, FEW_STEPS = 6, 4, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store of a prompt for each task."""
    out = tmp_path_factory.mktemp("offline")
    result = CliRunner().invoke(app, ["store", *options(out)])
    assert result.exit_code == 0, result.output
    return out


def options(out, **others) -> list[str]:
    given = {
        "out": out, "per-task": 1, "seeds": SEEDS, "steps": STEPS, "few-steps": FEW_STEPS, "batch-size": 4, **others
    }  # fmt: skip
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]


def test_the_store(folder):
    tensor = offline_stored.read_stored(folder / "tuning")
    assert tensor.tags == list(TASKS)
    assert tensor.predictions.shape == (6, SEEDS, STEPS)
    assert list(tensor.finals) == list(offline_stored.MEASURES)
    assert {values.shape for values in tensor.finals.values()} == {(2, 6, SEEDS)}
    assert tensor.steps == [STEPS, FEW_STEPS] and tensor.rows == [2 * STEPS, 2 * FEW_STEPS]
    # The last x0 prediction is the image, but for the little noise that this scheduler leaves.
    torch.testing.assert_close(tensor.predictions[:, :, -1], tensor.rewards[FULL], atol=0.01, rtol=0)
    assert (tensor.predictions[:, :, 0] - tensor.rewards[FULL]).abs().mean() > 0.05
    assert set(tensor.finals["correct"].unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize(
    ("strategy", "rule"),
    [
        (FKSteering(3, schedule=Schedule(), noise=Noise(0.0)), partial(best_of, number=3)),
        (
            FKSteering(
                4,
                schedule=Schedule(at=(0.34, 0.67), alive=(3, 2)),
                resampling="top-k",
                potential="current",
                noise=Noise(0.0),
            ),
            partial(prune, number=4, schedule=Schedule(at=(0.34, 0.67), alive=(3, 2))),
        ),
        (
            Screen(
                num_particles=4, inner=FKSteering(schedule=Schedule(), noise=Noise(0.0)), keep=2, few_steps=FEW_STEPS
            ),
            partial(screen, number=4, loop=FEW, keep=2),
        ),
    ],
    ids=["best-of-n", "prune", "screen"],
)
def test_what_is_simulated_is_what_is_run(folder, strategy: Strategy, rule):
    """The same images at the same cost as the search itself, from the same noise."""
    tensor = offline_stored.read_stored(folder / "tuning")
    chosen = rule(tensor, in_order(tensor))
    simulated = tables.outcome(tensor, chosen)
    pipe = load_pipeline("shapes")
    pipe.set_progress_bar_config(disable=True)
    images = steer(
        pipe,
        guide_of_shapes(),
        strategy.replace(steps=STEPS, sampler="ddim"),
    )(
        [line["prompt"] for line in tuning_prompts(1)],
        generator=[torch.Generator().manual_seed(number) for number in range(6)],
        guidance_scale=GUIDANCE_SCALE,
        output_type="pt",
    )
    assert images.rewards[:, 0].tolist() == pytest.approx(simulated["reward"].tolist(), abs=1e-4)
    assert images.trace.nfe == simulated["rows"].sum()
    judge = load_guide("clip-score", "cpu", path="shapes-held-out")
    opinions = judge(images.images, [line["prompt"] for line in tuning_prompts(1)])
    assert torch.as_tensor(opinions).tolist() == pytest.approx(simulated["held out"].tolist(), abs=1e-4)


def test_tables(folder):
    result = CliRunner().invoke(app, ["simulate", "--out", str(folder), "--subsets", "7"])
    assert result.exit_code == 0, result.output
    rules = json.loads((folder / "tuning-rules.json").read_text())
    assert rules["best-of-4"]["rows"][0] == 4 * 2 * STEPS
    assert rules["best-of-4"]["reward - best-of-4"] == [0.0, 0.0]
    assert rules["best-of-1"]["reward - best-of-4"][0] < 0
    assert rules["best-of-4"]["reward"][0] >= max(rules[f"best-of-{n}"]["reward"][0] for n in (1, 2))
    found = json.loads((folder / "tuning-predictors.json").read_text())
    assert found[f"x0 after step {STEPS} of {STEPS}"]["rank correlation"][0] == pytest.approx(1.0)
    assert (folder / "tuning-rules.md").exists() and (folder / "tuning-predictors.md").exists()


def test_nothing_is_made_twice(folder, monkeypatch):
    paths = sorted((folder / "tuning" / "rewards").iterdir())
    assert [path.name for path in paths] == ["00000.pt", "00004.pt"]
    before = {path: path.stat().st_mtime_ns for path in paths}

    def fails(*args, **kwargs):
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(offline_stored, "load_pipeline", fails)
    assert CliRunner().invoke(app, ["store", *options(folder)]).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in paths} == before
    refused = CliRunner().invoke(app, ["store", *options(folder, seeds=5)])
    assert refused.exit_code == 1 and "seeds: 4 -> 5" in refused.output


def test_what_is_not_there_is_said(folder, tmp_path):
    def said(out) -> str:
        result = CliRunner().invoke(app, ["simulate", "--out", str(out)])
        assert result.exit_code == 1
        return " ".join(result.output.split())

    assert "Run `store` first" in said(tmp_path)
    copy = tmp_path / "tuning"
    (copy / "rewards").mkdir(parents=True)
    (copy / "settings.json").write_bytes((folder / "tuning" / "settings.json").read_bytes())
    (copy / "rewards" / "00000.pt").write_bytes((folder / "tuning" / "rewards" / "00000.pt").read_bytes())
    assert "1 of 2 files of rewards are missing" in said(tmp_path)
    (copy / "rewards" / "00004.pt").write_bytes(b"")
    assert "00004.pt' cannot be read. Delete it" in said(tmp_path)
    (copy / "rewards" / "00004.pt").write_bytes(b"no tensors")
    assert "00004.pt' cannot be read. Delete it" in said(tmp_path)


def test_loops_begin_with_the_same_noise(monkeypatch):
    """Or it is said."""
    pipe = load_pipeline("shapes")
    pipe.set_progress_bar_config(disable=True)
    own, calls = pipe.prepare_latents, itertools.count(1)
    monkeypatch.setattr(pipe, "prepare_latents", lambda *args, **kwargs: own(*args, **kwargs) * next(calls))
    guide = guide_of_shapes()
    with pytest.raises(ValueError, match="A loop of 1 steps begins with other noise than that of 2"):
        offline_stored.looked_at(pipe, guide, guide, ["a photo of a star"], [0], 2, 2, [1], GUIDANCE_SCALE)

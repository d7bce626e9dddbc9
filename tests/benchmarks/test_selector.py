"""Selectors on a stored tensor of rewards."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.selector import run as selector
from fk_steer.shapes.captions import TASKS, evaluation_prompts, is_held_out


def stored(P: int, N: int) -> dict[str, torch.Tensor]:
    """Rewards by chance; one finds the correct images."""
    generator = torch.Generator().manual_seed(0)
    names = [selector.GUIDE, "image-reward", *(f"llava-{name}" for name in selector.PERSPECTIVES)]
    found = {name: torch.rand(P, N, generator=generator, dtype=torch.float64) for name in names}
    for name in selector.PERSPECTIVES:
        odds = torch.randn(P, N, N, generator=generator, dtype=torch.float64)
        found[f"llava-{name}-gpm"] = odds - odds.mT
    found["oracle"] = torch.rand(P, N, generator=generator, dtype=torch.float64)
    found["correct"] = (found["oracle"] > 0.7).double()
    found["llava-alignment"] = found["oracle"].clone()
    found["held out"] = torch.rand(P, N, generator=generator, dtype=torch.float64)
    return found


def test_tuning_prompts_are_balanced_and_none_is_held_out():
    lines = selector.tuning_prompts(12)
    assert [line["tag"] for line in lines] == [task for task in TASKS for _ in range(12)]
    assert not any(is_held_out(line) for line in lines)
    assert lines == selector.tuning_prompts(12)
    singles = {line["prompt"] for line in evaluation_prompts() if line["tag"] == "single_object"}
    held_out = {line["prompt"] for line in evaluation_prompts()}
    assert {line["prompt"] for line in lines} & held_out <= singles, "of single objects there are only eight"
    assert len({line["prompt"] for line in lines if line["tag"] != "single_object"}) == 5 * 12


@pytest.mark.parametrize("n", [1, 3, 5])
def test_every_subset_of_the_pool_counts_once(n):
    """The guide's and the oracle's best-of-n, subset by subset."""
    lines, tensor = evaluation_prompts(2), stored(12, 5)
    rows = selector.compare(tensor, lines, n)
    for way, name in ((selector.GUIDE, selector.GUIDE), ("llava-alignment", "oracle"), ("oracle", "oracle")):
        shares = []
        for p in range(12):
            subsets = list(itertools.combinations(range(5), n))
            best = [max(subset, key=lambda i, p=p, name=name: tensor[name][p, i]) for subset in subsets]
            shares.append(100 * sum(tensor["correct"][p, i].item() for i in best) / len(subsets))
        assert rows[way]["overall"][0] == pytest.approx(sum(shares) / 12)
    assert rows["any"]["overall"][0] == pytest.approx(100 * tensor["correct"].mean().item())
    assert rows[selector.GUIDE]["gain"] == (0.0, 0.0)
    if n > 1:
        assert rows["oracle"]["of the way"][0] == pytest.approx(100.0)
        assert rows["llava-alignment"]["of the way"][0] == pytest.approx(100.0)
        gain = rows["oracle"]["overall"][0] - rows[selector.GUIDE]["overall"][0]
        assert rows["oracle"]["gain"][0] == pytest.approx(gain) and gain > 0
    assert list(rows) == sorted(rows, key=lambda way: -rows[way]["overall"][0])


def test_rewards_that_compare_are_those_of_the_subset():
    tensor = stored(2, 4)
    scores = selector.scores_of_subsets(tensor, 3)["llava-overall-gpm"]
    assert scores.shape == (2, 4, 3)
    odds = tensor["llava-overall-gpm"][1]
    # The second subset is images 0, 1 and 3.
    assert scores[1, 1, 2].item() == pytest.approx((odds[3, 0].sigmoid() + odds[3, 1].sigmoid()).item() / 2)


def test_the_study(tmp_path):
    """Rewards are stored once, and tables are made of what is stored."""
    arguments = ["--out", tmp_path, "--per-task", 1, "--seeds", 3, "--steps", 2, "--batch-size", 6, "--number", 2]
    for split in ("tuning", "held-out"):
        result = CliRunner().invoke(selector.app, [str(part) for part in [*arguments, "--split", split]])
        assert result.exit_code == 0, result.output
        rows = json.loads((tmp_path / f"{split}-2.json").read_text())
        assert rows["oracle"]["overall"][0] >= rows["any"]["overall"][0]
        assert rows["oracle"]["oracle"][0] == max(row["oracle"][0] for row in rows.values())
        assert rows["clip"]["reward"][0] == max(row["reward"][0] for row in rows.values())
    (path,) = (tmp_path / "tuning" / "rewards").iterdir()
    before = path.stat().st_mtime_ns
    assert CliRunner().invoke(selector.app, [str(part) for part in arguments]).exit_code == 0
    assert path.stat().st_mtime_ns == before
    refused = CliRunner().invoke(selector.app, [str(part) for part in [*arguments, "--seeds", 4]])
    assert refused.exit_code == 1 and "seeds" in refused.output

from __future__ import annotations

import dataclasses
import io
import json
import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fk_steer import FKSteering, Schedule, SteeredOutput, Trace, preset, steer
from fk_steer.files import write_atomically
from fk_steer.report.results import Picture, Result
from fk_steer.report.sheet import contact_sheet
from fk_steer.report.table import rows_of
from fk_steer.rewards import Ensemble
from fk_steer.testing import PROMPTS, SIZE, redness, sd


@pytest.fixture(scope="module")
def trace() -> Trace:
    settings = FKSteering(num_particles=4, lmbda=20.0, schedule=Schedule(at=(2, 4), alive=(3, 4)))
    return steer(sd(), redness, settings)(PROMPTS, num_inference_steps=6, **SIZE).trace


def test_records_every_event(trace):
    assert [event.step for event in trace.events] == [2, 4, 6]
    assert [event.final for event in trace.events] == [False, False, True]
    assert [len(event.rewards[0]) for event in trace.events] == [4, 3, 4]
    first, second, last = trace.events
    assert first.slots_before == [[0, 1, 2, 3]] * 2
    assert second.slots_before == first.slots
    assert last.slots_before == second.slots
    assert last.parents == last.slots == last.slots_before
    for before, after in zip(trace.events, trace.events[1:]):
        assert all(set(parents) <= set(alive) for parents, alive in zip(after.parents, after.slots_before))
        assert all(a <= b for a, b in zip(after.distinct_roots, before.distinct_roots))
        assert after.nfe > before.nfe
    for event in trace.events:
        assert all(1 <= ess <= len(rewards) + 1e-9 for ess, rewards in zip(event.ess, event.rewards))
        assert all(sum(map(math.exp, weights)) == pytest.approx(1) for weights in event.log_weights)
    assert trace.nfe == last.nfe
    assert trace.reward_calls == last.reward_calls == 2 * (4 + 3 + 4)
    assert trace.num_steps == 6
    assert trace.prompts == PROMPTS
    assert FKSteering.from_dict(trace.steering).num_particles == 4


def test_says_whether_rewards_compare_the_particles_of_a_prompt_alone(trace):
    both = Ensemble([redness, lambda images, prompts: images.mean((1, 2, 3))])
    settings = FKSteering(num_particles=2, lmbda=1.0)
    standing = steer(sd(), both, settings)(PROMPTS[:1], num_inference_steps=4, **SIZE).trace
    assert Trace.from_dict(standing.to_dict()).relative and not trace.relative


def test_json_round_trip(trace, tmp_path):
    assert Trace.from_dict(trace.to_dict()) == trace
    trace.save(tmp_path / "deep" / "trace.json")
    assert Trace.load(tmp_path / "deep" / "trace.json") == trace
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["trace.json"]


def test_one_population(trace, tmp_path):
    """As if the others had not been, but for the counts."""
    one = trace.of(1)
    assert one.prompts == PROMPTS[1:]
    for own, event in zip(one.events, trace.events):
        assert own.rewards == event.rewards[1:]
        assert own.parents == event.parents[1:]
        assert own.scores == {name: values[1:] for name, values in event.scores.items()}
        assert (own.nfe, own.step) == (event.nfe, event.step)
    assert one.log_normalizer == trace.log_normalizer[1:]
    assert Trace.from_dict(one.to_dict()) == one
    with_retry = dataclasses.replace(trace, retries=[([1], one), ([0, 1], trace)])
    assert with_retry.of(1).retries == [([0], one), ([0], one)]
    assert with_retry.of(0).retries == [([0], trace.of(0))]
    # It is drawn as it was in company.
    one.plot().savefig(tmp_path / "one.png")
    trace.plot(1).savefig(tmp_path / "together.png")
    assert Image.open(tmp_path / "one.png").tobytes() == Image.open(tmp_path / "together.png").tobytes()


def test_infinities_survive_standard_json():
    def reward(images, prompts):
        return torch.tensor([-torch.inf, 0.0])

    settings = FKSteering(num_particles=2, lmbda=1.0, resampling="top-k", schedule=Schedule(at=(1,), alive=(2,)))
    trace = steer(sd(), reward, settings)("nan", num_inference_steps=3, **SIZE).trace
    text = json.dumps(trace.to_dict(), allow_nan=False)
    loaded = Trace.from_dict(json.loads(text))
    assert loaded.events == trace.events
    assert loaded.events[-1].rewards == [[-math.inf, 0.0]]
    assert loaded.prompts == ["nan"]
    assert math.isnan(loaded.log_normalizer[0])


@pytest.mark.parametrize("population", [0, 1])
def test_plot(trace, population, tmp_path):
    figure = trace.plot(population)
    tree, ess, rewards = figure.axes[:3]
    assert PROMPTS[population] in tree.get_title()
    # A segment per particle scored: 4, 3 and 4.
    segments = [line for line in tree.get_lines() if line.get_marker() == "None"]
    assert len(segments) == 11
    wide = [line for line in segments if line.get_linewidth() > 2]
    assert len(wide) == 3
    best = max(trace.events[-1].rewards[population])
    assert rewards.get_lines()[-1].get_ydata()[-1] == pytest.approx(best)
    assert ess.get_lines()[0].get_ydata()[0] == pytest.approx(trace.events[0].ess[population] / 4)
    figure.savefig(tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").size[0] > 500


def test_plot_of_a_run_with_infinite_rewards():
    def reward(images, prompts):
        return torch.tensor([-torch.inf, 0.0, 0.1, torch.inf][: len(images)])

    steer(sd(), reward, FKSteering(lmbda=1.0))(PROMPTS[0], num_inference_steps=5, **SIZE).trace.plot()


@pytest.fixture(scope="module")
def greedy_run():
    return steer(sd(), redness, preset("finish", lmbda=5.0))(PROMPTS, num_inference_steps=10, **SIZE)


class TestSearchesWithoutWeights:
    """Where all follow the best there are no weights, and so no effective sample size."""

    def test_the_effective_sample_size_is_absent(self, greedy_run):
        greedy = [event for event in greedy_run.trace.events if math.isnan(event.lmbda[0])]
        weighed = [event for event in greedy_run.trace.events if event not in greedy]
        assert [len(greedy) > 2, len(weighed) > 1] == [True, True]
        assert all(math.isnan(ess) for event in greedy for ess in event.ess)
        assert all(1 <= ess <= 4 + 1e-9 for event in weighed for ess in event.ess)
        assert (
            Trace.from_dict(json.loads(json.dumps(greedy_run.trace.to_dict()))).to_dict() == greedy_run.trace.to_dict()
        )
        # The images returned are equal ones.
        torch.testing.assert_close(greedy_run.log_weights, torch.full((2, 4), math.log(1 / 4)))

    def test_the_plot_leaves_it_out(self, greedy_run):
        drawn = greedy_run.trace.plot().axes[1].get_lines()[0].get_ydata()
        events = greedy_run.trace.events
        assert [math.isnan(value) for value in drawn] == [math.isnan(event.ess[0]) for event in events]
        greedy_run.trace.plot().savefig(io.BytesIO())

    def test_best_of_n_and_truncation_have_weights(self):
        for name in ("best-of-n", "psp"):
            trace = steer(sd(), redness, preset(name, num_particles=4))(PROMPTS, num_inference_steps=8, **SIZE).trace
            assert not any(math.isnan(ess) for event in trace.events for ess in event.ess)


class TestReprs:
    def test_they_are_short(self):
        seen = []
        call = {"num_inference_steps": 8, "keep_predictions": True, "on_event": seen.append, **SIZE}
        output = steer(sd(), redness, preset("allocation", num_particles=3))(PROMPTS, **call)
        for value in (output, output.trace, output.trace.of(0), output.trace.events[0], output.trace.events, seen[0]):
            assert len(repr(value)) < 600, repr(value)[:80]
        best = ", ".join(f"{max(row):.4g}" for row in output.trace.rewards)
        assert repr(output.trace).startswith("Trace(2 populations: ")
        assert f"NFE {output.trace.nfe}" in repr(output.trace) and best in repr(output.trace)
        assert repr(output).startswith("SteeredOutput(2 images")
        assert "3 particles each" in repr(output)
        assert repr(output.trace.of(1)).startswith(f"Trace({PROMPTS[1]!r}")
        first = output.trace.events[0]
        assert repr(first) == f"TraceEvent(step {first.step}: 3 + 3 particles, best reward " + (
            ", ".join(f"{max(row):.4g}" for row in first.rewards) + ")"
        )
        assert "8" in repr(seen[0]) and "3 particles of 2 populations" in repr(seen[0])
        assert repr(SteeredOutput(["a"])) == "SteeredOutput(['a'])"

    def test_of_many_prompts_and_of_a_run_that_is_not_over(self):
        event = steer(sd(), redness, "best-of-n")("a", num_inference_steps=3, **SIZE).trace.events[0]
        many = Trace(["a"] * 500, "redness", {}, events=[dataclasses.replace(event, rewards=event.rewards * 500)] * 300)
        assert len(repr(many)) < 200
        assert len(repr(many.events[0])) < 3000


class TestBest:
    @pytest.mark.parametrize("output_type", ["pil", "pt", "np"])
    def test_it_is_the_image_with_the_highest_reward(self, output_type):
        call = {"num_inference_steps": 5, "generator": torch.Generator().manual_seed(0), **SIZE}
        output = steer(sd(), redness, FKSteering(num_particles=3))(PROMPTS, output_type=output_type, **call)
        expected = int(output.rewards.amax(1).argmax())
        best = output.best
        assert np.array_equal(np.asarray(best), np.asarray(output.images[expected]))
        alone = steer(sd(), redness, FKSteering(num_particles=3))(PROMPTS[0], output_type="pil", **call)
        assert alone.best is alone.images[0]

    def test_rewards_that_are_none(self):
        output = SteeredOutput(["a", "b", "c"], rewards=torch.tensor([[math.nan], [-3.0], [-math.inf]]))
        assert output.best == "b"


@pytest.fixture(scope="module")
def passes_of_two_rewards():
    call = {"num_inference_steps": 8, "generator": torch.Generator().manual_seed(0), **SIZE}

    def darkness(images, prompts):
        return -images.mean((1, 2, 3))

    return steer(sd(), {redness: 1.0, darkness: 1.0}, preset("allocation", num_particles=3))(PROMPTS, **call).trace


class TestTables:
    def test_a_row_for_each_particle_of_each_event(self, passes_of_two_rewards):
        rows = rows_of(passes_of_two_rewards)
        passes = [one for population in range(2) for one, _ in passes_of_two_rewards.passes(population)]
        assert len(rows) == sum(len(event.rewards[0]) for one in passes for event in one.events)
        for row in rows:
            one, own = passes_of_two_rewards.passes(row["population"])[row["pass"]]
            event = one.events[row["event"]]
            place = event.slots_before[own].index(row["slot"])
            assert row["reward"] == event.rewards[own][place]
            parts = [value for name, value in row.items() if name.startswith("score.")]
            assert len(parts) == 2 and sum(parts) == pytest.approx(row["reward"], abs=1e-5)
            assert (row["prompt"], row["step"], row["nfe"]) == (PROMPTS[row["population"]], event.step, event.nfe)
            if row["event"]:
                before = one.events[row["event"] - 1]
                position = before.slots[own].index(row["slot"])
                assert row["parent_slot"] == before.parents[own][position]
                assert row["parent_event"] == before.parent_events[own][position]
            else:
                assert row["parent_slot"] is None
        for population in range(2):
            returned = {row["returned"]: row for row in rows if row["population"] == population}
            assert [returned[rank]["reward"] for rank in range(3)] == passes_of_two_rewards.rewards[population]
        children = [row["descendants"] for row in rows if not row["final"]]
        assert sum(children) == len([row for row in rows if row["event"]])

    def test_a_data_frame(self, passes_of_two_rewards):
        pandas = pytest.importorskip("pandas")
        frame = passes_of_two_rewards.to_dataframe()
        assert isinstance(frame, pandas.DataFrame)
        assert len(frame) == len(rows_of(passes_of_two_rewards))
        assert frame["reward"].max() == max(row["reward"] for row in rows_of(passes_of_two_rewards))
        assert list(Trace(["a"], "r", {}).to_dataframe().columns[:4]) == ["population", "prompt", "pass", "event"]

    def test_without_pandas_the_command_is_named(self, passes_of_two_rewards, monkeypatch):
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(ImportError, match="pandas, which is not installed: pip install"):
            passes_of_two_rewards.to_dataframe()


def test_contact_sheet_shows_every_picture(trace):
    def pictures(n, correct=None):
        return [Picture(Image.new("RGB", (16, 8), "red"), 0.1 * index, correct) for index in range(n)]

    wordy = Result("a prompt that is far too long " * 20, pictures(2, True), pictures(3, False), trace)
    plain = Result("b", pictures(1), [], trace)
    colours = {colour: count for count, colour in contact_sheet([wordy, plain], 64).getcolors(1 << 20)}
    assert colours[(255, 0, 0)] == 6 * 64 * 32
    assert colours[(0x1A, 0x98, 0x50)] / colours[(0xD7, 0x30, 0x27)] == 2 / 3


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_plot_of_several_passes():
    """Each pass is drawn, and the wide line is that of the image returned, in whichever pass it was made."""
    trace = steer(sd(), redness, preset("screen", num_particles=2))(PROMPTS[0], num_inference_steps=8, **SIZE).trace
    passes = [one for one, _ in trace.passes(0)]
    assert len(passes) > 1
    tree, _, rewards = trace.plot().axes[:3]
    columns = sum(len(one.events) for one in passes)
    assert [label.get_text() for label in rewards.get_xticklabels()] == [
        str(event.step) for one in passes for event in one.events
    ]
    segments = [line for line in tree.get_lines() if line.get_marker() == "None"]
    scored = sum(len(event.rewards[0]) for one in passes for event in one.events)
    # And a line where each later pass begins.
    assert len(segments) == scored + len(passes) - 1
    number, slot = trace.returned[0][0]
    ends = [line for line in segments if line.get_linewidth() > 2][-1]
    last = sum(len(one.events) for one in passes[: number + 1])
    assert (ends.get_xdata()[-1], ends.get_ydata()[-1]) == (last, slot)
    assert columns >= last

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from PIL import Image

from fk_steer import FKSteering, Schedule, Trace, steer
from fk_steer.files import write_atomically
from fk_steer.report.results import Picture, Result
from fk_steer.report.sheet import contact_sheet
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

from __future__ import annotations

import pytest
import torch
from diffusion_1d import MIXTURE
from driver import Run, drive, leap, num_steps, start
from torch import Tensor

from fk_steer.search import Look, Lookahead
from fk_steer.smc import Current, FeynmanKac, Resampling, TargetESS


P, K, STEPS = 5, 4, num_steps(MIXTURE)
EVENTS = (1, 3, 5)
WAYS = [{"ahead": 1}, {"ahead": 2}, {"ahead": 20}, {"leaps": 1}, {"leaps": 2}, {"leaps": 20}]


def settings(**way: int) -> Lookahead:
    return Lookahead(K, EVENTS, **({"leaps": None} if "ahead" in way else {}), **way)


def run_of(way: dict[str, int], events: tuple[int, ...] = EVENTS) -> Run:
    return drive(start(settings(**way).replace(schedule=events), MIXTURE, P), MIXTURE, (P, K))


def stops(event: int, way: dict[str, int]) -> list[int]:
    """The steps visited ahead of an event."""
    last = STEPS - 1
    if "ahead" in way:
        return list(range(event + 1, min(event + way["ahead"], last) + 1))
    n = way["leaps"]
    found = {event + round((last - event) * i / (n + 1)) for i in range(1, n + 1)}
    return sorted(found - {event})


def still(x: Tensor, event: int, way: dict[str, int]) -> Tensor:
    """Where states at an event lead without noise."""
    for step, target in zip([event, *stops(event, way)], stops(event, way)):
        x = leap(MIXTURE, x, step, target)
    return x


def at_events(run: Run) -> list[int]:
    """Which of the looks are at events rather than ahead of them."""
    return [number for number, seen in enumerate(run.seen) if seen.plan.remember is not None]


def judged(run: Run, number: int) -> int:
    """The look at which what was ahead of the event of look `number` was judged."""
    return next(i for i in range(number + 1, len(run.seen)) if run.seen[i].plan.by == "memory")


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_steps_that_are_visited(way):
    """Every event, what is ahead of it, and then the loop from the event on."""
    expected, step = [], 0
    while step < STEPS:
        expected.append(step)
        if step in EVENTS:
            expected += [*stops(step, way), step]
        step += 1
    assert run_of(way).visited == expected


@pytest.mark.parametrize("way", [{"ahead": 1}, {"ahead": 3}, {"leaps": 1}, {"leaps": 2}], ids=str)
def test_the_rows_that_it_costs(way):
    """As many as steps ahead or leaps for each particle and event, and one to take up the event's step again."""
    (number,) = way.values()
    assert run_of(way).rows == P * K * (STEPS + len(EVENTS) * (number + 1))


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_particles_are_chosen_by_what_is_ahead_of_them(way):
    run = run_of(way)
    generators = [torch.Generator().manual_seed(1000 + p) for p in range(P)]
    model = FeynmanKac(None, Current(), TargetESS(), Resampling())
    copied = 0
    assert [run.seen[number].look.step for number in at_events(run)] == list(EVENTS)
    for number in at_events(run):
        here, there = run.seen[number], run.seen[judged(run, number)]
        event = here.look.step
        assert not here.look.rewards.any(), "nothing is scored at the event itself"
        ahead = still(here.before, event, way)
        assert torch.allclose(there.before, ahead), "they run ahead without noise"
        rewards = MIXTURE.predict_x0(ahead, stops(event, way)[-1])
        assert torch.allclose(there.look.rewards, rewards)
        _, chosen = model.step(model.start(P, K), there.look.rewards, there.look.progress, generator=generators)
        back = there.ancestors - K  # of the remembered ones
        assert torch.equal(back.sort(1).values, chosen.ancestors.sort(1).values)
        assert torch.equal(there.after, here.before.gather(1, back)), "back at the very states of the event"
        assert torch.equal(there.plan.weights.log, chosen.weights.log)
        assert torch.equal(there.plan.lmbda, chosen.lmbda)
        assert torch.equal(there.plan.resampled, chosen.resampled)
        copied += int((back.sort(1).values != torch.arange(K)).any())
    assert copied == len(EVENTS)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_only_what_is_furthest_ahead_is_scored(way):
    run = run_of(way)
    scored = [number for number, seen in enumerate(run.seen) if seen.look.rewards.any()]
    assert scored == [judged(run, number) for number in at_events(run)]


def test_copies_part_when_the_loop_goes_on():
    run = run_of({"leaps": 2})
    assert all(len(set(row)) == K for row in run.x.tolist())


@pytest.mark.parametrize("way", [{"ahead": 4}, {"leaps": 1}], ids=str)
def test_events_that_lie_ahead_are_looked_at_when_the_loop_comes_to_them(way):
    run = run_of(way, (2, 3, 4))
    assert [run.seen[number].look.step for number in at_events(run)] == [2, 3, 4]


def test_where_nothing_lies_ahead_the_loop_goes_on():
    """One leap half-way over the one step that is left ends where it began."""
    event = STEPS - 2
    run = run_of({"leaps": 1}, (event,))
    assert run.visited == list(range(STEPS))
    assert torch.equal(run.seen[0].after, run.seen[0].before)


def test_events_at_all_steps_leave_none_out():
    run = run_of({"leaps": 2}, tuple(range(STEPS - 1)))
    assert [step for step in run.visited if step < STEPS - 1 and run.visited.count(step) == 1] == []


@pytest.mark.parametrize("way", [{"ahead": 2}, {"leaps": 2}], ids=str)
def test_an_event_that_comes_a_step_late_is_returned_to_where_it_was(way):
    """In the second stage of a two-stage solver it waits for the next step, which may have been an event itself."""
    search = start(settings(**way).replace(schedule=(1, 2, 5)), MIXTURE, 1)
    slots = torch.arange(K)[None]
    plan = search.step(Look(2, STEPS, slots, torch.zeros(1, K)))
    assert plan.remember is not None
    while plan.by != "memory":
        step = plan.resume or next(iter(search.events))
        assert step > 2
        plan = search.step(Look(step, STEPS, slots, torch.rand(1, K).double()))
    assert plan.resume == 2 and list(search.events) == [5]


def test_one_of_ahead_and_leaps():
    for both in ({"ahead": 1, "leaps": 1}, {"ahead": None, "leaps": None}):
        with pytest.raises(ValueError, match="Expected `ahead` or `leaps`, one of the two"):
            Lookahead(**both)
    for bad in ({"leaps": 0}, {"leaps": None, "ahead": 0}, {"leaps": 1.5}):
        with pytest.raises(ValueError, match="an integer of at least 1"):
            Lookahead(**bad)

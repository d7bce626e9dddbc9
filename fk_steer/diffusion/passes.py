"""The passes of one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..report.trace import Trace
from ..search import Pass, Strategy
from .call import Call
from .results import Result, best_particles, better_of
from .run import Run
from .samplers import sampled_with


class Passes:
    """The passes that a strategy makes in one call; see `search.passes.Passes`.

    Args:
        strategy: that makes them.
        call: what is asked for, with a row for each particle that the strategy begins with.
        run_of: a run of some strategy over a call.

    Attributes:
        result: the best images of all passes so far, as many of each population as the smallest pass has left. None
            before the first.
        trace: of the first pass, with the others in its `retries` and what all of them cost in its counts.
    """

    def __init__(self, strategy: Strategy, call: Call, run_of: Callable[[Call, Strategy], Run]) -> None:
        self.strategy, self.call, self._run_of = strategy, call, run_of
        self._states = [generator.get_state() for generator in call.generators]
        self._made: list[Pass] = []
        self._counts = torch.zeros(call.num_populations, dtype=torch.long)
        """Passes over each population so far."""
        self._around: Callable[[Trace], Trace] = lambda trace: trace
        """Of passes within a pass, what is known of all."""
        self.result: Result | None = None
        self.trace: Trace | None = None

    @property
    def num_populations(self) -> int:
        return self.call.num_populations

    def run(
        self,
        strategy: Strategy,
        populations: Sequence[int] | None = None,
        slots: Tensor | None = None,
        num_steps: int | None = None,
        sampler: str = "own",
    ) -> Pass:
        """See `search.passes.Passes`."""
        call, numbers = self.call, list(range(self.num_populations) if populations is None else populations)
        if populations is not None:
            call = call.subset(numbers, strategy)
        elif slots is not None:
            call = call.begun_from(slots, self._states)
        elif self._made:
            call = call.begun_from(torch.arange(call.num_slots).expand(len(numbers), -1), self._states)
        if call.num_slots != strategy.num_particles:
            raise ValueError(f"Expected a pass of {call.num_slots} particles, but got {strategy.num_particles}.")
        if num_steps is not None:
            call = call.in_steps(num_steps)
        with sampled_with(call.pipe, sampler):
            if strategy is self.strategy or type(strategy).conduct is Strategy.conduct:
                run = self._run_of(call, strategy)
                run.reporter.so_far = lambda trace: self._around(self._with(numbers, trace))
                result, trace = run(), run.trace
                made = _pass_of(trace, numbers)
            else:
                inner = Passes(strategy, call, self._run_of)
                inner._around = lambda trace: self._around(self._with(numbers, trace))
                strategy.conduct(inner)
                result, trace = inner.outcome()
                made = inner._made[0] if len(inner._made) == 1 else _pass_of(trace, numbers, result)
                made = Pass(numbers, made.rewards, made.slots, trace.nfe, trace.nfe_saved)
        self._made.append(made)
        origins = result.origins.clone()
        origins[:, :, 0] += self._counts[numbers][:, None]
        self._counts[numbers] += torch.tensor([len(trace.passes(position)) for position in range(len(numbers))])
        self._keep(result._replace(origins=origins), numbers)
        if self.trace is None:
            self.trace = trace
        else:
            self.trace.add(numbers, trace)
        return made

    def outcome(self) -> tuple[Result, Trace]:
        """What is returned of all passes.

        Raises:
            ValueError: if there were none, or none over all populations.
        """
        if self.result is None or self.trace is None:
            raise ValueError(f"{type(self.strategy).__name__} has made no pass.")
        self.trace.returned = self.result.origins.tolist()
        return self.result, self.trace

    def _with(self, populations: list[int], trace: Trace) -> Trace:
        """A snapshot of what is known, with that of a pass that is not over."""
        if self.trace is None:
            return _snapshot(trace)
        seen = _snapshot(self.trace)
        seen.add(populations, _snapshot(trace))
        return seen

    def _keep(self, result: Result, populations: list[int]) -> None:
        if self.result is None:
            if len(populations) < self.num_populations:
                raise ValueError(f"The first pass of {type(self.strategy).__name__} has to be over all prompts.")
            self.result = result
            return
        size, before = result.rewards.shape[1], self.result.rewards.shape[1]
        if size < before and len(populations) == self.num_populations:
            # Of equal images the one of the smaller pass, so that one that screens leaves no trace in another's result.
            self.result = better_of(result, best_particles(self.result, size), populations)
            return
        size = min(size, before)
        self.result = better_of(best_particles(self.result, size), best_particles(result, size), populations)


def _snapshot(trace: Trace) -> Trace:
    """The trace of a run under way, which does not grow."""
    return dataclasses.replace(
        trace,
        events=list(trace.events),
        retries=list(trace.retries),
        reward_calls_by_part=dict(trace.reward_calls_by_part),
        seconds=dict(trace.seconds),
        returned=[],
    )


def _pass_of(trace: Trace, populations: list[int], result: Result | None = None) -> Pass:
    if result is None:
        last = trace.events[-1]
        found = [dict(zip(slots, rewards)) for slots, rewards in zip(last.slots_before, last.rewards)]
    else:
        found = [dict(enumerate(rewards)) for rewards in result.rewards.tolist()]
    rewards, slots = [list(one.values()) for one in found], [list(one) for one in found]
    return Pass(populations, rewards, slots, trace.nfe, trace.nfe_saved)

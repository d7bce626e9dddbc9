"""The passes of one call, and their results: joined, and by population."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..report.trace import Trace
from ..search import Pass, Strategy
from .call import Call
from .run import Result, Run
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
                run.so_far = lambda trace: self._around(self._with(numbers, trace))
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


def best_particles(result: Result, number: int) -> Result:
    """The best of each population alone."""
    P, size = result.rewards.shape
    if number == size:
        return result
    order = torch.arange(P * size).view(P, size)[:, :number].flatten()
    log_weights = result.log_weights[:, :number]
    return Result(
        _pick(result.images, order),
        [_pick(other, order) if _holds(other, P * size) else other for other in result.others],
        result.rewards[:, :number],
        log_weights - log_weights.logsumexp(1, keepdim=True),
        result.origins[:, :number],
    )


def better_of(result: Result, retry: Result, populations: Sequence[int]) -> Result:
    """`result` with some populations taken from `retry`, which holds those alone, where its best reward is higher."""
    P, size = result.rewards.shape
    rows = torch.arange(P * size).view(P, size)
    retried = P * size + torch.arange(len(populations) * size).view(-1, size)
    better = retry.rewards[:, 0] > result.rewards[list(populations), 0]
    rows[torch.tensor(populations)[better]] = retried[better]
    order = rows.flatten()
    return Result(
        _pick(_join(result.images, retry.images), order),
        [
            _pick(_join(first, second), order) if _holds(first, P * size) else first
            for first, second in zip(result.others, retry.others)
        ],
        _pick(_join(result.rewards.flatten(), retry.rewards.flatten()), order).view(P, size),
        _pick(_join(result.log_weights.flatten(), retry.log_weights.flatten()), order).view(P, size),
        _pick(_join(result.origins.flatten(0, 1), retry.origins.flatten(0, 1)), order).view(P, size, 2),
    )


def best_of_each(result: Result) -> tuple[Any, list[Any]]:
    """The best image of each population, and what the pipeline says beside it of those."""
    P, size = result.rewards.shape
    first = size * torch.arange(P)
    return _pick(result.images, first), [
        _pick(other, first) if _holds(other, P * size) else other for other in result.others
    ]


def by_population(result: Result) -> Any:
    """The images population by population: P lists of k, or an array or tensor (P, k, ...)."""
    P, size = result.rewards.shape
    images = result.images
    if isinstance(images, (Tensor, np.ndarray)):
        return images.reshape(P, size, *images.shape[1:])
    return [images[p * size : (p + 1) * size] for p in range(P)]


def _holds(values: Any, number: int) -> bool:
    return isinstance(values, (Tensor, np.ndarray, list)) and len(values) == number


def _join(first: Any, second: Any) -> Any:
    if isinstance(first, Tensor):
        return torch.cat([first, second])
    if isinstance(first, np.ndarray):
        return np.concatenate([first, second])
    return [*first, *second] if isinstance(first, list) else first


def _pick(values: Any, rows: Tensor) -> Any:
    if isinstance(values, Tensor):
        return values[rows.to(values.device)]
    if isinstance(values, np.ndarray):
        return values[rows.numpy()]
    return [values[row] for row in rows.tolist()] if isinstance(values, list) else values

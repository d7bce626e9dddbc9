"""Telling observers of the scoring events of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..report.trace import Trace
from ..search import Outcome, Plan
from .events import Observer, ScoringEvent
from .judging import Judgement
from .particles import Followed, Particles
from .scoring import Scorer
from .solver import Solver


class Reporter:
    """Tells observers of events, and the trace how often rewards were asked.

    Args:
        prompts: P texts, as the reward reads them.
        trace: of the run.
        solver, particles, scorer: of the run.
        observers: who hears of every event, in this order.
        stop: ends the run with the event at hand.

    Attributes:
        so_far: what is known of the whole call, passes before this one included, given the trace of this one.
    """

    def __init__(
        self,
        prompts: tuple[str, ...],
        trace: Trace,
        solver: Solver,
        particles: Particles,
        scorer: Scorer,
        observers: Sequence[Observer],
        stop: Callable[[], None],
    ) -> None:
        self.prompts, self.trace, self.observers, self.stop = prompts, trace, observers, stop
        self.solver, self.particles, self.scorer = solver, particles, scorer
        self.so_far: Callable[[Trace], Trace] = lambda trace: trace

    def of_predictions(self, index: int, judgement: Judgement, plan: Plan, followed: Followed, slots: Tensor) -> None:
        """An event of the loop.

        Args:
            index: of the step whose x0 predictions were scored.
            judgement: of them.
            plan: of the search, and
            followed: what came of it.
            slots: (P, K) before it.
        """
        timestep = self.solver.timesteps[index]
        self._report(index, timestep, judgement, plan, slots, followed.ancestors, followed.lineage)

    def of_finals(self, judgement: Judgement, outcome: Outcome, events: int) -> None:
        """The event of the final images, after so many of the loop."""
        rewards, slots = judgement.rewards, self.particles.rows.slots
        everyone = torch.arange(rewards.shape[1]).expand(rewards.shape)
        lineage = self.particles.lineage(events)
        self._report(self.trace.num_steps, None, judgement, outcome, slots, everyone, lineage)

    def _report(
        self,
        step: int,
        timestep: float | None,
        judgement: Judgement,
        decision: Plan | Outcome,
        slots: Tensor,
        ancestors: Tensor,
        lineage: Tensor,
    ) -> None:
        self.trace.reward_calls = sum(self.scorer.calls.values())
        self.trace.reward_calls_by_part = dict(self.scorer.calls)
        event = ScoringEvent(
            step=step,
            num_steps=self.trace.num_steps,
            timestep=timestep,
            prompts=self.prompts,
            slots=slots,
            rewards=judgement.rewards,
            scores=judgement.scores,
            details=judgement.details,
            ancestors=ancestors,
            slots_after=self.particles.rows.slots,
            parents=lineage[:, :, 1],
            parent_events=lineage[:, :, 2],
            roots=lineage[:, :, 0],
            decision=decision,
            nfe=self.trace.nfe,
            reward_calls=self.trace.reward_calls,
            thumbnails=judgement.kept.get("thumbnails", []),
            _decode=judgement.images,
            _trace=lambda: self.so_far(self.trace),
            _stop=self.stop,
        )
        for observer in self.observers:
            observer(event)

"""The engine: carries out what a search says, one scheduler step after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..search import Look, Plan, Search, Strategy
from .call import Call
from .judging import Judge, Judgement
from .particles import Followed, Particles
from .replay import step_output
from .rows import map_rows, overwrite
from .solver import Solver, States
from .watch import Watch


@dataclass(frozen=True)
class Taken:
    """A step that has been taken.

    Attributes:
        index: counted from zero.
        rows: (L,) that were alive before.
        moved: (L',) which of them each row alive now continues; None if all went on as they were.
        late: whether they moved after the noise.
    """

    index: int
    rows: Tensor
    moved: Tensor | None
    late: bool


Announce = Callable[[int, Judgement, Plan, Followed, Tensor], None]
"""Hears of a scoring event: step, rewards, plan, what came of it, and the slots (P, K) before it."""


class Engine:
    """What `scheduler.step` does in a steered loop.

    Args:
        call, strategy: what is asked for.
        solver, particles, judge: the loop's scheduler, its particles, and who scores them.
        begin: called at the first step with the samples and the timestep, before anything else; gives the search, the
            number of steps, and for each step whether its noise parts copies.
        announce: called after every scoring event.
        watch: for what is not finite.
    """

    def __init__(
        self,
        call: Call,
        strategy: Strategy,
        solver: Solver,
        particles: Particles,
        judge: Judge,
        begin: Callable[[Tensor, Any], tuple[Search, int, list[bool]]],
        announce: Announce,
        watch: Watch,
    ) -> None:
        self.call, self.strategy, self.solver, self.particles, self.judge = call, strategy, solver, particles, judge
        self.begin, self.announce, self.watch = begin, announce, watch
        self.num_steps = 0
        self.events = 0
        """Scoring events so far."""
        self.search = Search()
        self.parting: list[bool] = []
        self.overdue = False
        """Whether an event waits for a two-stage solver's next whole step."""
        self.halting = False
        """Whether the run is to end with the x0 predictions of this event."""
        self.halted: Tensor | None = None
        """(L, ...) the x0 predictions with which it has ended."""
        self.last_sample: Tensor | None = None
        """(L, ...) what the last step of the whole loop has left."""
        self.last_x0: Tensor | None = None
        """(L, ...) the last x0 predictions of a loop that stops before its end."""
        self.shape: torch.Size | None = None
        """Of the samples of all rows, once there was a step."""
        self.taken: Taken | None = None
        """The last step, unless there was none."""

    def step(
        self, inner: Callable[..., Any], model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """In place of the scheduler's own `step`, which is `inner`."""
        if not self.num_steps:
            self.search, self.num_steps, self.parting = self.begin(sample, timestep)
        index, rows = self.solver.advance(), self.particles.rows
        length = min(self.num_steps, len(self.solver.timesteps))
        if index >= length or length < self.num_steps:
            raise ValueError(
                f"{type(self.call.pipe).__name__} takes more than the {length} steps of its scheduler's loop, as one "
                "that makes an image or video piece by piece does. Particles can be steered within one loop alone."
            )
        last = index == self.num_steps - 1
        if self.halted is not None:
            self.last_sample = self.halted if last else None
            return self.to_all_rows(step_output(self.halted, kwargs), len(self.halted))
        whole, self.shape = sample, sample.shape
        known = kwargs.pop("pred_original_sample", None)  # x0, with which the step needs no model output
        model_output = model_output if known is None else known
        if not rows.all_live:
            live = rows.live_on(sample.device)
            model_output, sample = model_output[live], sample[live]
        self.solver.guiders.take(rows.live)
        tokens = kwargs.pop("per_token_timesteps", None)
        self.watch.step(index, sample, model_output)

        stepped, late, directions = rows.live, None, None
        self.taken = Taken(index, rows.live, None, False)
        if self.due(index):
            plan, followed = self.act(index, model_output, sample, self._of_live(tokens), known is not None)
            directions = followed.directions
            self.taken = Taken(index, stepped, followed.moved, plan.after_noise)
            if tokens is not None and followed.moved is not None:
                # Tokens that are not denoised in this step the pipeline takes from the samples as they were before.
                kept = sample[followed.moved.to(sample.device)] if plan.after_noise else followed.states.sample
                overwrite(whole, self.to_all_rows(kept, len(kept)))
            if self.halting:
                self.halted = followed.states.x0.to(sample.dtype)
                self.last_x0 = None if self.last_x0 is None else followed.states.x0
                return self.to_all_rows(step_output(self.halted, kwargs), len(self.halted))
            if plan.resume is not None:
                sample = self.resume(index, plan, followed.states).to(sample.dtype)
                return self.to_all_rows(step_output(sample, kwargs), len(sample))
            if plan.after_noise:  # which is that of the rows in which the particles were before
                late = followed.moved
            else:
                stepped, model_output, sample = rows.live, followed.states.model_output, followed.states.sample
        if self.call.stops_early and self.solver.whole_step and known is None:
            self.last_x0 = self.solver.x0(index, model_output, sample, self._of_live(tokens))

        kwargs.pop("eta", None)
        if known is not None:
            kwargs["pred_original_sample"] = model_output
        if tokens is not None:  # which are those of a row's population
            kwargs["per_token_timesteps"] = tokens[stepped.to(tokens.device)]
        quiet = self.particles.quiet(stepped)
        generators = self.generators_of(stepped)
        output = self.solver.step(
            inner, index, quiet, generators, model_output, timestep, sample, *args, directions=directions, **kwargs
        )
        if late is not None:
            late = late.to(sample.device)
            self.solver.gather(sample.shape, late)
            output = map_rows(lambda tensor: tensor[late], output, len(sample))
            self.last_x0 = None if self.last_x0 is None else self.last_x0[late]
        elif self.parting[index]:
            rows.part(quiet)
        # Of tokens that have timesteps of their own the pipeline keeps some as they were.
        self.last_sample = _sample_of(output) if last and tokens is None else None
        return self.to_all_rows(output, len(rows.live))

    def size_of_row(self, sample: Any) -> int:
        """How many of the samples that a denoiser is given belong to one row: those of a control network may be the
        frames of videos, of which nothing moves before the first step."""
        if self.shape is None or not isinstance(sample, Tensor) or sample.ndim >= len(self.shape):
            return 1
        copies, rest = divmod(sample.numel(), self.shape.numel())
        size, more = divmod(len(sample), max(copies, 1) * self.shape[0])
        return 1 if rest or more else size

    def due(self, index: int) -> bool:
        """Whether an event is due at this step. In the second stage of a two-stage solver it waits for the next step,
        but not for one after which there are only the final images."""
        now = index in self.search.events
        due, self.overdue = now or self.overdue, False
        if not due or (not now and index >= self.num_steps - 1):
            return False
        self.overdue = not self.solver.whole_step
        return not self.overdue

    def act(
        self, index: int, model_output: Tensor, sample: Tensor, tokens: Tensor | None = None, known: bool = False
    ) -> tuple[Plan, Followed]:
        """Show the search the x0 predictions of the live rows and let the particles follow its plan.

        Args:
            tokens: (L, tokens) the timesteps of tokens that have their own.
            known: whether what the pipeline passed to `step` is x0 itself.
        """
        slots = self.particles.rows.slots
        x0 = model_output.float() if known else self.solver.x0(index, model_output, sample, tokens)
        judgement = None
        if index not in self.search.unscored:
            try:
                judgement = self.judge.of_predictions(x0, sample, index, self.num_steps)
            except ValueError:
                # Asked now and not before, as the device is waited for: was it the reward's fault?
                self.watch.check_x0(x0, index)
                raise
        rewards = torch.zeros(slots.shape, dtype=torch.float64) if judgement is None else judgement.rewards
        noisy = max(self.solver.eta_at(index), self.solver.eta_at(index + 1)) > 0.0
        final = judgement is None or judgement.final_scale
        plan = self.search.step(Look(index, self.num_steps, slots, rewards, noisy, final))
        back = self.strategy.goes_back
        history, guidance = (self.solver.snapshot(), self.solver.guiders.memory()) if back else ({}, ())
        states = States(sample, model_output, x0, history, guidance)
        followed = self.particles.follow(plan, states, self.solver, index, self.events, plan.after_noise)
        self.search.adopt(followed.ancestors)
        if judgement is not None:
            self.events += 1
            self.announce(index, judgement, plan, followed, slots)
        if self.halting and plan.after_noise and followed.moved is not None:
            followed = followed._replace(states=states.take(followed.moved))
        return plan, followed

    def resume(self, index: int, plan: Plan, states: States) -> Tensor:
        """Send the loop to another step; the samples (L, ...) to go on with there."""
        assert plan.resume is not None
        sample, target = states.sample, self.solver.whole(plan.resume)
        if plan.by == "leap":
            sample = self.solver.leap(index, target, states.x0, states.sample)
            self.solver.forget(target)
        elif plan.by == "renoise":
            sample = self.solver.renoise(target, states.x0, self.generators_of(self.particles.rows.live))
            self.solver.forget(target)
            self.solver.guiders.forget()
        elif plan.by == "memory":  # with which the solver's memory has come back already
            self.solver.guiders.rewind()
        else:
            raise ValueError(f"Expected `by` to be 'renoise', 'memory' or 'leap', but got {plan.by!r}.")
        self.solver.seek(target)
        return sample

    def check_finished(self) -> None:
        """Check that the loop has been steered to its end, unless it was interrupted.

        Raises:
            ValueError: if it has not.
        """
        pipe = self.call.pipe
        interrupted = self.halted is not None or getattr(pipe, "interrupt", False)
        if self.num_steps and (interrupted or self.strategy.goes_back):
            return
        if not self.num_steps or any(event > self.solver.count for event in self.search.events):
            raise ValueError(
                f"{type(pipe).__name__} did not take its steps with `pipe.scheduler` as it should, so its images were "
                "not steered. Pipelines that take them with copies of it, or with code of their own, cannot be."
            )

    def generators_of(self, rows: Tensor) -> list[torch.Generator]:
        """Those of rows (L,); copies for rows that sleep, for what those draw must not be missed when they wake."""
        asleep = self.particles.rows.asleep[rows].tolist()
        return [one.clone_state() if sleeps else one for one, sleeps in zip(self.call.generators_of(rows), asleep)]

    def _of_live(self, values: Tensor | None) -> Tensor | None:
        rows = self.particles.rows
        return values if values is None or rows.all_live else values[rows.live_on(values.device)]

    def to_all_rows(self, output: Any, num_live: int) -> Any:
        """What a step returned of the live rows, for all rows."""
        rows = self.particles.rows
        self.solver.guiders.spread(rows.positions())
        if num_live == rows.total:
            return output
        return map_rows(lambda tensor: tensor[rows.positions_on(tensor.device)], output, num_live)


def _sample_of(output: Any) -> Tensor:
    """The samples that a scheduler's step returns."""
    sample: Tensor = output[0] if isinstance(output, tuple) else output.prev_sample
    return sample

"""What a pipeline denoises beside the samples, with a scheduler of its own: the sound of a video."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .engine import Engine
from .interception import UnsupportedSchedulerError
from .replay import step_output
from .rows import map_rows, overwrite
from .schedulers import predict_x0
from .solver import Solver


class Companion:
    """A second scheduler of a steered loop, which takes a step after each of the first with a row for each of its rows.
    Its rows go where those of the first have gone.

    Args:
        scheduler: the second, a copy of the first or a component of the pipeline.
        engine: steers the first.
        early: whether the scheduler may take steps before the loop begins, for something else.
    """

    def __init__(self, scheduler: Any, engine: Engine, early: bool = False) -> None:
        self.scheduler, self.engine, self.early = scheduler, engine, early
        if not early:
            self._check_search()
        self.solver = Solver(scheduler, engine.solver.eta_at, revisits=False)
        self._count = -1
        """The first scheduler's steps at the last of this one's, counted from zero."""
        self._halted: Tensor | None = None
        """(L, ...) the x0 predictions with which the run has ended."""

    def step(
        self, inner: Callable[..., Any], model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """In place of the scheduler's own `step`, which is `inner`.

        Raises:
            UnsupportedSchedulerError: if the steps of the two do not alternate.
        """
        engine, taken, total = self.engine, self.engine.taken, self.engine.particles.rows.total
        if self.early and taken is None:
            return inner(model_output, timestep, sample, *args, **kwargs)
        self._check_search()
        if taken is None or engine.solver.count != self._count + 1 or len(sample) != total:
            raise UnsupportedSchedulerError(
                f"{type(engine.call.pipe).__name__} takes its steps with several copies of its "
                f"{type(self.scheduler).__name__}, and not one for all particles after each step of `pipe.scheduler` "
                "itself, so its particles cannot be told when to move. Steer another pipeline."
            )
        self._count = engine.solver.count
        if self._halted is not None:
            return engine.to_all_rows(step_output(self._halted, kwargs), len(self._halted))
        whole, stepped, moved = sample, taken.rows, taken.moved
        if len(stepped) < total:
            index = stepped.to(sample.device)
            model_output, sample = model_output[index], sample[index]
        if moved is not None:
            moved = moved.to(sample.device)
            overwrite(whole, engine.to_all_rows(sample[moved], len(moved)))
            if not taken.late or engine.halted is not None:
                self.solver.gather(sample.shape, moved)
                stepped, moved, model_output, sample = (
                    engine.particles.rows.live,
                    None,
                    model_output[moved],
                    sample[moved],
                )
        if engine.halted is not None:
            self._halted = predict_x0(self.scheduler, model_output, timestep, sample).to(sample.dtype)
            return engine.to_all_rows(step_output(self._halted, kwargs), len(sample))

        kwargs.pop("eta", None)
        quiet, generators = engine.particles.quiet(stepped), engine.generators_of(stepped)
        output = self.solver.step(
            inner, taken.index, quiet, generators, model_output, timestep, sample, *args, **kwargs
        )
        if moved is not None:
            self.solver.gather(sample.shape, moved)
            index = moved
            output = map_rows(lambda tensor: tensor[index], output, len(sample))
        return engine.to_all_rows(output, len(engine.particles.rows.live))

    def _check_search(self) -> None:
        if self.engine.strategy.goes_back:
            raise UnsupportedSchedulerError(
                f"The search goes back to earlier steps, but {type(self.engine.call.pipe).__name__} takes steps with a "
                "second scheduler, which cannot. Use a search that does not go back."
            )

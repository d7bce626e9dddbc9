"""`Solver`: all that is asked of a scheduler in the course of a loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .guiders import Guiders
from .interception import accepts, plain_step
from .noise import noise_switched
from .rows import map_rows
from .schedulers import gather_history, in_first_order_stage, levels, predict_x0, start_index
from .timeline import Cursor, on_timeline


@dataclass(frozen=True)
class States:
    """What it takes to go on from some states of particles at one step.

    Attributes:
        sample: (N, ...) x_t.
        model_output: (N, ...) what the pipeline passed to `step`.
        x0: (N, ...) float32, its prediction.
        history: what the solver remembered before the step.
        guidance: what guiders remember, see `Guiders.memory`.
    """

    sample: Tensor
    model_output: Tensor
    x0: Tensor
    history: dict[str, Any]
    guidance: tuple[Any, ...] = ()

    def take(self, index: Tensor) -> States:
        """Those at positions `index` (M,), on the CPU or the states' device."""
        index = index.to(self.sample.device)

        def of(value: Any) -> Any:
            if isinstance(value, list):
                return [of(item) for item in value]
            return value[index.to(value.device)] if self._has_rows(value) else value

        history = {name: of(value) for name, value in self.history.items()}
        guidance = tuple(value[index] if isinstance(value, Tensor) else value for value in self.guidance)
        return States(self.sample[index], self.model_output[index], self.x0[index], history, guidance)

    def join(self, others: States) -> States:
        """These followed by others of the same step.

        Where the solver remembers fewer steps of some, it forgets as many of the others, and goes on with a lower
        order.
        """

        def both(a: Any, b: Any) -> Any:
            if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
                return [both(x, y) for x, y in zip(a, b)]
            if self._has_rows(a) and others._has_rows(b):
                return torch.cat([a, b])
            if self._has_rows(a) or others._has_rows(b):
                return None
            # Numbers of steps remembered, and orders.
            return min(a, b) if type(a) is int and type(b) is int else a

        history = {name: both(value, others.history.get(name)) for name, value in self.history.items()}
        pairs = ((self.sample, others.sample), (self.model_output, others.model_output), (self.x0, others.x0))
        sample, model_output, x0 = (torch.cat(pair) for pair in pairs)
        guidance = tuple(
            torch.cat([a, b]) if isinstance(a, Tensor) else a for a, b in zip(self.guidance, others.guidance)
        )
        return States(sample, model_output, x0, history, guidance)

    def after(self, number: int) -> States:
        """These from position `number` on, with anything before."""
        padding = torch.zeros(number, dtype=torch.long)
        return self.take(torch.cat([padding, torch.arange(len(self.sample))]))

    def _has_rows(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.shape == self.sample.shape


class Solver:
    """A scheduler in the course of one loop.

    Args:
        scheduler: the pipeline's.
        eta_at: step, counted from zero -> the noise asked for, see `noise_switched`.
        revisits: whether the loop will be sent to other steps than the next.
        guiders: of the pipeline, whose memory follows the rows too; None for none.
    """

    def __init__(
        self, scheduler: Any, eta_at: Callable[[int], float], revisits: bool, guiders: Guiders | None = None
    ) -> None:
        self.scheduler, self.eta_at, self.revisits = scheduler, eta_at, revisits
        self.guiders = guiders or Guiders()
        self.timesteps: list[float] = []
        """Of the loop, on the CPU."""
        self._cursor: Cursor | None = None
        self.count = -1
        """Of the last step."""
        self._offset = 0
        self._fresh: dict[str, Any] = {}

    def prepare(self, patches: ExitStack) -> None:
        """Before the pipeline runs."""
        cursor = None
        if self.revisits:
            self._cursor = cursor = patches.enter_context(on_timeline(self.scheduler))
        self.guiders.prepare(patches, None if cursor is None else lambda: cursor.index)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """While the context lasts, the pipeline may run another loop."""
        place = None if self._cursor is None else dict(vars(self._cursor))
        try:
            yield
        finally:
            if place is not None:
                vars(self._cursor).update(place)

    def begin(self, num_steps: int, from_end: bool) -> None:
        """At the first step, before it is taken.

        Args:
            num_steps: of the loop.
            from_end: whether the loop visits the last of the scheduler's timesteps rather than the first.

        Raises:
            ValueError: if the loop has to be sent back and cannot be.
        """
        all_timesteps = self.scheduler.timesteps.as_subclass(Tensor).tolist()
        start = len(all_timesteps) - num_steps if from_end else 0
        self.timesteps = all_timesteps[start : start + num_steps]
        if not self.revisits:
            return
        name = type(self.scheduler).__name__
        if self._cursor is None or not self._cursor.looping:
            raise ValueError(
                "The search goes back to earlier steps, but this pipeline's loop does not go over the scheduler's "
                "timesteps. Use a search that does not go back."
            )
        if hasattr(self.scheduler, "counter"):
            raise ValueError(
                f"The search goes back to earlier steps, but {name} counts its steps and cannot. Use another sampler, "
                "for example `pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)`."
            )
        self._offset = start_index(self.scheduler, self.timesteps[0])
        self._fresh = self.snapshot()

    def advance(self) -> int:
        """A step of the loop begins: its index, counted from zero."""
        self.count += 1
        return self.count if self._cursor is None else self._cursor.index

    @property
    def upcoming(self) -> int:
        """The index of the step that the loop is at before it is taken."""
        return self.count + 1 if self._cursor is None else self._cursor.index

    @property
    def whole_step(self) -> bool:
        """False in the second stage of a two-stage solver."""
        return in_first_order_stage(self.scheduler)

    def whole(self, index: int) -> int:
        """The whole step that step `index` belongs to: a two-stage solver takes every second of its timesteps for
        one."""
        return index - index % 2 if hasattr(self.scheduler, "state_in_first_order") else index

    def x0(self, index: int, model_output: Tensor, sample: Tensor, per_token_timesteps: Tensor | None = None) -> Tensor:
        """See `predict_x0`."""
        return predict_x0(self.scheduler, model_output, self.timesteps[index], sample, per_token_timesteps)

    def step(
        self,
        inner: Callable[..., Any],
        index: int,
        quiet: Tensor | None,
        generators: Sequence[torch.Generator],
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        *args: Any,
        directions: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The scheduler's step, with this step's noise, but none for some rows.

        Args:
            inner: the scheduler's own `step`.
            quiet: (L,) the rows without noise; None for none.
            generators: L, one per row.
            directions: (L, ...) of the noise, in place of what is drawn; zeros where that is kept. None for none.
        """
        eta = self.eta_at(index)
        if kwargs.get("per_token_timesteps") is not None and eta > 0:
            model_output = -model_output  # its step with noise takes the velocity the other way round than that without

        def take(scheduler: Any, step: Callable[..., Any], eta: float, generators: Sequence[torch.Generator]) -> Any:
            with noise_switched(scheduler, step, eta) as take_step:
                if accepts(take_step, "generator"):
                    kwargs["generator"] = list(generators)
                return take_step(model_output, timestep, sample, *args, **kwargs)

        if not eta > 0 or (quiet is None and directions is None):
            return take(self.scheduler, inner, eta, generators)

        def aside(eta: float) -> list[Tensor]:
            # By a copy with the same history, which the noise does not enter. A sampler that draws all the same must
            # not use up what the rows' own noise comes from.
            twin = _twin(self.scheduler)
            output = take(twin, plain_step(twin), eta, [generator.clone_state() for generator in generators])
            return _rows_of(output, len(sample))

        stills = iter(() if quiet is None else aside(0.0))
        means: Iterator[Tensor] = iter(())
        if directions is not None:
            with _NoiseOfZeros():
                means = iter(aside(eta))
        noisy = take(self.scheduler, inner, eta, generators)

        def merge(tensor: Tensor) -> Tensor:
            if directions is not None:
                tensor = _turned(tensor, next(means), directions)
            if quiet is None:
                return tensor
            return torch.where(quiet.to(tensor.device).view(-1, *([1] * (tensor.ndim - 1))), next(stills), tensor)

        return map_rows(merge, noisy, len(sample))

    # Rows that move, and steps that are not the next.

    def gather(self, shape: torch.Size, rows: Tensor) -> None:
        """Let what is remembered of samples of this shape follow `rows` (L',)."""
        gather_history(self.scheduler, shape, rows)
        self.guiders.gather(rows)

    def snapshot(self) -> dict[str, Any]:
        """What the scheduler knows beside its settings and timesteps."""
        return {
            name: list(value) if isinstance(value, list) else value
            for name, value in vars(self.scheduler).items()
            if name not in _SETTINGS and not callable(value)
        }

    def restore(self, history: dict[str, Any]) -> None:
        """Go back to what a snapshot holds."""
        for name, value in history.items():
            setattr(self.scheduler, name, list(value) if isinstance(value, list) else value)

    def seek(self, index: int) -> None:
        """Let the loop go on with step `index`."""
        assert self._cursor is not None
        self._cursor.next = index

    def forget(self, index: int) -> None:
        """Be as at the beginning of a loop that starts with step `index`."""
        self.restore(self._fresh)
        if hasattr(self.scheduler, "_step_index"):
            self.scheduler._step_index = self._offset + index

    def renoise(self, index: int, x0: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """x0 (L, ...) at the noise level of step `index`, by the forward process: alpha x0 + sigma epsilon."""
        noise = torch.stack(
            [
                torch.randn(x0.shape[1:], generator=one, device=one.device, dtype=torch.float32).to(x0.device)
                for one in generators
            ]
        )
        alpha, sigma = self.levels(index)
        return alpha * x0 + sigma * noise

    def leap(self, index: int, target: int, x0: Tensor, sample: Tensor) -> Tensor:
        """The samples (L, ...) of step `index` at the noise level of step `target`, in one step of first order without
        noise: the direction of the noise is kept (DDIM at eta 0, arXiv 2010.02502, equation 12; Euler)."""
        alpha, sigma = self.levels(index)
        epsilon = (sample.float() - alpha * x0) / sigma
        alpha, sigma = self.levels(target)
        return alpha * x0 + sigma * epsilon

    def levels(self, index: int) -> tuple[Tensor, Tensor]:
        """alpha and sigma of a step: its samples are alpha x0 + sigma epsilon."""
        return levels(self.scheduler, self.timesteps[index], self._offset + index)


_SETTINGS = frozenset({"step", "set_timesteps", "timesteps", "sigmas", "config", "_internal_dict"})


def _twin(scheduler: Any) -> Any:
    """A copy of a scheduler that can take a step of its own without changing the original."""
    twin = copy.copy(scheduler)
    vars(twin).pop("step", None)
    for name, value in vars(twin).items():
        if isinstance(value, list):
            setattr(twin, name, list(value))
    return twin


def _rows_of(output: Any, num_rows: int) -> list[Tensor]:
    found: list[Tensor] = []
    map_rows(lambda tensor: found.append(tensor) or tensor, output, num_rows)  # type: ignore[func-returns-value]
    return found


class _NoiseOfZeros(TorchFunctionMode):
    """While the context lasts, standard normal draws are zero: a step with noise gives its mean."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        drawn = func(*args, **(kwargs or {}))
        return torch.zeros_like(drawn) if func in (torch.randn, torch.randn_like) else drawn


def _turned(noisy: Tensor, mean: Tensor, directions: Tensor) -> Tensor:
    """Samples (L, ...) whose noise has its own length and the direction of `directions`, where that is not zero."""
    noise, wanted = (noisy - mean).float().flatten(1), directions.to(noisy.device, torch.float32).flatten(1)
    length = wanted.norm(dim=1, keepdim=True)
    turned = mean + (wanted * (noise.norm(dim=1, keepdim=True) / length)).view_as(mean).to(mean.dtype)
    return torch.where((length > 0).view(-1, *([1] * (noisy.ndim - 1))), turned, noisy)

"""What the denoisers of a pipeline do in a steered loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..report.trace import Stopwatch, Trace
from .attention import stores_attention, with_attention
from .batches import run_on_live_rows
from .components import conditions_of_all, is_control, mixes_rows, parameters_of
from .cutoff import GuidanceCutoff
from .decode import LatentDecoder
from .engine import Engine
from .layout import Layout, UnknownLayoutError, as_containers, known_layout
from .ranks import Ranks
from .replay import Replay, outline
from .wordings import check_conditions, following


class Denoiser:
    """Runs a denoiser, or a control network, on the rows that are alive, in chunks, and counts them.

    Args:
        name: of the component.
        module: itself.
        engine: carries out the loop in which it is called.
        replay: runs the call again, and is told of outputs.
        cutoff: knows the steps that guidance is left out of, and is told of outputs.
        ranks: who shares the rows.
        batch_size: rows per call; None for all at once.
        clock: counts the seconds in 'denoiser'.
        trace: counts calls and rows, but of control networks.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        engine: Engine,
        replay: Replay,
        cutoff: GuidanceCutoff,
        ranks: Ranks,
        batch_size: int | None,
        clock: Stopwatch,
        trace: Trace,
    ) -> None:
        self.name, self.module, self.engine, self.replay, self.cutoff = name, module, engine, replay, cutoff
        self.ranks, self.batch_size, self.clock, self.trace = ranks, batch_size, clock, trace
        self.parameters = parameters_of(module)
        self.is_control = is_control(module)
        self._last: Any = None
        """The last output."""
        self._layouts: dict[tuple[int, str], Layout] = {}

    def forward(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In place of the module's own, which is `inner`."""
        parameters, particles = self.parameters, self.engine.particles
        if self.replay.active:
            return self.replay.forward(self.name, inner, parameters, args, kwargs)
        if self.engine.halted is not None and self._last is not None:
            return self._last  # what is made of it is not used
        unguided = self.cutoff.over(self.engine.solver.upcoming, self.trace.num_steps)
        if unguided and not self.is_control and self.cutoff.is_done:
            return self._last
        sample = args[0] if args else kwargs[parameters[0]]
        if self._images_may_be_of_all and not self.trace.denoiser_calls:
            self.replay.check_images(self.name, parameters[0], sample)
        if self.is_control and "controlnet_cond" in kwargs:
            conditions = conditions_of_all(kwargs["controlnet_cond"], particles.rows.total, len(sample))
            kwargs = {**kwargs, "controlnet_cond": conditions}
        pipe = self.engine.call.pipe
        # Its attention compares what the batch holds of a row.
        together = getattr(pipe, "do_perturbed_attention_guidance", False) or mixes_rows(self.module)

        def on_rows(denoiser: Callable[..., Any]) -> tuple[Any, int, int]:
            return run_on_live_rows(
                denoiser,
                particles.rows,
                self.ranks,
                parameters,
                self.batch_size,
                args,
                kwargs,
                self.layout,
                together,
                self.engine.size_of_row(sample),
                self.cutoff.half if unguided else None,
            )

        args, kwargs = self.with_own_wordings(sample, args, kwargs)
        with self.clock("denoiser"):
            output, num_rows, copies = (
                with_attention(pipe, inner, on_rows) if stores_attention(pipe) else on_rows(inner)
            )
        self.replay.remember_output(self.name, sample, output)
        self._last = output
        if not self.is_control and copies:
            self.cutoff.called(output, copies)
            self.trace.nfe += num_rows
            self.trace.nfe_saved += copies * int(particles.stopped.sum()) * (particles.number - 1)
            self.trace.denoiser_calls += 1
        return output

    def with_own_wordings(
        self, sample: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments in which every particle has the wording that it began with."""
        origins, wordings = self.engine.particles.origins, self.engine.call.wordings
        if origins is None or wordings is None:
            return args, kwargs
        if all(wordings[origin] == wordings[row] for row, origin in enumerate(origins.tolist())):
            return args, kwargs
        copies, rest = divmod(len(sample), len(origins) * self.engine.size_of_row(sample))
        if rest or not copies:
            return args, kwargs
        arguments = {**dict(zip(self.parameters, args)), **kwargs}
        check_conditions(arguments)
        followed = following(arguments, self.layout(arguments, copies), origins, copies, self.parameters[:1])
        return tuple(followed[name] for name in self.parameters[: len(args)]), {name: followed[name] for name in kwargs}

    def layout(self, arguments: Mapping[str, Any], copies: int) -> Layout:
        """Where the rows are in its arguments, which hold them so many times."""
        sizes = copies, repr(outline(as_containers(arguments)))
        if sizes not in self._layouts:
            try:
                self._layouts[sizes] = known_layout(arguments, copies * self.engine.particles.rows.total)
            except UnknownLayoutError:
                self._layouts[sizes] = self.replay.layout(self.name, arguments, copies)
        return self._layouts[sizes]

    @property
    def _images_may_be_of_all(self) -> bool:
        """Whether the pipeline was given an image for each row, and may take them for images of every row."""
        plain = isinstance(self.engine.judge.decoder, LatentDecoder)
        return self.replay.way.repeats == "everything" and self.engine.call.num_rows > 1 and not plain

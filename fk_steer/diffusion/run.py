"""One pass of a stock pipeline over all particles of a call: what is wrapped, and what comes out."""

from __future__ import annotations

import functools
import inspect
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..report.trace import Stopwatch, Trace
from ..rewards.base import Reward
from ..search import RewardFacts, Search, Start, Strategy
from ..smc import real
from .arguments import image_size
from .blocks import encoding_by
from .call import Call
from .callbacks import check_callback, with_callback
from .checks import check_caches, check_noise, check_steps
from .companions import Companion
from .components import (
    asks_for_x0,
    autoencoder_of,
    denoisers_of,
    is_control,
    is_modular,
    schedulers_of,
    several_autoencoders,
)
from .conditions import InitialNoise, begins_with_image
from .cutoff import GuidanceCutoff
from .decode import Decoder, LatentDecoder, decodes_plainly
from .denoising import Denoiser
from .engine import Engine
from .events import Observer
from .execution import Execution
from .finals import FinalVideos, LeftBeforeDecoding
from .guiders import Guiders
from .inputs import Way, encoded_once, ways_of
from .interception import Replace, intercept, intercept_step
from .judging import Judge, Judgement
from .layout import combine, output_layout
from .outputs import as_tensor, convert, run_pipeline, tensor_type, within
from .particles import Particles
from .previews import preview_decoder
from .ranks import Ranks
from .readings import Readings
from .recorder import Recorder, thumbnails
from .replay import Replay
from .reporting import Reporter
from .results import Result, of_particles
from .schedulers import is_known, steps_from
from .scoring import Scorer
from .solver import Solver
from .watch import Watch


class Run:
    """One pass of a pipeline over all rows of a call.

    Args:
        call, strategy, reward, execution: what is asked for.
        ranks: who shares the work.
        observers: hear of every scoring event, after the recorder of the trace.
        thumbnail_side: of the pictures of x0 predictions kept in the trace, in pixels; None for none.
        warns: whether to warn where little or nothing is steered.
        chosen: steps, sampler and particles that settings or a budget have chosen, for the record; see `Choice`.
    """

    def __init__(
        self,
        call: Call,
        strategy: Strategy,
        reward: Reward,
        execution: Execution,
        ranks: Ranks,
        observers: Sequence[Observer] = (),
        thumbnail_side: int | None = None,
        warns: bool = True,
        chosen: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.warns = warns
        execution = execution.for_videos() if call.videos else execution
        self.call, self.strategy, self.reward, self.execution, self.ranks = call, strategy, reward, execution, ranks
        check_callback(call.pipe, call.arguments, strategy.goes_back)
        self.pipe = pipe = call.pipe
        self.eta = strategy.noise.eta if call.eta is None else call.eta
        self.trace = Trace(
            list(call.prompts),
            reward.name,
            strategy.describe(),
            reward.at(1.0).relative,
            scheduler=type(pipe.scheduler).__name__,
            chosen=dict(chosen),
        )
        self.particles = Particles(call.num_populations, call.num_slots)
        guiders = Guiders(pipe, call.num_rows, strategy.looks, strategy.goes_back)
        self.solver = Solver(pipe.scheduler, self.eta_at, strategy.goes_back, guiders)
        self.clock = Stopwatch(pipe._execution_device)
        self.scorer = Scorer(ranks, self.clock, execution, call.videos)
        if thumbnail_side is not None:
            self.scorer.keeps["thumbnails"] = thumbnails(thumbnail_side)
        self.autoencoder = autoencoder_of(pipe)
        self._is_patched = False
        self.replay = Replay(call, None if self.autoencoder is None else self.autoencoder[0], self._aside)
        decoder, preview, until = self._decoders()
        last = functools.partial(decoder, last=True) if decoder == self.replay.images else decoder
        self.readings = Readings(self.solver, self.particles)
        self.judge = Judge(
            reward, self.scorer, call.prompts, self.particles.rows, decoder, last, self.readings, preview, until
        )
        denoisers = denoisers_of(pipe)
        check_caches(denoisers)
        self.cutoff = GuidanceCutoff(pipe, denoisers, strategy)
        denoiser = next((one for one in denoisers.values() if not is_control(one)), None)
        vae = None if self.autoencoder is None else self.autoencoder[1]
        self.watch = Watch(denoiser, pipe.scheduler, vae, call.arguments.get("callback_on_step_end") is not None)
        observers = [Recorder(self.trace), *observers]
        self.reporter = Reporter(
            call.prompts, self.trace, self.solver, self.particles, self.scorer, observers, self.halt
        )
        announce = self.reporter.of_predictions
        self.engine = Engine(call, strategy, self.solver, self.particles, self.judge, self.begin, announce, self.watch)
        size = execution.denoise_batch_size
        self.denoisers = [
            Denoiser(name, module, self.engine, self.replay, self.cutoff, ranks, size, self.clock, self.trace)
            for name, module in denoisers.items()
        ]
        self.initial_noise = InitialNoise()
        self.asks_for_x0 = asks_for_x0(pipe)
        self.shown: Callable[[Tensor], Tensor] | None = None
        """What makes images in [0, 1] of what the pipeline returns, where that is not in [0, 1]."""
        self._as_stock = False
        """Whether the pipeline gives tensors of another range than images have, which are given back as they are."""

    def __call__(self) -> Result:
        """Run the pipeline."""
        started = time.perf_counter()
        with self._patched(), ExitStack() as patches:
            self.solver.prepare(patches)
            result = self.finish(*self._run())
        total = time.perf_counter() - started
        seconds = self.clock.seconds()
        parts = {part: seconds.get(part, 0.0) for part in ("denoiser", "decode", "reward")}
        self.trace.seconds = self.ranks.first({**parts, "rest": total - sum(parts.values()), "total": total})
        return result

    @contextmanager
    def _patched(self) -> Iterator[None]:
        """Let what matters of the pipeline come here, if it does not already."""
        if self._is_patched:
            yield
            return
        with ExitStack() as patches:
            self._patch(patches)
            self._is_patched = True
            try:
                yield
            finally:
                self._is_patched = False

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """While the context lasts, the pipeline may run another loop."""
        with self._patched(), self.solver.aside():
            yield

    def _patch(self, patches: ExitStack) -> None:
        pipe = self.pipe

        def wrap(owner: Any, name: str, run: Callable[..., Any]) -> None:
            patches.enter_context(intercept(owner, name, lambda inner: functools.partial(run, inner)))

        patches.enter_context(intercept_step(pipe.scheduler, self.step, self.beside))
        for other in schedulers_of(pipe):
            if other is not pipe.scheduler:
                companion = Companion(other, self.engine, early=True)
                wrap(other, "step", functools.partial(self.step_beside, companion))
        for denoiser in self.denoisers:
            # A module compiled in place bypasses `forward`; wrapping what it calls instead keeps its graph as it is.
            entry = "forward" if denoiser.module._compiled_call_impl is None else "_compiled_call_impl"
            wrap(denoiser.module, entry, denoiser.forward)
        if self.autoencoder is not None:
            wrap(self.autoencoder[1], "decode", self.decode)
            if hasattr(self.autoencoder[1], "encode") and not begins_with_image(pipe, self.call.arguments):
                wrap(self.autoencoder[1], "encode", self.replay.conditions.encode)
        for scheduler in schedulers_of(pipe):
            for name in ("add_noise", "scale_noise"):
                if scheduler is pipe.scheduler and hasattr(scheduler, name):
                    wrap(scheduler, name, self.add_noise)
                elif hasattr(scheduler, name):
                    wrap(scheduler, name, self.replay.conditions.add_noise)
        for name in ("encode_prompt", "generate_prior_tokens"):  # tokens that are drawn for a prompt, in GLM-Image
            if hasattr(pipe, name):
                wrap(pipe, name, self.encode_prompt)
        if is_modular(pipe):
            patches.enter_context(encoding_by(pipe, self.encode_prompt))

    def _run(self) -> tuple[Any, ...]:
        """The pipeline's own call, asked for its rows in the first way that it understands."""
        states = [generator.get_state() for generator in self.call.generators]
        failure: Exception | None = None
        ways = ways_of(self.pipe, self.call.arguments, self.call.num_prompts)
        if self.call.wordings is not None:
            ways = [way for way in ways if way.repeats != "nothing"]
        for way in [Way("as given"), *ways] if self.call.num_rows == 1 else ways:
            self.replay.begin(way)
            for generator, state in zip(self.call.generators, states):
                generator.set_state(state)
            try:
                asked = with_callback(self.call.stock(way), self.call.num_rows)
                kind = tensor_type(self.pipe, asked)
                self._as_stock = kind == "np" and self.call.output_type == "pt"
                if self._as_stock or self.call.output_type == "latent":
                    kind = self.call.output_type
                output = run_pipeline(self.pipe, asked, kind)
                self.shown = self.replay.shown() if self._as_stock else None
                return output
            except LeftBeforeDecoding:
                return (None,)
            except Exception as error:
                if self.engine.num_steps or self.trace.denoiser_calls:
                    raise
                failure = failure or error
        assert failure is not None
        if self.call.num_rows > 1 and self.replay.takes_one_row():
            raise ValueError(
                f"{type(self.pipe).__name__} cannot be given a row for each of {self.call.num_rows} particles, so it "
                f"cannot be steered. ({type(failure).__name__}: {failure})"
            ) from failure
        raise failure

    # The wrapped methods.

    def step(
        self, inner: Callable[..., Any], model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """In place of the scheduler's."""
        if self.asks_for_x0 and kwargs.get("pred_original_sample") is None:
            return inner(model_output, timestep, sample, *args, **kwargs)
        if self.replay.active:
            return self.replay.step(sample, kwargs)
        self.cutoff.step(model_output, sample)
        return self.engine.step(inner, model_output, timestep, sample, *args, **kwargs)

    def beside(self, scheduler: Any) -> Replace:
        """What replaces the `step` of a copy of the scheduler."""
        companion = Companion(scheduler, self.engine)
        return lambda inner: functools.partial(self.step_beside, companion, inner)

    def step_beside(self, companion: Companion, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In place of a second scheduler's."""
        return (inner if self.replay.active else functools.partial(companion.step, inner))(*args, **kwargs)

    def decode(self, inner: Callable[..., Any], z: Tensor, *args: Any, **kwargs: Any) -> Any:
        """In place of the autoencoder's: of the final latents, in chunks.

        Raises:
            LeftBeforeDecoding: if they are of videos, of which the pipeline would hold all frames several times.
        """
        rows = self.particles.rows
        if not self.replay.active and self._finishes_in_chunks():
            raise LeftBeforeDecoding
        if self.replay.active or z.shape[0] != rows.total or "num_frames" in kwargs:
            return inner(z, *args, **kwargs)
        plain = isinstance(self.judge.decoder, LatentDecoder)
        if plain and not rows.all_live:
            z = z[rows.live_on(z.device)]
        self.watch.sample(z)
        mine = z[self.ranks.rows(len(z))]
        chunks = mine.split(self.execution.decode_batch_size or len(mine))

        def join(parts: list[Tensor]) -> Tensor:
            return self.ranks.gather(torch.cat(parts), len(z))

        with self.clock("decode"):
            outputs = [inner(chunk, *args, **kwargs) for chunk in chunks]
            return combine(outputs, output_layout(outputs[0], len(chunks[0])), join)

    def add_noise(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In place of the scheduler's `add_noise` and `scale_noise`."""
        if self.replay.active:
            return inner(*args, **kwargs)
        return self.initial_noise.add(inner, self.solver.count, self.particles.origins, args, kwargs)

    def encode_prompt(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In place of the pipeline's."""
        if self.replay.active:
            return self.replay.encode_prompt(inner, *args, **kwargs)
        encoded = encoded_once(inner, list(inspect.signature(inner).parameters), args, kwargs)
        self.replay.encoded.remember(encoded)
        self.readings.remember(encoded)
        return encoded

    def _finishes_in_chunks(self) -> bool:
        """Whether final videos are decoded, scored and converted chunk by chunk. Not if more is made of the latents
        than a `Replay` knows: by a callback, or by another autoencoder for a sound."""
        whole = self.engine.last_sample is not None and not self.call.stops_early
        many = self.particles.rows.total > (self.execution.decode_batch_size or 0)
        asked = self.call.videos and self.execution.decode_batch_size and self.call.output_type != "latent"
        callback = self.call.arguments.get("callback_on_step_end") is not None
        return bool(
            whole and many and asked and not callback and not self._as_stock and not several_autoencoders(self.pipe)
        )

    # What the engine asks and says.

    def eta_at(self, index: int) -> float:
        """The noise of a step."""
        return self.eta if self.strategy.noise.on(index, self.trace.num_steps) else 0.0

    def begin(self, sample: Tensor, timestep: Any) -> tuple[Search, int, list[bool]]:
        """At the first step: what can only be checked with the loop's timesteps, and the search."""
        pipe, rows = self.pipe, self.particles.rows
        if sample.shape[0] != rows.total:
            raise ValueError(
                f"{type(pipe).__name__} runs {sample.shape[0]} rows where {rows.total} were asked for, so particles "
                "and prompts cannot be told apart."
            )
        self.ranks.agree({"initial latents": sample})
        self.trace.num_steps = num_steps = getattr(pipe, "num_timesteps", None) or steps_from(pipe.scheduler, timestep)
        self.replay.num_steps = num_steps
        budget = self.trace.chosen.get("budget")
        if budget is not None and self.strategy.cost(num_steps) > budget:
            raise ValueError(
                f"{type(pipe).__name__} takes a loop of {num_steps} steps, more than could be known before, so its "
                f"{self.strategy.num_particles} particles would take more than {budget} denoiser calls per image. Fix "
                "`num_particles` and `num_inference_steps` in place of the budget."
            )
        if self.strategy.goes_back:
            check_steps(pipe, self.call.arguments)
        self.solver.begin(num_steps, from_end=not self.call.stops_early)
        for caveat in self.strategy.caveats(num_steps) if self.warns else ():
            warnings.warn(caveat, stacklevel=2)
        search = self.strategy.start(
            Start(self.call.num_populations, num_steps, self.call.search_generators, facts(self.reward))
        )
        elite = bool(getattr(self.strategy, "elite", False))
        copying = self.strategy.copying(num_steps)
        if not self.strategy.looks and not is_known(pipe.scheduler):
            return search, num_steps, [True] * num_steps
        return search, num_steps, check_noise(pipe.scheduler, self.solver.timesteps, copying, elite, self.eta_at)

    def halt(self) -> None:
        """End the run with the x0 predictions of the event at hand."""
        self.engine.halting = True

    def finish(self, images: Any, *others: Any) -> Result:
        """Weigh and sort the final images."""
        call, rows = self.call, self.particles.rows
        self.engine.check_finished()
        finals = None
        if images is None:
            finals = FinalVideos(len(rows.distinct_live()[0]), call.output_type, self.ranks.size > 1)
            judgement = self._in_chunks(finals)
        else:
            images = self._live_of(images)
            judgement = self._judged(images)
        rewards = judgement.rewards
        outcome = self.engine.search.finish(rewards)
        self.reporter.of_finals(judgement, outcome, self.engine.events)
        estimates = self.engine.search.log_normalizer
        unknown = torch.full((call.num_populations,), torch.nan)
        self.trace.log_normalizer = (unknown if estimates is None else estimates).tolist()

        ranking = rewards if outcome.ranking is None else outcome.ranking
        order = ranking.argsort(dim=1, descending=True, stable=True)
        if finals is not None:
            frames = judgement.kept["frames"]
            images = finals.taken([row[i] for row, places in zip(frames, order.tolist()) for i in places])
        else:
            images = of_particles(images, rows, order)
            if call.output_type != "latent":
                images = convert(images, call.output_type)
        slots = rows.slots.gather(1, order)
        return Result(
            images,
            [of_particles(other, rows, order) for other in others],
            rewards.gather(1, order).float(),
            outcome.weights.log_normalized.gather(1, order).float(),
            torch.stack([torch.zeros_like(slots), slots], 2),
        )

    def _live_of(self, images: Any) -> Any:
        """What the pipeline returned, of the rows that are alive: latents, or images as a tensor."""
        call, rows = self.call, self.particles.rows
        if call.output_type != "latent":
            images = as_tensor(images, call.videos)
        if len(images) not in (rows.total, len(rows.live)):
            raise ValueError(
                f"{type(self.pipe).__name__} gives {len(images)} results where {rows.total} rows were denoised, so "
                "they cannot be told apart."
            )
        if len(images) == rows.total and not rows.all_live:
            images = images[rows.live.to(images.device)]
        return images

    def _judged(self, images: Tensor) -> Judgement:
        """Score final images, or where the loop stops before its end its last x0 predictions."""
        x0 = self.engine.last_x0
        if self.call.output_type == "latent" or x0 is not None:
            if x0 is None:
                self.watch.sample(images)
            self.watch.check_x0(images if x0 is None else x0, self.trace.num_steps - 1)
            return self.judge.of_latents(images if x0 is None else x0)
        self.watch.check_images(images)
        shown = within(self.shown(images) if self.shown else images)
        return self.judge.of_images(shown, self.engine.last_sample)

    def _in_chunks(self, finals: FinalVideos) -> Judgement:
        """Decode, score and collect the final videos."""
        latents = self.engine.last_sample
        assert latents is not None
        self.watch.sample(latents)
        self.watch.check_x0(latents, self.trace.num_steps - 1)

        def keep(videos: Tensor) -> list[Any]:
            self.watch.check_images(videos)
            return finals.keep(videos)

        self.scorer.keeps["frames"] = keep
        return self.judge.of_latents(latents)

    def _decoders(self) -> tuple[Decoder, Decoder | None, float]:
        """Of final latents, and of early x0 predictions up to some progress."""
        pipe, preview = self.pipe, self.strategy.preview
        plain = decodes_plainly(pipe) and not self.call.videos
        size = image_size(pipe, dict(self.call.arguments)) if plain else None
        decoder: Decoder = self.replay.images
        if plain:
            decoder = LatentDecoder(pipe, size=size)
        if preview is None:
            return decoder, None, 0.0
        own = None if self.autoencoder is None else self.autoencoder[1]
        small = preview_decoder(preview.decoder, pipe, own, plain, self.call.videos)
        early: Decoder = functools.partial(self.replay.images, vae=small)
        if plain:
            early = LatentDecoder(pipe, small, size)
        return decoder, early, preview.until


def facts(reward: Reward) -> RewardFacts:
    """What a strategy may know of a reward."""
    lmbda = real("default_lmbda", reward.default_lmbda, 0.0, optional=True)
    return RewardFacts(reward.name, lmbda, reward.at(1.0).relative, reward.standardize)

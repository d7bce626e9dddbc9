"""One pass of a stock pipeline over all particles of a call: what is wrapped, what is reported, what comes out."""

from __future__ import annotations

import functools
import inspect
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..report.trace import Stopwatch, Trace
from ..rewards.base import Reward
from ..search import Outcome, Plan, RewardFacts, Search, Start, Strategy
from ..smc import real
from .arguments import image_size
from .attention import stores_attention, with_attention
from .batches import run_on_live_rows
from .blocks import encoding_by
from .call import Call
from .callbacks import check_callback, with_callback
from .checks import check_caches, check_noise, check_steps
from .companions import Companion
from .components import (
    asks_for_x0,
    autoencoder_of,
    conditions_of_all,
    denoisers_of,
    is_control,
    is_modular,
    mixes_rows,
    parameters_of,
    schedulers_of,
    several_autoencoders,
)
from .conditions import InitialNoise, begins_with_image
from .cutoff import GuidanceCutoff
from .decode import Decoder, LatentDecoder, decodes_plainly
from .engine import Engine
from .events import Observer, ScoringEvent
from .execution import Execution
from .finals import FinalVideos, LeftBeforeDecoding
from .guiders import Guiders
from .inputs import Way, encoded_once, ways_of
from .interception import Replace, intercept, intercept_step
from .judging import Judge, Judgement
from .layout import Layout, UnknownLayoutError, as_containers, combine, known_layout, output_layout
from .outputs import as_tensor, convert, run_pipeline, tensor_type, within
from .particles import Followed, Particles
from .previews import preview_decoder
from .ranks import Ranks
from .readings import Readings
from .recorder import Recorder, thumbnails
from .replay import Replay, outline
from .schedulers import is_known, steps_from
from .scoring import Scorer
from .solver import Solver
from .watch import Watch
from .wordings import check_conditions, following


class Result(NamedTuple):
    """What a run gives: images, the pipeline's other outputs, rewards (P, k) and normalised log-weights (P, k); best
    first in each population, by reward unless the search ranks them otherwise. `origins` (P, k, 2) are the pass over
    the population, counted from zero, and the slot in which each was made."""

    images: Any
    others: list[Any]
    rewards: Tensor
    log_weights: Tensor
    origins: Tensor


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
        self.so_far: Callable[[Trace], Trace] = lambda trace: trace
        """What is known of the whole call, passes before this one included, given the trace of this one."""
        self.observers: list[Observer] = [Recorder(self.trace), *observers]
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
        self.denoisers = denoisers_of(pipe)
        check_caches(self.denoisers)
        self.cutoff = GuidanceCutoff(pipe, self.denoisers, strategy.guidance_stop)
        denoiser = next((one for one in self.denoisers.values() if not is_control(one)), None)
        vae = None if self.autoencoder is None else self.autoencoder[1]
        self.watch = Watch(denoiser, pipe.scheduler, vae, call.arguments.get("callback_on_step_end") is not None)
        self.engine = Engine(
            call, strategy, self.solver, self.particles, self.judge, self.begin, self.report_predictions, self.watch
        )
        self.initial_noise = InitialNoise()
        self.asks_for_x0 = asks_for_x0(pipe)
        self.shown: Callable[[Tensor], Tensor] | None = None
        """What makes images in [0, 1] of what the pipeline returns, where that is not in [0, 1]."""
        self._as_stock = False
        """Whether the pipeline gives tensors of another range than images have, which are given back as they are."""
        self._last: dict[str, Any] = {}
        """The last output of each denoiser."""
        self._layouts: dict[tuple[str, int, str], Layout] = {}

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
        for name, module in self.denoisers.items():
            # A module compiled in place bypasses `forward`; wrapping what it calls instead keeps its graph as it is.
            entry = "forward" if module._compiled_call_impl is None else "_compiled_call_impl"
            wrap(module, entry, functools.partial(self.forward, name, is_control(module), parameters_of(module)))
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

    def forward(
        self, name: str, control: bool, parameters: list[str], inner: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """In place of a denoiser's."""
        if self.replay.active:
            return self.replay.forward(name, inner, parameters, args, kwargs)
        if self.engine.halted is not None and name in self._last:
            return self._last[name]  # what is made of it is not used
        unguided = self.cutoff.over(self.solver.upcoming, self.trace.num_steps)
        if unguided and not control and self.cutoff.is_done:
            return self._last[name]
        sample = args[0] if args else kwargs[parameters[0]]
        if self._images_may_be_of_all and not self.trace.denoiser_calls:
            self.replay.check_images(name, parameters[0], sample)
        if control and "controlnet_cond" in kwargs:
            conditions = conditions_of_all(kwargs["controlnet_cond"], self.particles.rows.total, len(sample))
            kwargs = {**kwargs, "controlnet_cond": conditions}
        # Its attention compares what the batch holds of a row.
        together = getattr(self.pipe, "do_perturbed_attention_guidance", False) or mixes_rows(self.denoisers[name])
        size = self.execution.denoise_batch_size
        layout_of = functools.partial(self.layout, name)

        def on_rows(denoiser: Callable[..., Any]) -> tuple[Any, int, int]:
            return run_on_live_rows(
                denoiser,
                self.particles.rows,
                self.ranks,
                parameters,
                size,
                args,
                kwargs,
                layout_of,
                together,
                self.engine.size_of_row(sample),
                self.cutoff.half if unguided else None,
            )

        args, kwargs = self.with_own_wordings(name, parameters, sample, args, kwargs)
        with self.clock("denoiser"):
            stores = stores_attention(self.pipe)
            output, num_rows, copies = with_attention(self.pipe, inner, on_rows) if stores else on_rows(inner)
        self.replay.remember_output(name, sample, output)
        self._last[name] = output
        if not control and copies:
            self.cutoff.called(output, copies)
            self.trace.nfe += num_rows
            self.trace.nfe_saved += copies * int(self.particles.stopped.sum()) * (self.particles.number - 1)
            self.trace.denoiser_calls += 1
        return output

    def with_own_wordings(
        self, name: str, parameters: list[str], sample: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a denoiser in which every particle has the wording that it began with."""
        origins, wordings = self.particles.origins, self.call.wordings
        if origins is None or wordings is None:
            return args, kwargs
        if all(wordings[origin] == wordings[row] for row, origin in enumerate(origins.tolist())):
            return args, kwargs
        copies, rest = divmod(len(sample), len(origins) * self.engine.size_of_row(sample))
        if rest or not copies:
            return args, kwargs
        arguments = {**dict(zip(parameters, args)), **kwargs}
        check_conditions(arguments)
        followed = following(arguments, self.layout(name, arguments, copies), origins, copies, parameters[:1])
        return tuple(followed[name] for name in parameters[: len(args)]), {name: followed[name] for name in kwargs}

    def layout(self, name: str, arguments: Mapping[str, Any], copies: int) -> Layout:
        """Where the rows are in a denoiser's arguments."""
        sizes = name, copies, repr(outline(as_containers(arguments)))
        if sizes not in self._layouts:
            try:
                self._layouts[sizes] = known_layout(arguments, copies * self.particles.rows.total)
            except UnknownLayoutError:
                self._layouts[sizes] = self.replay.layout(name, arguments, copies)
        return self._layouts[sizes]

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
        self.replay.remember_encoded(encoded)
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

    @property
    def _images_may_be_of_all(self) -> bool:
        """Whether the pipeline was given an image for each row, and may take them for images of every row."""
        plain = isinstance(self.judge.decoder, LatentDecoder)
        return self.replay.way.repeats == "everything" and self.call.num_rows > 1 and not plain

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

    def report_predictions(
        self, index: int, judgement: Judgement, plan: Plan, followed: Followed, slots: Tensor
    ) -> None:
        """An event of the loop."""
        self.report(index, self.solver.timesteps[index], judgement, plan, slots, followed.ancestors, followed.lineage)

    def report(
        self,
        step: int,
        timestep: float | None,
        judgement: Judgement,
        decision: Plan | Outcome,
        slots: Tensor,
        ancestors: Tensor,
        lineage: Tensor,
    ) -> None:
        """Tell the observers."""
        self.trace.reward_calls = sum(self.scorer.calls.values())
        self.trace.reward_calls_by_part = dict(self.scorer.calls)
        event = ScoringEvent(
            step=step,
            num_steps=self.trace.num_steps,
            timestep=timestep,
            prompts=self.call.prompts,
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
            _stop=self.halt,
        )
        for observer in self.observers:
            observer(event)

    def halt(self) -> None:
        """End the run with the x0 predictions of the event at hand."""
        self.engine.halting = True

    def finish(self, images: Any, *others: Any) -> Result:
        """Weigh and sort the final images."""
        call, rows, x0 = self.call, self.particles.rows, self.engine.last_x0
        self.engine.check_finished()
        finals = None
        if images is None:
            finals = FinalVideos(len(rows.distinct_live()[0]), call.output_type, self.ranks.size > 1)
            judgement = self._in_chunks(finals)
        else:
            if call.output_type != "latent":
                images = as_tensor(images, call.videos)
            if len(images) not in (rows.total, len(rows.live)):
                raise ValueError(
                    f"{type(self.pipe).__name__} gives {len(images)} results where {rows.total} rows were denoised, so "
                    "they cannot be told apart."
                )
            if len(images) == rows.total and not rows.all_live:
                images = images[rows.live.to(images.device)]
            if call.output_type == "latent" or x0 is not None:
                if x0 is None:
                    self.watch.sample(images)
                self.watch.check_x0(images if x0 is None else x0, self.trace.num_steps - 1)
                judgement = self.judge.of_latents(images if x0 is None else x0)
            else:
                self.watch.check_images(images)
                shown = within(self.shown(images) if self.shown else images)
                judgement = self.judge.of_images(shown, self.engine.last_sample)
        rewards = judgement.rewards
        outcome = self.engine.search.finish(rewards)
        everyone = torch.arange(rewards.shape[1]).expand(rewards.shape)
        lineage = self.particles.lineage(self.engine.events)
        self.report(self.trace.num_steps, None, judgement, outcome, rows.slots, everyone, lineage)

        ranking = rewards if outcome.ranking is None else outcome.ranking
        order = ranking.argsort(dim=1, descending=True, stable=True)
        flat = rows.particles.gather(1, order).flatten()
        if finals is not None:
            frames = judgement.kept["frames"]
            images = finals.taken([row[i] for row, places in zip(frames, order.tolist()) for i in places])
        else:
            images = images[flat.to(images.device)]
            if call.output_type != "latent":
                images = convert(images, call.output_type)
        whole = rows.live[flat].tolist()

        def sort(other: Any) -> Any:
            if not isinstance(other, (list, np.ndarray, Tensor)) or len(other) not in (rows.total, len(rows.live)):
                return other
            index = whole if len(other) == rows.total else flat.tolist()
            return [other[i] for i in index] if isinstance(other, list) else other[index]

        sorted_others = [sort(other) for other in others]
        estimates = self.engine.search.log_normalizer
        unknown = torch.full((call.num_populations,), torch.nan)
        self.trace.log_normalizer = (unknown if estimates is None else estimates).tolist()
        log_weights = outcome.weights.log_normalized
        slots = rows.slots.gather(1, order)
        return Result(
            images,
            sorted_others,
            rewards.gather(1, order).float(),
            log_weights.gather(1, order).float(),
            torch.stack([torch.zeros_like(slots), slots], 2),
        )

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

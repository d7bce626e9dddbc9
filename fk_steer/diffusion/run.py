"""One pass of a stock pipeline over all particles of a call: what is wrapped, what is reported, what comes out."""

from __future__ import annotations

import functools
import inspect
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..loading import load_preview
from ..report.trace import Stopwatch, Trace
from ..rewards.base import Reward
from ..search import Outcome, Plan, RewardFacts, Search, Start, Strategy
from ..smc import brief, real
from .arguments import image_size
from .attention import stores_attention, with_attention
from .batches import run_on_live_rows
from .call import Call
from .callbacks import check_callback, with_callback
from .checks import check_noise, check_steps, denoiser_of
from .decode import LatentDecoder
from .engine import Engine
from .events import Observer, ScoringEvent
from .execution import Execution
from .judging import Judge, Judgement
from .particles import Followed, Particles
from .ranks import Ranks
from .recorder import Recorder, thumbnails
from .rows import join_rows
from .schedulers import intercept, intercept_step
from .scoring import Scorer
from .solver import Solver
from .watch import Watch


class Result(NamedTuple):
    """What a run gives: images, the pipeline's other outputs, rewards (P, k) and normalised log-weights (P, k); best
    first in each population."""

    images: Any
    others: list[Any]
    rewards: Tensor
    log_weights: Tensor


class Run:
    """One pass of a pipeline over all rows of a call.

    Args:
        call, strategy, reward, execution: what is asked for.
        ranks: who shares the work.
        observers: hear of every scoring event, after the recorder of the trace.
        thumbnail_side: of the pictures of x0 predictions kept in the trace, in pixels; None for none.
        warns: whether to warn where little or nothing is steered.
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
    ) -> None:
        self.warns = warns
        self.call, self.strategy, self.reward, self.execution, self.ranks = call, strategy, reward, execution, ranks
        check_callback(call.pipe, call.arguments, strategy.goes_back)
        self.pipe = pipe = call.pipe
        self.eta = strategy.noise.eta if call.eta is None else call.eta
        self.trace = Trace(list(call.prompts), reward.name, strategy.describe())
        self.observers: list[Observer] = [Recorder(self.trace), *observers]
        self.particles = Particles(call.num_populations, call.num_slots)
        self.solver = Solver(pipe.scheduler, self.eta_at, strategy.goes_back)
        self.clock = Stopwatch(pipe._execution_device)
        keep = None if thumbnail_side is None else thumbnails(thumbnail_side)
        self.scorer = Scorer(ranks, self.clock, execution, keep)
        decoder = LatentDecoder(pipe, size=image_size(pipe, dict(call.arguments)))
        preview, until = _preview(strategy, pipe, decoder)
        self.judge = Judge(reward, self.scorer, call.prompts, self.particles.rows, decoder, preview, until)
        self.watch = Watch(
            denoiser_of(pipe), pipe.scheduler, pipe.vae, call.arguments.get("callback_on_step_end") is not None
        )
        self.engine = Engine(
            call, strategy, self.solver, self.particles, self.judge, self.begin, self.report_predictions, self.watch
        )
        self.last_output: Any = None
        """Of the denoiser."""

    def __call__(self) -> Result:
        """Run the pipeline."""
        started = time.perf_counter()
        pipe = self.pipe
        with ExitStack() as patches:
            patches.enter_context(intercept_step(pipe.scheduler, self.engine.step))
            patches.enter_context(_intercept_forward(denoiser_of(pipe), self.denoise))
            if (controlnet := getattr(pipe, "controlnet", None)) is not None:
                patches.enter_context(_intercept_forward(controlnet, self.control))
            patches.enter_context(intercept(pipe.vae, "decode", lambda inner: functools.partial(self.decode, inner)))
            self.solver.prepare(patches)
            output = pipe(**with_callback(self.call.stock(), self.particles.rows.total))
        result = self.finish(*output)
        total = time.perf_counter() - started
        seconds = self.clock.seconds()
        parts = {part: seconds.get(part, 0.0) for part in ("denoiser", "decode", "reward")}
        self.trace.seconds = self.ranks.first({**parts, "rest": total - sum(parts.values()), "total": total})
        return result

    # The wrapped methods, beside the engine's.

    def run_denoiser(
        self, inner: Callable[..., Any], parameters: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, int, int]:
        # Its attention compares what the batch holds of a row.
        together = getattr(self.pipe, "do_perturbed_attention_guidance", False)
        size = self.execution.denoise_batch_size

        def on_rows(denoiser: Callable[..., Any]) -> tuple[Any, int, int]:
            return run_on_live_rows(denoiser, self.particles.rows, self.ranks, parameters, size, args, kwargs, together)

        with self.clock("denoiser"):
            return with_attention(self.pipe, inner, on_rows) if stores_attention(self.pipe) else on_rows(inner)

    def control(self, inner: Callable[..., Any], parameters: list[str], *args: Any, **kwargs: Any) -> Any:
        return self.run_denoiser(inner, parameters, args, kwargs)[0]

    def denoise(self, inner: Callable[..., Any], parameters: list[str], *args: Any, **kwargs: Any) -> Any:
        if self.engine.halted is not None:
            return self.last_output  # what is made of it is not used
        self.last_output, num_rows, copies = self.run_denoiser(inner, parameters, args, kwargs)
        self.trace.nfe += num_rows
        self.trace.nfe_saved += copies * int(self.particles.stopped.sum()) * (self.particles.number - 1)
        self.trace.denoiser_calls += 1
        return self.last_output

    def decode(self, inner: Callable[..., Any], z: Tensor, *args: Any, **kwargs: Any) -> Any:
        rows = self.particles.rows
        if z.shape[0] == rows.total:
            z = z[rows.live_on(z.device)]
        self.watch.sample(z)
        mine = z[self.ranks.rows(len(z))]
        chunks = mine.split(self.execution.decode_batch_size or len(mine))
        with self.clock("decode"):
            outputs = [inner(chunk, *args, **kwargs) for chunk in chunks]
            return join_rows(
                outputs, [len(chunk) for chunk in chunks], lambda images: self.ranks.gather(images, len(z))
            )

    # What the engine asks and says.

    def eta_at(self, index: int) -> float:
        """The noise of a step."""
        return self.eta if self.strategy.noise.on(index, self.trace.num_steps) else 0.0

    def begin(self, sample: Tensor) -> tuple[Search, int, list[bool]]:
        """At the first step: what can only be checked with the loop's timesteps, and the search."""
        pipe, rows = self.pipe, self.particles.rows
        if sample.shape[0] != rows.total:
            raise ValueError(
                f"{type(pipe).__name__} runs {sample.shape[0]} rows where {rows.total} were asked for by "
                "`num_images_per_prompt`, so particles and prompts cannot be told apart."
            )
        self.ranks.agree({"initial latents": sample})
        self.trace.num_steps = num_steps = getattr(pipe, "num_timesteps", None) or len(pipe.scheduler.timesteps)
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
            ancestors=ancestors,
            slots_after=self.particles.rows.slots,
            parents=lineage[:, :, 1],
            parent_events=lineage[:, :, 2],
            roots=lineage[:, :, 0],
            decision=decision,
            nfe=self.trace.nfe,
            reward_calls=self.trace.reward_calls,
            thumbnails=judgement.thumbnails,
            _decode=judgement.images,
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
        if call.output_type == "latent":
            images = images[rows.live.to(images.device)]
        if call.output_type == "latent" or x0 is not None:
            if x0 is None:
                self.watch.sample(images)
            self.watch.check_x0(images if x0 is None else x0, self.trace.num_steps - 1)
            judgement = self.judge.of_latents(images if x0 is None else x0)
        else:
            self.watch.check_images(images)
            judgement = self.judge.of_images(images.float())
        rewards = judgement.rewards
        outcome = self.engine.search.finish(rewards)
        everyone = torch.arange(rewards.shape[1]).expand(rewards.shape)
        lineage = self.particles.lineage(self.engine.events)
        self.report(self.trace.num_steps, None, judgement, outcome, rows.slots, everyone, lineage)

        order = rewards.argsort(dim=1, descending=True, stable=True)
        flat = rows.particles.gather(1, order).flatten()
        images = images[flat.to(images.device)]
        if call.output_type not in ("pt", "latent"):
            images = self.pipe.image_processor.pt_to_numpy(images)
        if call.output_type == "pil":
            images = self.pipe.image_processor.numpy_to_pil(images)
        sorted_others = [[other[i] for i in flat.tolist()] if isinstance(other, list) else other for other in others]
        estimates = self.engine.search.log_normalizer
        unknown = torch.full((call.num_populations,), torch.nan)
        self.trace.log_normalizer = (unknown if estimates is None else estimates).tolist()
        log_weights = outcome.weights.log_normalized
        return Result(images, sorted_others, rewards.gather(1, order).float(), log_weights.gather(1, order).float())


def facts(reward: Reward) -> RewardFacts:
    """What a strategy may know of a reward."""
    lmbda = real("default_lmbda", reward.default_lmbda, 0.0, optional=True)
    return RewardFacts(reward.name, lmbda, reward.at(1.0).relative, reward.standardize)


def _preview(strategy: Strategy, pipe: Any, decoder: LatentDecoder) -> tuple[LatentDecoder | None, float]:
    if strategy.preview is None:
        return None, 0.0
    small = strategy.preview.decoder
    small = load_preview(small, pipe) if isinstance(small, str) else small
    if not hasattr(small, "decode") or not hasattr(small, "config"):
        raise ValueError(
            f"Expected the preview's decoder to be an `AutoencoderTiny`, or the hub id or path of one, but got "
            f"{brief(small)}."
        )
    small.to(pipe._execution_device, pipe.vae.dtype)
    return LatentDecoder(pipe, small, decoder.size), strategy.preview.until


def _intercept_forward(module: Any, run: Callable[..., Any]) -> Any:
    """Context manager in which calling the module calls `run(inner, parameters, ...)`."""
    parameters = list(inspect.signature(getattr(module, "_orig_mod", module).forward).parameters)
    # A module compiled in place bypasses `forward`; wrapping what it calls instead keeps its graph as it is.
    entry = "forward" if module._compiled_call_impl is None else "_compiled_call_impl"
    return intercept(module, entry, lambda inner: functools.partial(run, inner, parameters))

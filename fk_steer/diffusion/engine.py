"""The engine: carries out, inside a stock pipeline's own loop, what a search says."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from ..loading import load_preview
from ..rewards.base import Reward
from ..search import Look, Outcome, Plan, RewardFacts, Search, Start, Strategy, place
from ..trace import Stopwatch, Trace
from .arguments import image_size
from .batches import run_on_live_rows
from .call import Call
from .checks import check_noise, denoiser_of
from .decode import LatentDecoder
from .events import Observer, ScoringEvent
from .execution import Execution
from .judging import Judge
from .ranks import Ranks
from .recorder import Recorder, thumbnails
from .rows import Rows, join_rows, map_rows
from .schedulers import intercept, intercept_step
from .scoring import Scorer
from .solver import Solver, States


class Result(NamedTuple):
    """What a run gives: images, the pipeline's other outputs, rewards (P, k) and normalised log-weights (P, k); best
    first in each population."""

    images: Any
    others: list[Any]
    rewards: Tensor
    log_weights: Tensor


class Memory(NamedTuple):
    """R particles of each population as they were at a step.

    Attributes:
        states: P * R, population by population.
        lineage: (P, R, 3) root, slot and number of the event at which each was seen.
    """

    states: States
    lineage: Tensor


class Engine:
    """One pass of a pipeline over all rows of a call.

    Args:
        call, strategy, reward, execution: what is asked for.
        ranks: who shares the work.
        observers: hear of every scoring event, after the recorder of the trace.
        thumbnail_side: of the pictures of x0 predictions kept in the trace, in pixels; None for none.
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
    ) -> None:
        self.call, self.strategy, self.reward, self.execution, self.ranks = call, strategy, reward, execution, ranks
        pipe = call.pipe
        self.pipe = pipe
        self.rows = Rows(call.num_populations, call.num_slots)
        self.eta = strategy.noise.eta if call.eta is None else call.eta
        self.solver = Solver(pipe.scheduler, self.eta_at, strategy.goes_back)
        self.clock = Stopwatch(pipe._execution_device)
        keep = None if thumbnail_side is None else thumbnails(thumbnail_side)
        scorer = Scorer(ranks, self.clock, execution, keep)
        self.judge = Judge(scorer, call.prompts, self.rows)
        self.decoder = self.preview = LatentDecoder(pipe, size=image_size(pipe, dict(call.arguments)))
        if strategy.preview is not None:
            decoder = strategy.preview.decoder
            decoder = load_preview(decoder, pipe) if isinstance(decoder, str) else decoder
            decoder.to(pipe._execution_device, pipe.vae.dtype)
            self.preview = LatentDecoder(pipe, decoder, self.decoder.size)
        self.trace = Trace(list(call.prompts), reward.name, strategy.describe())
        self.observers: list[Observer] = [Recorder(self.trace), *observers]
        self.num_steps = 0
        self.search = Search()
        self.parting: list[bool] = []
        self.overdue = False
        """Whether an event has been waiting for a two-stage solver's next whole step."""
        self.quiet: Tensor | None = None
        """(P, K) particles without noise until the next plan, beside those that have stopped."""
        self.stopped = torch.zeros(call.num_populations, dtype=torch.bool)
        self.roots = self.rows.slots
        """(P, K) the initial particle that each descends from."""
        self.memory: dict[int, Memory] = {}
        self.halted: Tensor | None = None
        """(L, ...) what became the images when an observer ended the run."""
        self.halting = False
        self.last_output: Any = None
        self.seen: Callable[..., ScoringEvent] | None = None
        """Makes the event of the scores just seen, once it is known what the particles do."""
        self.unfinished = call.arguments.get("denoising_end") is not None
        """The loop stops before its end, so what is scored then is an x0 prediction."""
        self.last_x0: Tensor | None = None

    def __call__(self) -> Result:
        """Run the pipeline."""
        started = time.perf_counter()
        with ExitStack() as patches:
            pipe = self.pipe
            patches.enter_context(intercept_step(pipe.scheduler, self.step))
            patches.enter_context(_intercept_forward(denoiser_of(pipe), self.denoise))
            if (controlnet := getattr(pipe, "controlnet", None)) is not None:
                patches.enter_context(_intercept_forward(controlnet, self.control))
            patches.enter_context(intercept(pipe.vae, "decode", lambda inner: functools.partial(self.decode, inner)))
            self.solver.prepare(patches)
            output = pipe(**self.call.stock())
        result = self.finish(*output)
        total = time.perf_counter() - started
        seconds = self.clock.seconds()
        parts = {part: seconds.get(part, 0.0) for part in ("denoiser", "decode", "reward")}
        self.trace.seconds = self.ranks.first({**parts, "rest": total - sum(parts.values()), "total": total})
        return result

    # The wrapped methods.

    def run_denoiser(
        self, inner: Callable[..., Any], parameters: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, int, int]:
        # Its attention compares what the batch holds of a row.
        together = getattr(self.pipe, "do_perturbed_attention_guidance", False)
        size = self.execution.denoise_batch_size
        with self.clock("denoiser"):
            return run_on_live_rows(inner, self.rows, self.ranks, parameters, size, args, kwargs, together)

    def control(self, inner: Callable[..., Any], parameters: list[str], *args: Any, **kwargs: Any) -> Any:
        return self.run_denoiser(inner, parameters, args, kwargs)[0]

    def denoise(self, inner: Callable[..., Any], parameters: list[str], *args: Any, **kwargs: Any) -> Any:
        if self.halted is not None:
            return self.last_output  # what is made of it is not used
        output, num_rows, copies = self.run_denoiser(inner, parameters, args, kwargs)
        self.trace.nfe += num_rows
        self.trace.nfe_saved += copies * int(self.stopped.sum()) * (self.rows.slots.shape[1] - 1)
        self.trace.denoiser_calls += 1
        self.last_output = output
        return output

    def decode(self, inner: Callable[..., Any], z: Tensor, *args: Any, **kwargs: Any) -> Any:
        if z.shape[0] == self.rows.total:
            z = z[self.rows.live_on(z.device)]
        mine = z[self.ranks.rows(len(z))]
        chunks = mine.split(self.execution.decode_batch_size or len(mine))
        with self.clock("decode"):
            outputs = [inner(chunk, *args, **kwargs) for chunk in chunks]
            return join_rows(
                outputs, [len(chunk) for chunk in chunks], lambda images: self.ranks.gather(images, len(z))
            )

    def step(
        self, inner: Callable[..., Any], model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        if not self.num_steps:
            self.begin(sample)
        index = self.solver.advance()
        if self.halted is not None:
            return self._to_all_rows(_output(self.halted, kwargs), len(self.halted))
        if not self.rows.all_live:
            live = self.rows.live_on(sample.device)
            model_output, sample = model_output[live], sample[live]

        plan, moved = None, None
        # Its noise is that of the rows in which it was before.
        rows = self.rows.live
        if self.due(index):
            x0 = self.solver.x0(index, model_output, sample)
            states = States(sample, model_output, x0, self.solver.snapshot() if self.strategy.goes_back else {})
            plan = self.look(index, x0)
            states, moved = self.follow(index, plan, states)
            if not plan.after_noise:
                rows, model_output, sample = self.rows.live, states.model_output, states.sample
            if self.halting:
                self.halted = states.x0.to(sample.dtype)
                self.last_x0 = states.x0 if self.unfinished else None
                return self._to_all_rows(_output(self.halted, kwargs), len(self.halted))
            if plan.resume is not None:
                sample = self.resume(index, plan, states).to(sample.dtype)
                return self._to_all_rows(_output(sample, kwargs), len(sample))
        if self.unfinished and self.solver.whole_step:
            self.last_x0 = self.solver.x0(index, model_output, sample)

        kwargs.pop("eta", None)
        generators = [self.call.generators[row] for row in rows.tolist()]
        quiet = self.quiet_rows(rows, sample.device)
        output = self.solver.step(inner, index, quiet, generators, model_output, timestep, sample, *args, **kwargs)
        if moved is not None and plan is not None and plan.after_noise:
            moved = moved.to(sample.device)
            self.solver.gather(sample.shape, moved)
            output = map_rows(lambda tensor: tensor[moved], output, len(sample))
            self.last_x0 = None if self.last_x0 is None else self.last_x0[moved]
        elif self.parting[index]:
            self.rows.part(None if quiet is None else self._quiet_mask(self.rows.live))
        return self._to_all_rows(output, len(self.rows.live))

    # What they are made of.

    def begin(self, sample: Tensor) -> None:
        """Checks that need the loop's timesteps, and the search."""
        if sample.shape[0] != self.rows.total:
            raise ValueError(
                f"{type(self.pipe).__name__} runs {sample.shape[0]} rows where {self.rows.total} were asked for by "
                "`num_images_per_prompt`, so particles and prompts cannot be told apart."
            )
        self.ranks.agree({"initial latents": sample})
        self.num_steps = getattr(self.pipe, "num_timesteps", None) or len(self.pipe.scheduler.timesteps)
        self.trace.num_steps = self.num_steps
        self.solver.begin(self.num_steps, from_end=not self.unfinished)
        self.search = self.strategy.start(
            Start(self.call.num_populations, self.num_steps, self.call.search_generators, facts(self.reward))
        )
        copying = self.strategy.copying(self.num_steps)
        elite = bool(getattr(self.strategy, "elite", False))
        self.parting = check_noise(self.pipe.scheduler, self.solver.timesteps, copying, elite, self.eta_at)

    def due(self, index: int) -> bool:
        """Whether an event is due at this step. In the second stage of a two-stage solver it waits for the next step,
        but not for one after which there are only the final images."""
        now = index in self.search.events
        due, self.overdue = now or self.overdue, False
        if not due or (not now and index >= self.num_steps - 1):
            return False
        self.overdue = not self.solver.whole_step
        return not self.overdue

    def eta_at(self, index: int) -> float:
        """The noise of a step."""
        return self.eta if self.strategy.noise.on(index, self.num_steps) else 0.0

    def look(self, index: int, x0: Tensor) -> Plan:
        """Score the x0 predictions (L, ...) of the live rows and hear what the search says."""
        progress = (index + 1) / self.num_steps
        reward, final = self.reward.at(progress), self.reward.at(1.0)
        preview = self.strategy.preview
        decoder = self.preview if preview is not None and progress < preview.until else self.decoder
        scored = index not in self.search.unscored
        if scored:
            rewards, scores = self.judge.of_latents(reward, x0, decoder, f"at step {index}")
        else:
            rewards, scores = torch.zeros(self.rows.slots.shape, dtype=torch.float64), {}
        self.seen = None
        if scored:
            decode = functools.partial(self.judge.decoded, x0, decoder, self.rows.particles)
            self.seen = functools.partial(self.event, index, self.solver.timesteps[index], rewards, scores, decode)
        noisy = max(self.eta_at(index), self.eta_at(index + 1)) > 0.0
        same_scale = reward.leaves == final.leaves
        return self.search.step(Look(index, self.num_steps, self.rows.slots, rewards, noisy, same_scale))

    def follow(self, index: int, plan: Plan, states: States) -> tuple[States, Tensor | None]:
        """Let the particles go on as the plan says.

        Returns:
            The states of the rows alive now, and which of those alive before each continues (None: all their own). With
            `after_noise` the states are those of before.
        """
        slots_before = self.rows.slots
        K = slots_before.shape[1]
        slots, order = place(plan.ancestors, slots_before, self.call.num_slots)
        ancestors = plan.ancestors.gather(1, order)
        if plan.stopped is not None and plan.stopped.any():
            slots = torch.where(plan.stopped[:, None], slots[:, :1], slots)
        self.search.adopt(ancestors)

        memory = self.memory.get(plan.resume if plan.resume is not None and plan.by == "memory" else index)
        lineage = self._lineage()
        number, where = len(states.sample), self.rows.particles
        if memory is not None:
            R = memory.lineage.shape[1]
            where = torch.cat([where, number + torch.arange(len(memory.states.sample)).view(-1, R)], 1)
            lineage = torch.cat([lineage, memory.lineage], 1)
        recalls = bool((plan.ancestors >= K).any()) or (plan.remember is not None and bool((plan.remember >= K).any()))
        if recalls and memory is None:
            raise ValueError("The search continues remembered particles, but none are remembered at this step.")
        known = states if memory is None or not recalls else _recalled(states, memory.states, plan)
        if plan.remember is not None:
            kept = where.gather(1, plan.remember).flatten()
            picked = lineage.gather(1, plan.remember[:, :, None].expand(-1, -1, 3))
            self.memory[index] = Memory(known.take(kept), picked)

        lineage = lineage.gather(1, ancestors[:, :, None].expand(-1, -1, 3))
        continued = where.gather(1, ancestors)
        noised = plan.resume is not None and plan.by == "renoise"
        moved = self.rows.move(slots, continued, plan.asleep, noised)
        self.roots = lineage[:, :, 0]
        self.stopped = self.stopped if plan.stopped is None else plan.stopped
        self.quiet = None if plan.quiet is None else plan.quiet.gather(1, order)
        if self.seen is not None:
            self.announce(self.seen(slots_before, ancestors, lineage, plan))
        if moved is None or (plan.after_noise and not self.halting):
            return states, moved
        if recalls:
            states = known.take(moved)
            self.solver.restore(states.history)
        else:
            device_rows = moved.to(states.sample.device)
            self.solver.gather(states.sample.shape, device_rows)
            states = states.take(device_rows)
        return states, moved

    def resume(self, index: int, plan: Plan, states: States) -> Tensor:
        """Send the loop to another step; the samples (L, ...) to go on with there."""
        assert plan.resume is not None
        if plan.by == "memory":
            self.solver.restore(states.history)
            sample = states.sample
        elif plan.by == "leap":
            sample = self.solver.leap(index, plan.resume, states.x0, states.sample)
            self.solver.forget(plan.resume)
        else:
            generators = [self.call.generators[row] for row in self.rows.live.tolist()]
            sample = self.solver.renoise(plan.resume, states.x0, generators)
            self.solver.forget(plan.resume)
        self.solver.seek(plan.resume)
        return sample

    def event(
        self, index: int, timestep: float | None, rewards: Tensor, scores: dict[str, Tensor],
        decode: Callable[[], Tensor], slots: Tensor, ancestors: Tensor, lineage: Tensor, decision: Plan | Outcome,
    ) -> ScoringEvent:  # fmt: skip
        self.trace.reward_calls = sum(self.judge.scorer.calls.values())
        self.trace.reward_calls_by_part = dict(self.judge.scorer.calls)
        members, kept = self.judge.members, self.judge.scorer.kept
        return ScoringEvent(
            step=index,
            num_steps=self.num_steps,
            timestep=timestep,
            prompts=self.call.prompts,
            slots=slots,
            rewards=rewards,
            scores=scores,
            ancestors=ancestors,
            slots_after=self.rows.slots,
            parents=lineage[:, :, 1],
            parent_events=lineage[:, :, 2],
            roots=lineage[:, :, 0],
            decision=decision,
            nfe=self.trace.nfe,
            reward_calls=self.trace.reward_calls,
            thumbnails=[[kept[i] for i in row] for row in members.tolist()] if kept else [],
            _decode=decode,
            _stop=self.halt,
        )

    def announce(self, event: ScoringEvent) -> None:
        for observer in self.observers:
            observer(event)

    def halt(self) -> None:
        self.halting = True

    def quiet_rows(self, rows: Tensor, device: torch.device) -> Tensor | None:
        """(L,) on the device, which of the rows get no noise; None if all get theirs."""
        if self.quiet is None and not self.stopped.any():
            return None
        mask = self._quiet_mask(rows)
        return mask.to(device) if mask.any() else None

    def _quiet_mask(self, rows: Tensor) -> Tensor:
        mask = self.stopped[rows // self.call.num_slots]
        if self.quiet is not None:
            quiet = torch.zeros(self.rows.total, dtype=torch.bool)
            quiet[self.rows.of(self.rows.slots)[self.quiet]] = True
            mask = mask | quiet[rows]
        return mask

    def _lineage(self) -> Tensor:
        """(P, K, 3) root, slot and number of the event that comes next, of the particles alive."""
        slots = self.rows.slots
        number = torch.full_like(slots, len(self.trace.events))
        return torch.stack([self.roots, slots, number], 2)

    def _to_all_rows(self, output: Any, num_live: int) -> Any:
        if num_live == self.rows.total:
            return output
        return map_rows(lambda tensor: tensor[self.rows.positions_on(tensor.device)], output, num_live)

    def finish(self, images: Any, *others: Any) -> Result:
        """Weigh and sort the final images."""
        reward, where = self.reward.at(1.0), "for the final images"
        if self.call.output_type == "latent":
            images = images[self.rows.live.to(images.device)]
        particles = self.rows.particles
        if self.call.output_type == "latent" or self.last_x0 is not None:
            x0 = images if self.last_x0 is None else self.last_x0
            rewards, scores = self.judge.of_latents(reward, x0, self.decoder, where)
            decode: Callable[[], Tensor] = functools.partial(self.judge.decoded, x0, self.decoder, particles)
        else:
            final = images.float()
            rewards, scores = self.judge.of_images(reward, final, where)
            decode = lambda: final.cpu()[particles]  # noqa: E731
        outcome = self.search.finish(rewards)
        everyone = torch.arange(rewards.shape[1]).expand(rewards.shape)
        event = self.event(
            self.num_steps, None, rewards, scores, decode, self.rows.slots, everyone, self._lineage(), outcome
        )
        self.announce(event)

        order = rewards.argsort(dim=1, descending=True, stable=True)
        flat = particles.gather(1, order).flatten()
        images = images[flat.to(images.device)]
        if self.call.output_type not in ("pt", "latent"):
            images = self.pipe.image_processor.pt_to_numpy(images)
        if self.call.output_type == "pil":
            images = self.pipe.image_processor.numpy_to_pil(images)
        sorted_others = [[other[i] for i in flat.tolist()] if isinstance(other, list) else other for other in others]
        estimates = self.search.log_normalizer
        if estimates is None:
            estimates = torch.full((self.call.num_populations,), torch.nan)
        self.trace.log_normalizer = estimates.tolist()
        log_weights = outcome.weights.log_normalized
        return Result(images, sorted_others, rewards.gather(1, order).float(), log_weights.gather(1, order).float())


def facts(reward: Reward) -> RewardFacts:
    """What a strategy may know of a reward."""
    return RewardFacts(reward.name, reward.default_lmbda, reward.at(1.0).relative, reward.standardize)


def _recalled(states: States, remembered: States, plan: Plan) -> States:
    """The present states followed by the remembered ones; of another step, those count alone."""
    if plan.resume is None or plan.by != "memory":
        return states.join(remembered)
    padding = torch.zeros(len(states.sample), dtype=torch.long)
    return remembered.take(torch.cat([padding, torch.arange(len(remembered.sample))]))


def _output(sample: Tensor, options: dict[str, Any]) -> Any:
    """What a scheduler's step returns for samples."""
    return (sample, sample) if options.get("return_dict") is False else SchedulerOutput(prev_sample=sample)


def _intercept_forward(module: Any, run: Callable[..., Any]) -> Any:
    """Context manager in which calling the module calls `run(inner, parameters, ...)`."""
    parameters = list(inspect.signature(getattr(module, "_orig_mod", module).forward).parameters)
    # A module compiled in place bypasses `forward`; wrapping what it calls instead keeps its graph as it is.
    entry = "forward" if module._compiled_call_impl is None else "_compiled_call_impl"
    return intercept(module, entry, lambda inner: functools.partial(run, inner, parameters))

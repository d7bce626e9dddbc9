"""One call of a steered pipeline: what the wrapped methods do."""

from __future__ import annotations

import copy
import functools
import inspect
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import FKSteering
from ..loading import load_preview
from ..report.trace import Stopwatch, Trace, TraceEvent
from ..rewards.base import RewardFunction, combine, name_of, particle_scores, parts_of, reward_at, standardize
from ..smc import BIASED, POTENTIALS, RESAMPLERS, Population
from .arguments import image_size, names_per_prompt, number_of_prompts, per_row, reward_prompts
from .checks import check_noise, denoiser_of
from .decode import LatentDecoder
from .generators import draw_seed, particle_generators
from .live_rows import Rows, join_rows, map_rows, run_on_live_rows
from .parallel import Ranks
from .schedulers import (
    accepts,
    gather_history,
    in_first_order_stage,
    intercept,
    intercept_step,
    noise_switched,
    predict_x0,
)
from .scoring import Scorer


class Result(NamedTuple):
    """What a run gives: images, the pipeline's other outputs, rewards (P, k) and normalised log-weights (P, k); best
    first in each population."""

    images: Any
    others: list[Any]
    rewards: Tensor
    log_weights: Tensor


class Run:
    """One call of a steered pipeline.

    Args:
        pipe, reward, steering: of the steered pipeline.
        lmbda: resolved from the settings and the reward.
        arguments: of the pipeline's own call, by name.
        reward_prompt: what the reward reads in place of the prompts.
        ranks: who shares the work.
    """

    def __init__(
        self,
        pipe: Any,
        reward: RewardFunction,
        steering: FKSteering,
        lmbda: float | None,
        arguments: dict[str, Any],
        reward_prompt: str | Sequence[str] | None,
        ranks: Ranks,
    ) -> None:
        self.pipe, self.reward, self.steering, self.ranks = pipe, reward, steering, ranks
        ranks.agree(
            {
                **arguments,
                "reward_prompt": reward_prompt,
                "reward": name_of(reward),
                "steering": steering.to_dict(),
                "lmbda": lmbda,
                "pipeline": (type(pipe).__name__, str(pipe.dtype)),
                "scheduler": (type(pipe.scheduler).__name__, pipe.scheduler.config),
            }
        )
        self.output_type = arguments.pop("output_type", "pil")
        self.eta = arguments.pop("eta", steering.eta)
        generator = arguments.pop("generator", None)
        self.per_prompt = arguments.pop("num_images_per_prompt", None) or 1
        self.arguments = arguments

        num_prompts = number_of_prompts(arguments)
        texts = reward_prompts(arguments, reward_prompt, num_prompts)
        self.prompts = [text for text in texts for _ in range(self.per_prompt)]
        self.rows_per_prompt = self.per_prompt * steering.num_particles
        self.rows = Rows(len(self.prompts), steering.num_particles)
        latents = arguments.get("latents")
        if latents is not None and len(latents) != self.rows.total:
            raise ValueError(f"Expected `latents` for {self.rows.total} particles, but got {len(latents)}.")
        seed = steering.seed
        if generator is None and seed is None:
            seed = ranks.first(draw_seed())
        self.generators, self.resampling = particle_generators(
            generator, seed, num_prompts, self.per_prompt, steering.num_particles
        )
        self.population = Population(
            len(self.prompts),
            steering.num_particles,
            lmbda,
            potential=POTENTIALS[steering.potential],
            resampler=RESAMPLERS[steering.resampler],
            tempering=steering.tempering,  # type: ignore[arg-type]
            ess_threshold=steering.ess_threshold,
            floor=steering.floor,
            exact_terminal=steering.exact_terminal,
            generator=self.resampling,
        )
        self.standardize = steering.standardize or getattr(reward, "standardize", False)
        self.decoder = self.preview = LatentDecoder(pipe, size=image_size(pipe, arguments))
        if steering.preview_decoder is not None:
            preview = steering.preview_decoder
            preview = load_preview(preview, pipe) if isinstance(preview, str) else preview
            preview.to(pipe._execution_device, pipe.vae.dtype)
            self.preview = LatentDecoder(pipe, preview, self.decoder.size)
        self.clock = Stopwatch(pipe._execution_device)
        self.scorer = Scorer(ranks, self.clock, steering.decode_batch_size, steering.reward_batch_size)
        self.trace = Trace(list(self.prompts), name_of(reward), steering.to_dict())
        self.index = 0
        self.events: dict[int, int] = {}
        self.stopped = torch.zeros(len(self.prompts), dtype=torch.bool)
        self.elite: Tensor | None = None
        """(P,) slots of the particles that go on without noise."""
        self.unfinished = arguments.get("denoising_end") is not None
        """The loop stops before its end, so what is scored then is an x0 prediction."""
        self.last_x0: Tensor | None = None

    def __call__(self) -> Result:
        """Run the pipeline."""
        started = time.perf_counter()
        with ExitStack() as patches:
            patches.enter_context(intercept_step(self.pipe.scheduler, self.step))
            patches.enter_context(_intercept_forward(denoiser_of(self.pipe), self.denoise))
            if (controlnet := getattr(self.pipe, "controlnet", None)) is not None:
                patches.enter_context(_intercept_forward(controlnet, self.control))
            patches.enter_context(
                intercept(self.pipe.vae, "decode", lambda inner: functools.partial(self.decode, inner))
            )
            output = self.pipe(
                **per_row(
                    self.arguments,
                    names_per_prompt(self.pipe),
                    len(self.prompts) // self.per_prompt,
                    self.rows_per_prompt,
                ),
                generator=self.generators,
                output_type="latent" if self.output_type == "latent" else "pt",
                return_dict=False,
            )
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
        with self.clock("denoiser"):
            return run_on_live_rows(
                inner, self.rows, self.ranks, parameters, self.steering.denoise_batch_size, args, kwargs, together
            )

    def control(self, inner: Callable[..., Any], parameters: list[str], *args: Any, **kwargs: Any) -> Any:
        return self.run_denoiser(inner, parameters, args, kwargs)[0]

    def denoise(self, inner: Callable[..., Any], parameters: list[str], *args: Any, **kwargs: Any) -> Any:
        output, num_rows, copies = self.run_denoiser(inner, parameters, args, kwargs)
        self.trace.nfe += num_rows
        self.trace.nfe_saved += copies * int(self.stopped.sum()) * (self.population.size - 1)
        self.trace.denoiser_calls += 1
        return output

    def decode(self, inner: Callable[..., Any], z: Tensor, *args: Any, **kwargs: Any) -> Any:
        if z.shape[0] == self.rows.total:
            z = z[self.rows.live.to(z.device)]
        mine = z[self.ranks.rows(len(z))]
        chunks = mine.split(self.steering.decode_batch_size or len(mine))
        with self.clock("decode"):
            outputs = [inner(chunk, *args, **kwargs) for chunk in chunks]
            return join_rows(
                outputs, [len(chunk) for chunk in chunks], lambda images: self.ranks.gather(images, len(z))
            )

    def step(
        self, inner: Callable[..., Any], model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        if self.index == 0:
            self.start(sample)
        scheduler = self.pipe.scheduler
        if len(self.rows.live) < self.rows.total:
            live = self.rows.live.to(sample.device)
            model_output, sample = model_output[live], sample[live]

        moved = None
        rows = self.rows.live
        if (size := self.due()) is not None:
            moved = self.score(timestep, predict_x0(scheduler, model_output, timestep, sample), size)
        if moved is not None and not self.steering.resample_after_noise:
            moved = moved.to(sample.device)
            gather_history(scheduler, sample.shape, moved)
            model_output, sample = model_output[moved], sample[moved]
            rows = self.rows.live
        if self.unfinished and in_first_order_stage(scheduler):
            self.last_x0 = predict_x0(scheduler, model_output, timestep, sample)

        kwargs.pop("eta", None)
        output = self.take_step(inner, rows, model_output, timestep, sample, *args, **kwargs)

        if moved is not None and self.steering.resample_after_noise:
            moved = moved.to(sample.device)
            gather_history(scheduler, sample.shape, moved)
            output = map_rows(lambda tensor: tensor[moved], output, len(sample))
            self.last_x0 = None if self.last_x0 is None else self.last_x0[moved]
        self.index += 1
        num_live = len(self.rows.live)
        if num_live == self.rows.total:
            return output
        return map_rows(lambda tensor: tensor[self.rows.positions().to(tensor.device)], output, num_live)

    # What they are made of.

    def start(self, sample: Tensor) -> None:
        """Checks that need the loop's timesteps."""
        if sample.shape[0] != self.rows.total:
            raise ValueError(
                f"{type(self.pipe).__name__} runs {sample.shape[0]} rows where {self.rows.total} were asked for by "
                "`num_images_per_prompt`, so particles and prompts cannot be told apart."
            )
        self.ranks.agree({"initial latents": sample})
        scheduler = self.pipe.scheduler
        timesteps = scheduler.timesteps
        num_steps = getattr(self.pipe, "num_timesteps", None) or len(timesteps)
        self.trace.num_steps = num_steps
        self.events = self.steering.schedule.events(num_steps, self.steering.num_particles)
        start = 0 if self.unfinished else len(timesteps) - num_steps
        check_noise(scheduler, timesteps[start : start + num_steps], self.steering, self.events, self.eta_at)

    def due(self) -> int | None:
        """How many particles to keep if a scoring event is due at this step, else None. In the second stage of a
        two-stage solver the event waits for the next step."""
        passed = [step for step in self.events if step <= self.index]
        if not passed or not in_first_order_stage(self.pipe.scheduler) or self.index >= self.trace.num_steps - 1:
            return None
        return [self.events.pop(step) for step in passed][-1]

    def eta_at(self, index: int) -> float:
        return self.eta if self.steering.schedule.injects_noise(index, self.trace.num_steps) else 0.0

    def score(self, timestep: Any, x0: Tensor, size: int) -> Tensor | None:
        """Score the x0 predictions (L, ...) of the live rows and resample.

        Returns:
            See `Rows.resample`.
        """
        progress = (self.index + 1) / self.trace.num_steps
        reward = reward_at(self.reward, progress)
        decoder = self.preview if progress < self.steering.preview_until else self.decoder
        rewards, scores = self.rewards_of_latents(reward, x0, decoder, f"at step {self.index}")
        values = standardize(rewards) if self.standardize else rewards
        # A cascade's cheap reward has another scale.
        if self.steering.target_reward is not None and reward is reward_at(self.reward, 1.0):
            self.stopped |= (rewards >= self.steering.target_reward).any(1)
        event = self.population.step(values, progress, size, collapse=self.stopped, keep=self.elite_among(values))
        self.record(event, rewards, scores, step=self.index, progress=progress, timestep=float(timestep))
        return self.rows.resample(event.slots, event.parents, self.stopped)

    def elite_among(self, rewards: Tensor) -> Tensor | None:
        """(P,) index of the particles that go on without noise. They are chosen at the first event with noise in its
        step or the next."""
        if self.elite is None:
            noise_ahead = max(self.eta_at(self.index), self.eta_at(self.index + 1)) > 0.0
            if not self.steering.elite or not noise_ahead:
                return None
            self.elite = self.population.slots.gather(1, rewards.argmax(1, keepdim=True))[:, 0]
        return (self.population.slots == self.elite[:, None]).long().argmax(1)

    def take_step(
        self, inner: Callable[..., Any], rows: Tensor, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        """The scheduler's step for the rows `rows` (L,), with this step's noise, but none for those that go without."""
        scheduler, eta = self.pipe.scheduler, self.eta_at(self.index)
        quiet = self.quiet(rows) if eta > 0 else torch.zeros(0, dtype=torch.bool)

        def take(solver: Any, step: Callable[..., Any], eta: float, generators: list[torch.Generator]) -> Any:
            with noise_switched(solver, step, eta) as take_step:
                if accepts(take_step, "generator"):
                    kwargs["generator"] = generators
                return take_step(model_output, timestep, sample, *args, **kwargs)

        generators = [self.generators[row] for row in rows.tolist()]
        if not quiet.any():
            return take(scheduler, inner, eta, generators)
        # The same step without noise, by a copy with the same history, which the noise does not enter. A sampler that
        # draws all the same must not use up what the other rows' noise comes from.
        twin = _twin(scheduler)
        still = take(twin, twin.step, 0.0, [generator.clone_state() for generator in generators])
        noisy = take(scheduler, inner, eta, generators)
        mask = quiet.to(sample.device)
        stills = iter(_rows_of(still, len(sample)))

        def merge(tensor: Tensor) -> Tensor:
            return torch.where(mask.view(-1, *([1] * (tensor.ndim - 1))), next(stills), tensor)

        return map_rows(merge, noisy, len(sample))

    def quiet(self, rows: Tensor) -> Tensor:
        """(L,) which of the rows get no noise: the elite, and what is left of prompts that have stopped."""
        population = rows // self.steering.num_particles
        quiet = self.stopped[population]
        if self.elite is not None:
            quiet = quiet | (rows % self.steering.num_particles == self.elite[population])
        return quiet

    def rewards_of_latents(
        self, reward: RewardFunction, latents: Tensor, decoder: LatentDecoder, where: str
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Rewards (P, K) of the live rows' latents (L, ...), each distinct row scored once, and those of its parts."""
        position, inverse = self.rows.distinct_live()
        prompts = [self.prompt_of(row) for row in self.rows.live[position].tolist()]
        scores = self.scorer.of_latents(parts_of(reward), latents[position.to(latents.device)], decoder, prompts, where)
        return self.combined(reward, scores, inverse, where)

    def combined(
        self, reward: RewardFunction, scores: dict[str, Any], scored: Tensor, where: str
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """From scores of distinct images to rewards (P, K) of the particles, and the scores likewise.

        Args:
            scored: (L,) which of the images each live row is.
        """
        members = scored[self.rows.positions()[self.rows.of(self.population.slots)]]

        def of_prompts(share: slice) -> dict[str, Tensor]:
            return {
                name: particle_scores(part, scores[name], members[share], self.prompts[share], where)
                for name, part in parts_of(reward).items()
            }

        with self.clock("reward"):
            by_particle = self.ranks.map(of_prompts, len(self.prompts))
        return combine(reward, by_particle), by_particle

    def prompt_of(self, row: int) -> str:
        return self.prompts[row // self.steering.num_particles]

    def record(self, event: Any, rewards: Tensor, scores: dict[str, Tensor], **where: Any) -> None:
        self.trace.reward_calls = sum(self.scorer.calls.values())
        self.trace.reward_calls_by_part = dict(self.scorer.calls)
        self.trace.events.append(
            TraceEvent.record(
                event,
                rewards=rewards.tolist(),
                scores={name: score.tolist() for name, score in scores.items()},
                stopped=self.stopped.tolist(),
                nfe=self.trace.nfe,
                reward_calls=self.trace.reward_calls,
                **where,
            )
        )

    def finish(self, images: Any, *others: Any) -> Result:
        """Weigh and sort the final images."""
        reward, where = reward_at(self.reward, 1.0), "for the final images"
        if self.output_type == "latent":
            images = images[self.rows.live.to(images.device)]
        if self.output_type == "latent" or self.last_x0 is not None:
            x0 = images if self.last_x0 is None else self.last_x0
            rewards, scores = self.rewards_of_latents(reward, x0, self.decoder, where)
        else:
            prompts = [self.prompt_of(row) for row in self.rows.live.tolist()]
            live_scores = self.scorer.of_images(parts_of(reward), images.float(), prompts, where)
            rewards, scores = self.combined(reward, live_scores, torch.arange(len(prompts)), where)
        event = self.population.finish(standardize(rewards) if self.standardize else rewards)
        self.record(event, rewards, scores, step=self.trace.num_steps, progress=1.0, timestep=None)

        order = rewards.argsort(dim=1, descending=True, stable=True)
        rows = self.rows.of(self.population.slots).gather(1, order)
        flat = self.rows.positions()[rows].flatten()
        images = images[flat.to(images.device)]
        if self.output_type not in ("pt", "latent"):
            images = self.pipe.image_processor.pt_to_numpy(images)
        if self.output_type == "pil":
            images = self.pipe.image_processor.numpy_to_pil(images)
        sorted_others = [[other[i] for i in flat.tolist()] if isinstance(other, list) else other for other in others]

        estimates = self.population.log_normalizer
        biased = RESAMPLERS[self.steering.resampler] in BIASED or self.elite is not None or self.stopped.any()
        relative = any(getattr(part, "relative", False) for part in (reward, *parts_of(reward).values()))
        if biased or relative or self.standardize or not self.steering.exact_terminal:
            estimates = torch.full_like(estimates, torch.nan)
        self.trace.log_normalizer = estimates.tolist()
        return Result(
            images, sorted_others, rewards.gather(1, order).float(), event.log_weights.gather(1, order).float()
        )


def _intercept_forward(module: Any, run: Callable[..., Any]) -> Any:
    """Context manager in which calling the module calls `run(inner, parameters, ...)`."""
    parameters = list(inspect.signature(getattr(module, "_orig_mod", module).forward).parameters)
    # A module compiled in place bypasses `forward`; wrapping what it calls instead keeps its graph as it is.
    entry = "forward" if module._compiled_call_impl is None else "_compiled_call_impl"
    return intercept(module, entry, lambda inner: functools.partial(run, inner, parameters))


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

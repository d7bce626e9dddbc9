"""`steer`: Feynman-Kac steering of a Diffusers pipeline, whose own loop is the one that runs.

For the length of one call three methods are wrapped: `scheduler.step`, where particles are scored and resampled; the
denoiser's forward, which runs on the rows that are alive and distinct; and `vae.decode`, which decodes the survivors.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderTiny, DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor

from ..config import FKSteering
from ..rewards.base import RewardFunction, evaluate, lmbda_for, name_of
from ..smc import POTENTIALS, RESAMPLERS, Population, TargetESS, top_k
from ..trace import Stopwatch, Trace, TraceEvent
from .decode import LatentDecoder
from .generators import particle_generators
from .live_rows import Rows, join_rows, map_rows, run_on_live_rows
from .schedulers import (
    accepts,
    gather_history,
    in_first_order_stage,
    intercept,
    intercept_step,
    noise_switched,
    parametrisation,
    parts_copies,
    predict_x0,
)


@dataclass
class SteeredOutput(BaseOutput):
    """Output of a steered call. N = number of prompts x `num_images_per_prompt` populations, k particles alive at the
    end in each.

    Attributes:
        images: N * k images in the `output_type` asked for, population by population, best reward first.
        rewards: (N, k) float32, in the same order.
        log_weights: (N, k) float32, normalised, in the same order: with the exact terminal weight, weighted images
            are samples of p(x0) exp(lambda r(x0)) / Z.
        trace: every scoring event and where the time went.
        nsfw_content_detected: as in Stable Diffusion's own output, in the same order; None if the pipeline has none.
    """

    images: Any
    rewards: Tensor | None = None
    log_weights: Tensor | None = None
    trace: Trace | None = None
    nsfw_content_detected: list[bool] | None = None


def steer(pipe: DiffusionPipeline, reward: RewardFunction, steering: FKSteering | str = "fk") -> SteeredPipeline:
    """Steer a text-to-image pipeline towards high reward.

    ```py
    with steer(pipe, reward, FKSteering(num_particles=4, lmbda=10.0)) as steered:
        out = steered(["a red circle", "two blue squares"], num_inference_steps=30)
    out.images[0]
    ```

    The pipeline is changed only while a call runs; the `with` block is optional.

    Args:
        pipe: a Stable Diffusion, Stable Diffusion XL, Stable Diffusion 3 or Flux pipeline, or another whose denoiser is
            `pipe.unet` or `pipe.transformer` and whose loop calls `pipe.scheduler.step` with one row per image.
        reward: any `Reward`, or a function (images (B, 3, H, W) in [0, 1], prompts) -> (B,).
        steering: settings, or the name of a preset.

    Raises:
        ValueError: for an unknown preset, a reward without a default lambda when the settings give none, or a scheduler
            whose x0 predictions cannot be computed.
    """
    return SteeredPipeline(pipe, reward, steering)


class SteeredPipeline:
    """What `steer` returns: call it as you would call the pipeline."""

    def __init__(self, pipe: DiffusionPipeline, reward: RewardFunction, steering: FKSteering | str = "fk") -> None:
        self.pipe = pipe
        self.reward = reward
        self.steering = FKSteering.preset(steering) if isinstance(steering, str) else steering
        self.lmbda = lmbda_for(reward, self.steering.lmbda)
        if isinstance(self.steering.tempering, TargetESS):
            self.lmbda = self.steering.lmbda
        elif self.lmbda is None:
            raise ValueError(
                f"Reward '{name_of(reward)}' has no `default_lmbda`. Set `lmbda` in the steering settings, or use the "
                "preset 'target-ess', which needs none."
            )
        if self.steering.schedule.at:
            parametrisation(pipe.scheduler)

    def __enter__(self) -> SteeredPipeline:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    @torch.no_grad()
    def __call__(self, *args: Any, reward_prompt: str | Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Run the pipeline with `num_particles` particles per image.

        Args:
            reward_prompt: text the reward sees, one or one per prompt; defaults to `prompt`. Needed when the pipeline
                is given `prompt_embeds`.
            *args, **kwargs: those of the pipeline's own `__call__`. `num_images_per_prompt` is the number of
                independent populations per prompt. `generator` may be one generator, one per prompt, or one per
                particle; every particle gets its own noise from it, whatever else is in the batch.

        Returns:
            A `SteeredOutput`, or with `return_dict=False` the pipeline's own tuple followed by rewards, log-weights
            and trace.

        Raises:
            ValueError: for arguments that do not fit together, a schedule that does not fit the loop, or copies of
                particles that would never part.
            RewardError: if the reward returns NaN or the wrong shape.
        """
        arguments = inspect.signature(self.pipe.__call__).bind(*args, **kwargs).arguments
        arguments |= arguments.pop("kwargs", {})
        return _Run(self, arguments, reward_prompt).run()


class _Run:
    """One call of a steered pipeline."""

    def __init__(
        self, steered: SteeredPipeline, arguments: dict[str, Any], reward_prompt: str | Sequence[str] | None
    ) -> None:
        self.pipe: Any = steered.pipe
        self.reward, self.steering = steered.reward, steered.steering
        self.output_type = arguments.pop("output_type", "pil")
        self.return_dict = arguments.pop("return_dict", True)
        self.eta = arguments.pop("eta", self.steering.eta)
        generator = arguments.pop("generator", None)
        per_prompt = arguments.pop("num_images_per_prompt", None) or 1
        self.arguments = arguments

        num_prompts = _number_of_prompts(arguments)
        self.prompts = [p for p in _reward_prompts(arguments, reward_prompt, num_prompts) for _ in range(per_prompt)]
        K = self.steering.num_particles
        self.rows = Rows(len(self.prompts) * K)
        latents = arguments.get("latents")
        if latents is not None and len(latents) != self.rows.total:
            raise ValueError(f"Expected `latents` for {self.rows.total} particles, but got {len(latents)}.")
        self.generators, resampling = particle_generators(generator, self.steering.seed, num_prompts, per_prompt, K)
        self.population = Population(
            len(self.prompts),
            K,
            steered.lmbda,
            potential=POTENTIALS[self.steering.potential],
            resampler=RESAMPLERS[self.steering.resampler],
            tempering=self.steering.tempering,  # type: ignore[arg-type]
            ess_threshold=self.steering.ess_threshold,
            floor=self.steering.floor,
            exact_terminal=self.steering.exact_terminal,
            generator=resampling,
        )
        self.decoder = LatentDecoder(self.pipe, size=_image_size(self.pipe, arguments))
        self.preview = self.decoder
        if self.steering.preview_decoder is not None:
            self.preview = LatentDecoder(
                self.pipe, _preview_vae(self.steering.preview_decoder, self.pipe), self.decoder.size
            )
        self.trace = Trace(list(self.prompts), name_of(self.reward), self.steering.to_dict())
        self.clock = Stopwatch(self.pipe._execution_device)
        self.step_index = 0
        self.events: dict[int, int] = {}

    def run(self) -> Any:
        started = time.perf_counter()
        denoiser = self.pipe.unet if getattr(self.pipe, "unet", None) is not None else self.pipe.transformer
        parameters = list(inspect.signature(getattr(denoiser, "_orig_mod", denoiser).forward).parameters)
        # A module compiled in place bypasses `forward`; wrapping what it calls instead keeps its graph as it is.
        entry = "forward" if denoiser._compiled_call_impl is None else "_compiled_call_impl"
        with ExitStack() as patches:
            patches.enter_context(intercept_step(self.pipe.scheduler, self.step))
            patches.enter_context(
                intercept(denoiser, entry, lambda inner: functools.partial(self.denoise, inner, parameters))
            )
            patches.enter_context(
                intercept(self.pipe.vae, "decode", lambda inner: functools.partial(self.decode, inner))
            )
            output = self.pipe(
                **self.arguments,
                num_images_per_prompt=self.rows.total // _number_of_prompts(self.arguments),
                generator=self.generators,
                output_type="latent" if self.output_type == "latent" else "pt",
                return_dict=False,
            )
        return self.finish(output, started)

    # The three wrapped methods.

    def denoise(self, inner: Callable[..., Any], parameters: list[str], *args: Any, **kwargs: Any) -> Any:
        with self.clock("denoiser"):
            output, num_rows = run_on_live_rows(
                inner, self.rows, parameters, self.steering.denoise_batch_size, args, kwargs
            )
        self.trace.nfe += num_rows
        self.trace.denoiser_calls += 1
        return output

    def decode(self, inner: Callable[..., Any], z: Tensor, *args: Any, **kwargs: Any) -> Any:
        if z.shape[0] == self.rows.total:
            z = z[self.rows.live.to(z.device)]
        chunks = z.split(self.steering.decode_batch_size or len(z))
        with self.clock("decode"):
            return join_rows([inner(chunk, *args, **kwargs) for chunk in chunks], [len(chunk) for chunk in chunks])

    def step(
        self, inner: Callable[..., Any], model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        if self.step_index == 0:
            self.start(sample)
        index, scheduler = self.step_index, self.pipe.scheduler
        if len(self.rows.live) < self.rows.total:
            live = self.rows.live.to(sample.device)
            model_output, sample = model_output[live], sample[live]
        moved = None
        generators = self.generators_of(self.rows.live)
        if (size := self.due(index)) is not None:
            moved = self.score(index, timestep, predict_x0(scheduler, model_output, timestep, sample), size)
        if moved is not None and not self.steering.resample_after_noise:
            rows = moved.to(sample.device)
            gather_history(scheduler, sample.shape, rows)
            model_output, sample = model_output[rows], sample[rows]
            generators = self.generators_of(self.rows.live)

        kwargs.pop("eta", None)
        with noise_switched(scheduler, inner, self.eta_at(index)) as take_step:
            if accepts(take_step, "generator"):
                kwargs["generator"] = generators
            output = take_step(model_output, timestep, sample, *args, **kwargs)

        if moved is not None and self.steering.resample_after_noise:
            rows = moved.to(sample.device)
            gather_history(scheduler, sample.shape, rows)
            output = map_rows(lambda tensor: tensor[rows], output, len(sample))
        self.step_index += 1
        num_live = len(self.rows.live)
        if num_live == self.rows.total:
            return output
        return map_rows(lambda tensor: tensor[self.rows.spread().to(tensor.device)], output, num_live)

    # What they are made of.

    def start(self, sample: Tensor) -> None:
        """Checks that need the loop's timesteps."""
        if sample.shape[0] != self.rows.total:
            raise ValueError(
                f"{type(self.pipe).__name__} runs {sample.shape[0]} rows where {self.rows.total} were asked for by "
                "`num_images_per_prompt`, so particles and prompts cannot be told apart."
            )
        scheduler = self.pipe.scheduler
        timesteps = scheduler.timesteps
        num_steps = getattr(self.pipe, "num_timesteps", None) or len(timesteps)
        self.trace.num_steps = num_steps
        self.events = self.steering.schedule.events(num_steps, self.steering.num_particles)
        if self.steering.may_duplicate(self.events) and not parts_copies(
            scheduler,
            timesteps[len(timesteps) - num_steps :],
            min(self.events),
            self.eta_at,
        ):
            raise ValueError(
                f"{type(scheduler).__name__} adds no noise after the first resampling, so copies of a particle would "
                "stay identical. Let it add noise (`eta` above 0 and a noise window that reaches past the first "
                "scoring event), use a sampler that can (`pipe.scheduler = "
                "DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)`, DDIM or Euler), or a preset that "
                "only prunes ('psp', 'best-of-n')."
            )

    def due(self, index: int) -> int | None:
        """How many particles to keep if a scoring event is due at this step, else None. In the second stage of a
        two-stage solver the event waits for the next step."""
        passed = [step for step in self.events if step <= index]
        if not passed or not in_first_order_stage(self.pipe.scheduler) or index >= self.trace.num_steps - 1:
            return None
        return [self.events.pop(step) for step in passed][-1]

    def eta_at(self, index: int) -> float:
        return self.eta if self.steering.schedule.injects_noise(index, self.trace.num_steps) else 0.0

    def generators_of(self, rows: Tensor) -> list[torch.Generator]:
        return [self.generators[row] for row in rows.tolist()]

    def score(self, index: int, timestep: Any, x0: Tensor, size: int) -> Tensor | None:
        """Score the x0 predictions (L, ...) of the live rows and resample.

        Returns:
            For each row that is alive afterwards the position among the L rows that it continues; None if every row
            goes on as it is.
        """
        P, num_steps = len(self.prompts), self.trace.num_steps
        rewards = self.rewards_of_latents(x0, self.preview, f"at step {index}")
        event = self.population.step(rewards.view(P, -1), index / num_steps, size)
        self.record(event, step=index, progress=index / num_steps, timestep=float(timestep))
        K = event.slots_before.shape[1]
        moved = (event.ancestors + K * torch.arange(P)[:, None]).flatten()
        if size == K and torch.equal(moved, torch.arange(P * K)):
            return None
        self.rows.resample(event.slots, moved, self.steering.num_particles)
        return moved

    def rewards_of_latents(self, latents: Tensor, decoder: LatentDecoder, where: str) -> Tensor:
        """Rewards (L,) of live rows, decoded and scored in blocks, each distinct row once."""
        position, inverse = self.rows.distinct_live()
        latents = latents[position.to(latents.device)]
        decode_size, reward_size = self.steering.decode_batch_size, self.steering.reward_batch_size
        block = max(decode_size, reward_size) if decode_size and reward_size else len(latents)
        prompts = [self.prompt_of(row) for row in self.rows.live[position].tolist()]
        rewards = []
        for start in range(0, len(latents), block):
            with self.clock("decode"):
                chunks = latents[start : start + block].split(decode_size or block)
                images = torch.cat([decoder(chunk) for chunk in chunks])
            rewards.append(self.rewards_of_images(images, prompts[start : start + block], where))
        return torch.cat(rewards)[inverse]

    def rewards_of_images(self, images: Tensor, prompts: list[str], where: str) -> Tensor:
        size = self.steering.reward_batch_size or len(images)
        with self.clock("reward"):
            rewards = [
                evaluate(self.reward, images[start : start + size], prompts[start : start + size], where)
                for start in range(0, len(images), size)
            ]
        self.trace.reward_calls += len(images)
        return torch.cat(rewards)

    def prompt_of(self, row: int) -> str:
        return self.prompts[row // self.steering.num_particles]

    def record(self, event: Any, **where: Any) -> None:
        self.trace.events.append(
            TraceEvent.record(event, nfe=self.trace.nfe, reward_calls=self.trace.reward_calls, **where)
        )

    def finish(self, output: tuple[Any, ...], started: float) -> Any:
        """Weigh and sort the final images."""
        images, *others = output
        prompts = [self.prompt_of(row) for row in self.rows.live.tolist()]
        if self.output_type == "latent":
            images = images[self.rows.live.to(images.device)]
            rewards = self.rewards_of_latents(images, self.decoder, "for the final images")
        else:
            rewards = self.rewards_of_images(images.float(), prompts, "for the final images")
        event = self.population.finish(rewards.view(len(self.prompts), -1))
        self.record(event, step=self.trace.num_steps, progress=1.0, timestep=None)

        order = event.rewards.argsort(dim=1, descending=True, stable=True)
        K = order.shape[1]
        flat = (order + K * torch.arange(len(order))[:, None]).flatten()
        images = images[flat.to(images.device)]
        if self.output_type not in ("pt", "latent"):
            images = self.pipe.image_processor.pt_to_numpy(images)
        if self.output_type == "pil":
            images = self.pipe.image_processor.numpy_to_pil(images)
        others = [[other[i] for i in flat.tolist()] if isinstance(other, list) else other for other in others]

        unbiased = self.steering.exact_terminal and RESAMPLERS[self.steering.resampler] is not top_k
        self.trace.log_normalizer = (
            self.population.log_normalizer.tolist() if unbiased else [float("nan")] * len(self.prompts)
        )
        seconds = self.clock.seconds()
        total = time.perf_counter() - started
        parts = {part: seconds.get(part, 0.0) for part in ("denoiser", "decode", "reward")}
        self.trace.seconds = {**parts, "rest": total - sum(parts.values()), "total": total}

        rewards, log_weights = (value.gather(1, order).float() for value in (event.rewards, event.log_weights))
        if not self.return_dict:
            return (images, *others, rewards, log_weights, self.trace)
        return SteeredOutput(images, rewards, log_weights, self.trace, *others[:1])


def _number_of_prompts(arguments: dict[str, Any]) -> int:
    prompt = arguments.get("prompt")
    if prompt is None:
        if arguments.get("prompt_embeds") is None:
            raise ValueError("Expected `prompt` or `prompt_embeds`, but got neither.")
        return len(arguments["prompt_embeds"])
    return 1 if isinstance(prompt, str) else len(prompt)


def _reward_prompts(
    arguments: dict[str, Any], reward_prompt: str | Sequence[str] | None, num_prompts: int
) -> list[str]:
    texts = arguments.get("prompt") if reward_prompt is None else reward_prompt
    if texts is None:
        raise ValueError("With `prompt_embeds` the reward has no text to score against: pass `reward_prompt`.")
    texts = [texts] if isinstance(texts, str) else list(texts)
    if len(texts) != num_prompts:
        raise ValueError(f"Expected one `reward_prompt` for each of {num_prompts} prompts, but got {len(texts)}.")
    return texts


def _image_size(pipe: Any, arguments: dict[str, Any]) -> tuple[int, int] | None:
    default = getattr(pipe, "default_sample_size", None)
    if default is None:
        return None
    default *= pipe.vae_scale_factor
    return arguments.get("height") or default, arguments.get("width") or default


def _preview_vae(preview: Any, pipe: Any) -> Any:
    if isinstance(preview, str):
        preview = AutoencoderTiny.from_pretrained(preview)
    return preview.to(pipe._execution_device, pipe.vae.dtype)

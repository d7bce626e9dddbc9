"""`steer`: inference-time scaling of a Diffusers pipeline, whose own loop is the one that runs.

For the length of one call three methods are wrapped: `scheduler.step`, where particles are scored and moved; the
denoiser's forward, which runs on the rows that are alive and distinct; and `vae.decode`, which decodes the survivors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor

from ..report.trace import Trace
from ..rewards.functions import as_reward
from ..search import DEFAULT_PRESET, Strategy, preset
from ..smc import brief, flag
from .budgets import Choice, choose
from .call import Call
from .events import ScoringEvent
from .execution import Execution
from .passes import Passes
from .ranks import Ranks
from .results import Result, best_of_each, by_population
from .run import Run, facts
from .samplers import sampled_by, sampler_at_call
from .schedulers import check_scheduler
from .validation import (
    check_form_of_images,
    check_keywords,
    check_modular_arguments,
    check_pipeline,
    check_stages,
    check_texts,
    checked_arguments,
)


THUMBNAIL = 128
"""Longer side, in pixels, of the pictures that `keep_predictions=True` keeps."""


@dataclass
class SteeredOutput(BaseOutput):  # type: ignore[misc]
    """Output of a steered call. N = number of prompts x `num_images_per_prompt` populations, k particles alive at the
    end in each.

    Attributes:
        images: N images or videos in the `output_type` asked for, the best of each population, as the stock pipeline
            gives them.
        particles: all that were alive at the end: N lists of k images, best first, or for arrays and tensors one of
            shape (N, k, ...).
        rewards: (N, k) float32, in the order of `particles`.
        log_weights: (N, k) float32, normalised, in the same order: with the exact terminal weight, weighted images
            are samples of p(x0) exp(lambda r(x0)) / Z.
        trace: every scoring event and where the time went.
        nsfw_content_detected: as in Stable Diffusion's own output, for `images`; None if the pipeline has none.
        others: what the pipeline returns beside its images, for `images`: sound, for example.
    """

    images: Any
    particles: Any = None
    rewards: Tensor | None = None
    log_weights: Tensor | None = None
    trace: Trace | None = None
    nsfw_content_detected: list[bool] | None = None
    others: tuple[Any, ...] = ()

    @property
    def best(self) -> Any:
        """The image or video with the highest reward, of all prompts and populations."""
        assert self.rewards is not None
        return self.images[int(self.rewards[:, 0].nan_to_num(-torch.inf).argmax())]

    def __repr__(self) -> str:
        if self.rewards is None or self.trace is None:
            return f"SteeredOutput({brief(self.images)})"
        populations, particles = self.rewards.shape
        size = getattr(self.images, "shape", None)
        images = f"{populations} images or videos" if size is None else f"images {tuple(size)}"
        return f"SteeredOutput({images}, {particles} particles each, {self.trace!r})"

    @property
    def frames(self) -> Any:
        """`images`, under the name that stock pipelines of videos give them."""
        return self.images


def steer(
    pipe: DiffusionPipeline,
    reward: Any,
    steering: Strategy | str = DEFAULT_PRESET,
    execution: Execution | None = None,
) -> SteeredPipeline:
    """Steer a text-to-image pipeline towards high reward.

    ```py
    steered = steer(pipe, reward, FKSteering(num_particles=4, lmbda=10.0))
    out = steered(["a red circle", "two blue squares"], num_inference_steps=30)
    out.images[0]
    ```

    The pipeline is changed only while a call runs.

    Args:
        pipe: a pipeline of images or videos whose loop calls `pipe.scheduler.step` with one row per image. What it
            makes of its last latents is left to its own code. Particles of one population share the draws of images
            that condition them. Pipelines that cannot be steered are refused with a sentence.
        reward: any `Reward`, a function (images (B, 3, H, W) in [0, 1], prompts) -> (B,) or (images) -> (B,), the name
            of a reward, or a mapping of any of these to weights, which is their sum. See `as_reward`.
        steering: settings, the name of a preset, or a `Strategy` of your own.
        execution: how much to do at a time; changes no result.

    Raises:
        TypeError: for what is no pipeline or no reward.
        ValueError: for an unknown preset or reward, a reward that does not fit the settings, a pipeline without an
            autoencoder, or a scheduler whose x0 predictions cannot be computed.
    """
    return SteeredPipeline(pipe, reward, steering, execution)


class SteeredPipeline:
    """What `steer` returns: call it as you would call the pipeline."""

    def __init__(
        self,
        pipe: DiffusionPipeline,
        reward: Any,
        steering: Strategy | str = DEFAULT_PRESET,
        execution: Execution | None = None,
    ) -> None:
        check_pipeline(pipe)
        # The settings before the reward, whose weights may take long to load.
        self.steering = preset(steering) if isinstance(steering, str) else steering
        if not isinstance(self.steering, Strategy):
            made = " `Strategy.from_dict` makes settings of a mapping." if isinstance(steering, Mapping) else ""
            raise ValueError(
                f"Expected `steering` to be an `FKSteering`, another `Strategy` or the name of a preset, but got "
                f"{brief(steering)}.{made}"
            )
        if execution is not None and not isinstance(execution, Execution):
            raise TypeError(f"Expected `execution` to be an `Execution`, but got {brief(execution)}.")
        self.pipe, self.reward = pipe, as_reward(reward)
        self.execution = execution or Execution()
        check_stages(pipe)
        check_form_of_images(pipe, self.reward)
        self.steering.check(facts(self.reward))
        scheduler = sampler_at_call(pipe.scheduler, self.steering)
        if self.steering.looks:
            check_scheduler(scheduler)

    @torch.no_grad()
    def __call__(
        self,
        *args: Any,
        reward_prompt: str | Sequence[str] | None = None,
        prompt_pool: Sequence[str] | Sequence[Sequence[str]] | None = None,
        particle_parallel: bool | dist.ProcessGroup = False,
        on_event: Callable[[ScoringEvent], Any] | None = None,
        keep_predictions: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Run the pipeline with `num_particles` particles per image.

        Args:
            reward_prompt: text the reward sees, one or one per prompt; defaults to `prompt`. Needed when the pipeline
                is given `prompt_embeds`.
            prompt_pool: wordings of each prompt, a list of texts per prompt (for one prompt the texts themselves), that
                the model is given in place of it: particle k begins with wording k mod n, and copies of it go on with
                that. The reward reads the prompt itself.
            particle_parallel: True shares the particles between the processes of `torch.distributed`'s default group, a
                process group between its own. Every rank makes the same call and gets the same output. Without a
                `generator` or the settings' `seed`, the noise is that of rank 0.
            on_event: called after every scoring event with a `ScoringEvent`: the step, the rewards, the ancestors and,
                on request, the decoded x0 predictions. It may stop the run.
            keep_predictions: keep small pictures of the x0 predictions in the trace, for reports.
            *args: arguments of the pipeline's own `__call__`.
            **kwargs: arguments of the pipeline's own `__call__`. `num_images_per_prompt` is the number of
                independent populations per prompt. `generator` may be one generator, one per prompt, one per
                population or one per particle; every particle gets its own noise from it, whatever else is in the
                batch. With `denoising_end` the last x0 predictions are scored, not the noisy latents.

        Returns:
            A `SteeredOutput`, or with `return_dict=False` the pipeline's own tuple followed by particles, rewards,
            log-weights and trace.

        Raises:
            TypeError: for an argument that the pipeline does not know, or of another kind.
            ValueError: for arguments that do not fit together, a schedule that does not fit the loop, a budget that is
                too small for one particle, copies of particles that would never part, a denoiser with a cache, or with
                `particle_parallel` a missing process group or arguments that differ between ranks.
            RewardError: if the reward returns NaN or the wrong shape, or from what it raises.
            RuntimeError: with `particle_parallel`, if scoring fails on another rank.
        """
        check_keywords(
            self.pipe, kwargs, "reward_prompt", "prompt_pool", "particle_parallel", "on_event", "keep_predictions"
        )
        check_texts("reward_prompt", reward_prompt)
        keep_predictions = flag("keep_predictions", keep_predictions)
        if on_event is not None and not callable(on_event):
            raise TypeError(f"Expected a function that is called after scoring events, but got {brief(on_event)}.")
        arguments = inspect.signature(self.pipe.__call__).bind(*args, **kwargs).arguments
        arguments |= arguments.pop("kwargs", {})
        check_modular_arguments(self.pipe, arguments)
        arguments = checked_arguments(self.pipe, arguments)
        return_dict = arguments.pop("return_dict", True)
        ranks = Ranks(particle_parallel, self.pipe._execution_device)
        self._agree(ranks, {**arguments, "reward_prompt": reward_prompt, "prompt_pool": prompt_pool})
        choice = choose(self.pipe, self.steering, arguments)
        with sampled_by(self.pipe, choice.scheduler):
            result, trace = self._run(choice, ranks, reward_prompt, prompt_pool, on_event, keep_predictions)
        images, others = best_of_each(result)
        particles = by_population(result)
        if not return_dict:
            return (images, *others, particles, result.rewards, result.log_weights, trace)
        flags = others[0] if others and isinstance(others[0], list) else None
        return SteeredOutput(images, particles, result.rewards, result.log_weights, trace, flags, tuple(others))

    def _run(
        self,
        choice: Choice,
        ranks: Ranks,
        reward_prompt: str | Sequence[str] | None,
        prompt_pool: Any,
        on_event: Callable[[ScoringEvent], Any] | None,
        keep_predictions: bool,
    ) -> tuple[Result, Trace]:
        """The passes that the strategy makes."""
        steering = choice.strategy
        observers = [] if on_event is None else [on_event]
        side = THUMBNAIL if keep_predictions else None

        def run_of(call: Call, strategy: Strategy) -> Run:
            warns = strategy is steering and passes.trace is None
            return Run(call, strategy, self.reward, self.execution, ranks, observers, side, warns, choice.chosen)

        call = Call.of(self.pipe, steering, choice.arguments, reward_prompt, ranks.first, prompt_pool)
        passes = Passes(steering, call, run_of)
        steering.conduct(passes)
        result, trace = passes.outcome()
        trace.steering = steering.describe()
        return result, trace

    def _agree(self, ranks: Ranks, arguments: dict[str, Any]) -> None:
        pipe = self.pipe
        ranks.agree(
            {
                **arguments,
                "reward": self.reward.name,
                "steering": self.steering.describe(),
                "pipeline": (type(pipe).__name__, str(pipe.dtype)),
                "scheduler": (type(pipe.scheduler).__name__, pipe.scheduler.config),
            }
        )

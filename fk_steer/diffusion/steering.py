"""`steer`: Feynman-Kac steering of a Diffusers pipeline, whose own loop is the one that runs.

For the length of one call three methods are wrapped: `scheduler.step`, where particles are scored and resampled; the
denoiser's forward, which runs on the rows that are alive and distinct; and `vae.decode`, which decodes the survivors.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor

from ..config import DEFAULT_PRESET, FKSteering
from ..report.trace import Trace
from ..rewards.base import RewardFunction, lmbda_for, name_of, parts_of, reward_at
from ..smc import TargetESS
from .parallel import Ranks
from .rollover import roll_over
from .run import Run
from .schedulers import parametrisation


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


def steer(
    pipe: DiffusionPipeline, reward: RewardFunction, steering: FKSteering | str = DEFAULT_PRESET
) -> SteeredPipeline:
    """Steer a text-to-image pipeline towards high reward.

    ```py
    with steer(pipe, reward, FKSteering(num_particles=4, lmbda=10.0)) as steered:
        out = steered(["a red circle", "two blue squares"], num_inference_steps=30)
    out.images[0]
    ```

    The pipeline is changed only while a call runs; the `with` block is optional.

    Args:
        pipe: a Stable Diffusion, Stable Diffusion XL, Stable Diffusion 3 or Flux pipeline, or another with a VAE whose
            denoiser is `pipe.unet` or `pipe.transformer`, whose call takes `num_images_per_prompt` and whose loop calls
            `pipe.scheduler.step` with one row per image. Image-to-image, inpainting and ControlNet pipelines are among
            them.
        reward: any `Reward`, or a function (images (B, 3, H, W) in [0, 1], prompts) -> (B,).
        steering: settings, or the name of a preset.

    Raises:
        ValueError: for an unknown preset, a reward without a default lambda when the settings give none, a
            `target_reward` for a reward that only compares, or a scheduler whose x0 predictions cannot be computed.
    """
    return SteeredPipeline(pipe, reward, steering)


class SteeredPipeline:
    """What `steer` returns: call it as you would call the pipeline."""

    def __init__(
        self, pipe: DiffusionPipeline, reward: RewardFunction, steering: FKSteering | str = DEFAULT_PRESET
    ) -> None:
        self.pipe = pipe
        self.reward = reward
        self.steering = FKSteering.preset(steering) if isinstance(steering, str) else steering
        if not isinstance(self.steering, FKSteering):
            raise ValueError(
                f"Expected `steering` to be an `FKSteering` or the name of a preset, but got {steering!r}."
            )
        self.lmbda = lmbda_for(reward, self.steering.lmbda)
        if isinstance(self.steering.tempering, TargetESS):
            self.lmbda = self.steering.lmbda
        elif self.lmbda is None:
            raise ValueError(
                f"Reward '{name_of(reward)}' has no `default_lmbda`. Set `lmbda` in the steering settings, or use the "
                "preset 'adaptive', which needs none."
            )
        final = reward_at(reward, 1.0)
        if self.steering.target_reward is not None and any(
            getattr(part, "relative", False) for part in (final, *parts_of(final).values())
        ):
            raise ValueError(
                f"`target_reward` needs a reward with a scale of its own, but '{name_of(reward)}' only compares the "
                "particles of a prompt with one another."
            )
        if self.steering.schedule.at:
            parametrisation(pipe.scheduler)

    def __enter__(self) -> SteeredPipeline:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    @torch.no_grad()
    def __call__(
        self,
        *args: Any,
        reward_prompt: str | Sequence[str] | None = None,
        particle_parallel: bool | dist.ProcessGroup = False,
        **kwargs: Any,
    ) -> Any:
        """Run the pipeline with `num_particles` particles per image.

        Args:
            reward_prompt: text the reward sees, one or one per prompt; defaults to `prompt`. Needed when the pipeline
                is given `prompt_embeds`.
            particle_parallel: True shares the particles between the processes of `torch.distributed`'s default group, a
                process group between its own. Every rank makes the same call and gets the same output. Without a
                `generator` or the settings' `seed`, the noise is that of rank 0.
            *args, **kwargs: those of the pipeline's own `__call__`. `num_images_per_prompt` is the number of
                independent populations per prompt. `generator` may be one generator, one per prompt, one per
                population or one per particle; every particle gets its own noise from it, whatever else is in the
                batch. With `denoising_end` the last x0 predictions are scored, not the noisy latents.

        Returns:
            A `SteeredOutput`, or with `return_dict=False` the pipeline's own tuple followed by rewards, log-weights
            and trace.

        Raises:
            ValueError: for arguments that do not fit together, a schedule that does not fit the loop, copies of
                particles that would never part, a denoiser with a cache, or with `particle_parallel` a missing process
                group or arguments that differ between ranks.
            RewardError: if the reward returns NaN or the wrong shape.
            RuntimeError: with `particle_parallel`, if scoring fails on another rank.
        """
        arguments = inspect.signature(self.pipe.__call__).bind(*args, **kwargs).arguments
        arguments |= arguments.pop("kwargs", {})
        return_dict = arguments.pop("return_dict", True)
        ranks = Ranks(particle_parallel, self.pipe._execution_device)

        def prepare(arguments: dict[str, Any], reward_prompt: str | Sequence[str] | None) -> Run:
            return Run(self.pipe, self.reward, self.steering, self.lmbda, arguments, reward_prompt, ranks)

        run = prepare(arguments, reward_prompt)
        result = run()
        if self.steering.rollover:
            result = roll_over(run, result, prepare)
        images, others, rewards, log_weights = result
        if not return_dict:
            return (images, *others, rewards, log_weights, run.trace)
        return SteeredOutput(images, rewards, log_weights, run.trace, *others[:1])

"""What can only be checked once a pipeline runs: its denoiser, and whether copies of a particle part."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..config import FKSteering
from .schedulers import parts_copies


def denoiser_of(pipe: Any) -> Any:
    """`pipe.unet` or `pipe.transformer`.

    Raises:
        ValueError: if it caches what it computes.
    """
    name = "unet" if getattr(pipe, "unet", None) is not None else "transformer"
    denoiser = getattr(pipe, name)
    if getattr(denoiser, "is_cache_enabled", False):
        raise ValueError(
            "The denoiser's cache keeps rows from step to step, which cannot follow particles that are resampled. Turn "
            f"it off: `pipe.{name}.disable_cache()`."
        )
    return denoiser


def check_noise(
    scheduler: Any,
    timesteps: Tensor,
    steering: FKSteering,
    events: Mapping[int, int],
    eta_at: Callable[[int], float],
) -> None:
    """Check that the scheduler adds noise where the settings need it and can do without where they need that. Warns if
    copies made by the last resampling stay identical.

    Args:
        scheduler: before its first step.
        timesteps: (T,) of the loop.
        steering: the settings.
        events: step -> particles alive after it.
        eta_at: step index -> the noise asked for.

    Raises:
        ValueError: if the copies made by the first resampling would stay identical, or the elite cannot go without
            noise.
    """
    name = type(scheduler).__name__
    parts = functools.partial(parts_copies, scheduler, timesteps)
    copying = [event + steering.resample_after_noise for event in steering.duplicating(events)]
    if copying and not parts(copying[0], eta_at):
        raise ValueError(
            f"{name} adds no noise after the first resampling, so copies of a particle would stay identical. Let it "
            "add noise (`eta` above 0 and a noise window that reaches past the first scoring event), use a sampler "
            "that can (`pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, "
            "algorithm_type='sde-dpmsolver++')`, DDIM or Euler), or a preset that only prunes ('psp', 'best-of-n')."
        )
    if len(copying) > 1 and not eta_at(copying[-1]) and not parts(copying[-1], eta_at):
        warnings.warn(
            "No noise is added after the last resampling, so copies of a particle that it makes stay identical. Score "
            "earlier, or let the noise window reach further.",
            stacklevel=2,
        )
    if steering.elite and parts(0, lambda index: 0.0):
        raise ValueError(
            f"`elite` needs a sampler whose noise can be switched off, but {name} always adds its own. Use DDIM, Euler "
            "or DPM-Solver++."
        )

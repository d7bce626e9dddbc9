"""A solver for few steps, in the place of a pipeline's scheduler for one pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import DPMSolverMultistepScheduler

from .schedulers import parametrisation


_DISTILLED = frozenset({"LCMScheduler", "TCDScheduler"})
"""Schedulers of models that are distilled for few steps, each with its own way of taking them."""


def solves_with_dpm(scheduler: Any) -> bool:
    """Whether what a scheduler samples can be sampled with DPM-Solver++: a diffusion by a schedule of betas, of whose
    signal and noise epsilon, v or x0 is predicted."""
    return (
        type(scheduler).__name__ not in _DISTILLED
        and hasattr(scheduler, "alphas_cumprod")
        and parametrisation(scheduler) in ("variance-preserving", "variance-preserving-sigmas", "scaled")
        and scheduler.config.get("prediction_type") in ("epsilon", "v_prediction", "sample")
        and not scheduler.config.get("use_flow_sigmas")
    )


def dpm_solver(scheduler: Any) -> Any:
    """DPM-Solver++(2M) (Lu et al., arXiv 2211.01095) for what a scheduler samples, from full noise to none: trailing
    timesteps, last sigma zero."""
    return DPMSolverMultistepScheduler.from_config(
        scheduler.config,
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        lower_order_final=True,
        timestep_spacing="trailing",
        final_sigmas_type="zero",
        use_lu_lambdas=False,
    )


@contextmanager
def sampled_with(pipe: Any, sampler: str) -> Iterator[None]:
    """While the context lasts, the pipeline's scheduler is another.

    Args:
        sampler: 'own' for its own, 'dpm++' for DPM-Solver++ where that can be, else its own.
    """
    own = pipe.scheduler
    if sampler == "own" or not solves_with_dpm(own):
        yield
        return
    object.__setattr__(pipe, "scheduler", dpm_solver(own))
    try:
        yield
    finally:
        object.__setattr__(pipe, "scheduler", own)

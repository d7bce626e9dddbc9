"""Samplers by name: a scheduler made of another, where the model allows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

from ..search import Strategy
from ..search.budget import OPEN_SAMPLER
from ..smc import is_named, suggestion
from .interception import UnsupportedSchedulerError
from .schedulers import parametrisation


@dataclass(frozen=True)
class Sampler:
    """A sampler.

    Attributes:
        scheduler: its class in Diffusers.
        settings: of it, in place of those taken from the scheduler that it is made of.
    """

    scheduler: str
    settings: Mapping[str, Any] = field(default_factory=dict)


SAMPLERS = {
    "ddim": Sampler("DDIMScheduler"),
    "euler": Sampler("EulerDiscreteScheduler"),
    "dpmsolver++": Sampler(
        "DPMSolverMultistepScheduler",
        {
            "algorithm_type": "dpmsolver++",
            "solver_order": 2,
            "final_sigmas_type": "zero",
            "timestep_spacing": "trailing",  # with few steps 'leading' never sees the highest noise
        },
    ),
    "unipc": Sampler("UniPCMultistepScheduler"),
    "heun": Sampler("HeunDiscreteScheduler"),
    "flow-euler": Sampler("FlowMatchEulerDiscreteScheduler"),
    "edm-dpmsolver++": Sampler("EDMDPMSolverMultistepScheduler"),
}
"""Name -> what it is. Whether those whose noise can be switched are stochastic follows `Noise.eta`."""

NOISY = {"flow": "flow-euler", "edm": "edm-dpmsolver++", "diffusion": "ddim"}
"""For each kind of model the sampler to take where noise is needed and the pipeline's own has none."""


_OF_THE_MODEL = frozenset(
    {"beta_start", "beta_end", "beta_schedule", "trained_betas", "num_train_timesteps", "prediction_type"}
)
"""Settings of schedulers that say how the model was trained."""


def sampler(scheduler: Any, name: str) -> Any:
    """A scheduler of that name, for the model of another.

    Args:
        scheduler: the one that the model came with.
        name: one of `SAMPLERS`, or a class of Diffusers.

    Raises:
        ValueError: for an unknown name, or one that does not fit the model.
    """
    entry = SAMPLERS[name] if is_named(name, SAMPLERS) else Sampler(name)
    kind = getattr(diffusers, entry.scheduler, None)
    if kind is None or not hasattr(kind, "step"):
        near = suggestion(name, [*SAMPLERS, *(known for known in dir(diffusers) if known.endswith("Scheduler"))])
        raise ValueError(
            f"Unknown scheduler {name!r}. Expected one of {', '.join(SAMPLERS)}, or a class of Diffusers, such as "
            f"DDIMScheduler.{near}"
        )
    config = dict(scheduler.config)
    # Schedulers differ in their defaults, which Diffusers takes in place of another's.
    defaults = config.get("_use_default_values", [])
    config["_use_default_values"] = [key for key in defaults if key not in _OF_THE_MODEL]
    if entry.scheduler == "FlowMatchEulerDiscreteScheduler":
        config["shift"] = config.get("flow_shift", config.get("shift", 1.0))
    made = kind.from_config(config, **entry.settings)
    if reason := _misfit(scheduler, made):
        fitting = model_kind(scheduler)
        names = [key for key in SAMPLERS if fitting is not None and _of_kind(key) == fitting]
        others = f" or take one that fits: {', '.join(names)}" if names else ""
        raise ValueError(
            f"The sampler {name!r} does not fit this pipeline, whose scheduler is {type(scheduler).__name__}: {reason}."
            f" Leave `sampler` open{others}."
        )
    return made


def sampler_at_call(scheduler: Any, strategy: Strategy) -> Any:
    """The scheduler by which a steered call is taken; the pipeline's own, itself, where the settings do not say, or
    have a budget for which it cannot be turned into another.

    Raises:
        ValueError: see `sampler`.
    """
    if strategy.sampler is not None:
        return sampler(scheduler, strategy.sampler)
    if strategy.calls is None or not _interchangeable(scheduler):
        return scheduler
    return sampler(scheduler, OPEN_SAMPLER)


@contextmanager
def sampled_by(pipe: Any, scheduler: Any) -> Iterator[None]:
    """While the context lasts the pipeline has that scheduler, afterwards its own again."""
    own = pipe.scheduler
    if scheduler is own:
        yield
        return
    pipe.scheduler = scheduler
    try:
        yield
    finally:
        pipe.scheduler = own


@contextmanager
def sampled_with(pipe: Any, name: str) -> Iterator[None]:
    """While the context lasts the pipeline has the sampler of that name.

    Args:
        name: 'own' for its own, or `OPEN_SAMPLER` for that where the model can be sampled with it, else its own.
    """
    own = pipe.scheduler
    with sampled_by(pipe, own if name == "own" or not _interchangeable(own) else sampler(own, name)):
        yield


def model_kind(scheduler: Any) -> str | None:
    """What kind of model a scheduler is for: 'diffusion', 'flow', 'edm' or 'trigonometric'; None if it does not say."""
    try:
        kind = parametrisation(scheduler)
    except UnsupportedSchedulerError:
        return "diffusion" if hasattr(scheduler, "alphas_cumprod") else None
    return kind if kind in ("flow", "edm", "trigonometric") else "diffusion"


def _of_kind(name: str) -> str | None:
    return model_kind(getattr(diffusers, SAMPLERS[name].scheduler)())


def _interchangeable(scheduler: Any) -> bool:
    """Whether the model of a scheduler can be sampled by DPM-Solver++: not one that is trained for its own sampler
    (LCM, TCD), nor one of pixels whose x0 predictions are clipped. One that is sampled by it stays as it is."""
    name = type(scheduler).__name__
    if name not in KarrasDiffusionSchedulers.__members__ or model_kind(scheduler) != "diffusion":
        return False
    if name == SAMPLERS[OPEN_SAMPLER].scheduler and scheduler.config.algorithm_type.endswith("dpmsolver++"):
        return False
    try:
        sampler(scheduler, OPEN_SAMPLER)
    except ValueError:
        return False
    return not scheduler.config.get("clip_sample")


def _misfit(scheduler: Any, made: Any) -> str:
    """Why a scheduler cannot stand in for another; empty if it can."""
    before, after = model_kind(scheduler), model_kind(made)
    if before is not None and after is not None and before != after:
        return f"it is for models of {_NAMES[after]}, not of {_NAMES[before]}"
    ours, theirs = getattr(scheduler, "alphas_cumprod", None), getattr(made, "alphas_cumprod", None)
    if "diffusion" not in (before, after) or ours is None or theirs is None:
        return ""
    same = ours.shape == theirs.shape and torch.allclose(ours.float(), theirs.float(), rtol=1e-3, atol=1e-6)
    return "" if same else "it does not have the noise levels that the model was trained with"


_NAMES = {"diffusion": "diffusion", "flow": "flow matching", "edm": "EDM", "trigonometric": "trigonometric flow"}

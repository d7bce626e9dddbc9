"""What can only be checked once a pipeline runs: its denoiser, and whether copies of a particle part."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diffusers.hooks.hooks import HookRegistry, ModelHook, StateManager
from torch import nn

from .noise import parting_steps


def check_caches(denoisers: Mapping[str, nn.Module]) -> None:
    """Check that no denoiser keeps what it computes from step to step.

    Args:
        denoisers: and control networks, by name of the component.

    Raises:
        ValueError: if one does.
    """
    for name, denoiser in denoisers.items():
        if getattr(denoiser, "is_cache_enabled", False):
            raise ValueError(
                "The denoiser's cache keeps rows from step to step, which cannot follow particles that are resampled. "
                f"Turn it off: `pipe.{name}.disable_cache()`."
            )
        _check_hooks(name, denoiser)


def _check_hooks(name: str, module: nn.Module) -> None:
    """Look for Diffusers' hooks that remember something from one call to the next, whoever has put them there.

    Those that only move or convert weights, or leave layers out, may stay.
    """
    found = {
        key: hook
        for part in module.modules()
        if isinstance(registry := getattr(part, "_diffusers_hook", None), HookRegistry)
        for key, hook in registry.hooks.items()
    }
    kept = {key: type(hook).__name__ for key, hook in found.items() if _remembers(hook)}
    if kept:
        described = ", ".join(f"'{key}' ({kind})" for key, kind in kept.items())
        hooks = "hook" if len(kept) == 1 else "hooks"
        raise ValueError(
            f"The {hooks} {described} of `pipe.{name}` keep rows from step to step, which cannot follow particles that "
            f"are resampled. Take them off: `from diffusers.hooks import HookRegistry; "
            f"registry = HookRegistry.check_if_exists_or_initialize(pipe.{name}); "
            f"[registry.remove_hook(name) for name in {list(kept)}]`."
        )
    dropping = [key for key, hook in found.items() if 0.0 < getattr(hook, "dropout", 1.0) < 1.0]
    if dropping:
        raise ValueError(
            f"The hook '{dropping[0]}' ({type(found[dropping[0]]).__name__}) of `pipe.{name}` draws what it drops anew "
            "in every call, so that results depend on how many rows are computed at a time. Use a `dropout` of 1.0, "
            "which leaves the layers out."
        )


def _remembers(hook: ModelHook) -> bool:
    return hook._is_stateful or any(isinstance(value, StateManager) for value in vars(hook).values())


def check_steps(pipe: Any, arguments: Mapping[str, Any]) -> None:
    """Check that a pipeline's loop can be sent to other steps than the next.

    Raises:
        ValueError: if it looks up what to do in a step by counting steps, which goes on when the loop is sent back.
    """
    if getattr(pipe, "controlnet", None) is not None or arguments.get("mask_image") is not None:
        raise ValueError(
            f"The search goes back to earlier steps, but {type(pipe).__name__} counts its steps to know what to do in "
            "each. Use a search that does not go back."
        )


def check_noise(
    scheduler: Any, timesteps: Sequence[float], copying: Sequence[int], elite: bool, eta_at: Callable[[int], float]
) -> list[bool]:
    """Check that the scheduler adds noise where a search needs it and can do without where it needs that. Warns if
    copies made by the last resampling stay identical.

    Args:
        scheduler: before its first step.
        timesteps: of the loop.
        copying: steps at which copies of particles may be made, ascending.
        elite: whether a particle has to go without noise.
        eta_at: step index -> the noise asked for.

    Returns:
        For each step whether its noise parts copies.

    Raises:
        ValueError: if the copies made first would stay identical, or the elite cannot go without noise.
    """
    name = type(scheduler).__name__
    parts = parting_steps(scheduler, timesteps, eta_at)
    if copying and not any(parts[copying[0] :]):
        raise ValueError(
            f"{name} adds no noise after the first resampling, so copies of a particle would stay identical. Let it "
            "add noise (`eta` above 0 and a noise window that reaches past the first scoring event), use a sampler "
            "that can (`pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, "
            "algorithm_type='sde-dpmsolver++')`, DDIM or Euler), or a preset that only prunes ('psp', 'best-of-n')."
        )
    last = max((index for index, parting in enumerate(parts) if parting), default=-1)
    late = sum(step > last for step in copying)
    if late:
        which = "last resampling makes" if late == 1 else f"last {late} resamplings make"
        warnings.warn(
            f"{name} adds no noise after step {last} of this loop of {len(parts)} (counted from zero), so copies of a "
            f"particle that the {which} stay identical. Score earlier, or let the noise reach further.",
            stacklevel=2,
        )
    if elite and any(parting_steps(scheduler, timesteps, lambda index: 0.0)):
        raise ValueError(
            f"`elite` needs a sampler whose noise can be switched off, but {name} always adds its own. Use DDIM, Euler "
            "or DPM-Solver++."
        )
    return parts

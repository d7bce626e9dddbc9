"""Steps, sampler and particles of a call, where settings fix them or leave them to a budget."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..search import Strategy
from ..search.budget import steps_for
from .arguments import number_of_prompts
from .components import call_names, is_modular
from .inputs import NUMBERS
from .samplers import SAMPLERS, sampled_by, sampler_at_call


@dataclass(frozen=True)
class Choice:
    """What one call is run with.

    Attributes:
        strategy: with nothing left open.
        scheduler: of the call; the pipeline's own, itself, if that is to be kept.
        arguments: of the pipeline's call, with its steps.
        chosen: for the record: 'steps', 'sampler', 'num_particles', 'calls', which are those of the loop per image at
            most, and 'budget'. Empty if the settings say nothing of them.
    """

    strategy: Strategy
    scheduler: Any
    arguments: dict[str, Any]
    chosen: dict[str, Any] = field(default_factory=dict)


def choose(pipe: Any, strategy: Strategy, arguments: Mapping[str, Any]) -> Choice:
    """What a call is run with.

    Args:
        arguments: of the pipeline's call, by name; its `num_inference_steps`, `timesteps` or `sigmas` win.

    Raises:
        ValueError: for a sampler that does not fit, a budget that is too small, or `latents` of another number than
            the particles that fit.
    """
    scheduler = sampler_at_call(pipe.scheduler, strategy)
    if strategy.steps is None and strategy.sampler is None and strategy.calls is None:
        return Choice(strategy, scheduler, dict(arguments))
    found = dict(arguments)
    if not any(found.get(name) is not None for name in ("num_inference_steps", "timesteps", "sigmas")):
        steps = strategy.steps
        if steps is None and strategy.calls is not None:
            # Of a loop that starts in the middle of it.
            steps = math.ceil(steps_for(strategy.calls) / (_strength(pipe, found) or 1.0) - 1e-9)
        if steps is not None:
            if "num_inference_steps" not in call_names(pipe):
                raise ValueError(
                    f"{type(pipe).__name__} takes no `num_inference_steps`, so its steps cannot be chosen. Leave "
                    "`steps` and `calls` open."
                )
            found["num_inference_steps"] = steps
    calls = None
    resolved = strategy
    if strategy.calls is not None:
        num_steps = loop_length(pipe, scheduler, found)
        resolved = strategy.resolved(num_steps)
        calls = resolved.cost(num_steps)
        _check_latents(found, resolved.num_particles, strategy.calls, num_steps)
    steps = found.get("num_inference_steps")
    name = _name(strategy, scheduler)
    chosen = {
        "steps": steps,
        "sampler": name,
        "num_particles": resolved.num_particles,
        "calls": calls,
        "budget": strategy.calls,
    }
    own = None if scheduler is pipe.scheduler else name
    return Choice(resolved.replace(steps=steps, sampler=own), scheduler, found, chosen)


def loop_length(pipe: Any, scheduler: Any, arguments: Mapping[str, Any]) -> int:
    """How many denoiser calls per row a pipeline's loop makes with a scheduler: more than `num_inference_steps` with
    PNDM and two-stage solvers, fewer where the loop starts from an image or ends early.

    Args:
        arguments: of the call, with `num_inference_steps`, `timesteps` or `sigmas`.
    """
    given = {name: arguments[name] for name in ("timesteps", "sigmas") if arguments.get(name) is not None}
    number = len(next(iter(given.values()))) if given else arguments["num_inference_steps"]
    probe = copy.deepcopy(scheduler)
    options = {"mu": 1.0} if probe.config.get("use_dynamic_shifting") else {}
    try:
        probe.set_timesteps(**(given or {"num_inference_steps": number}), **options)
        timesteps = probe.timesteps
    except (AttributeError, TypeError, ValueError):  # what it cannot be asked for it is asked by the pipeline alone
        return int(number)
    strength = _strength(pipe, arguments)
    start, end = arguments.get("denoising_start"), arguments.get("denoising_end")
    train = probe.config.get("num_train_timesteps", 1000)
    length = len(timesteps)
    if start is not None:
        length = int((timesteps < round(train * (1 - start))).sum())
    elif strength is not None:
        length = _length_from(pipe, probe, number, strength)
    if end is not None:
        length -= int((timesteps < round(train * (1 - end))).sum())
    return max(length, 1)


def _length_from(pipe: Any, probe: Any, number: int, strength: float) -> int:
    """Of a loop that starts from an image, as the pipeline itself counts it."""
    skipped = number - min(int(number * strength), number)
    length = len(probe.timesteps) - skipped * probe.order
    count = getattr(pipe, "get_timesteps", None)
    if count is None:
        return int(length)
    values = {
        "num_inference_steps": number,
        "timesteps": probe.timesteps,
        "strength": strength,
        "device": probe.timesteps.device,
    }
    names = inspect.signature(count).parameters
    if any(name not in values and names[name].default is inspect.Parameter.empty for name in names):
        return int(length)
    with sampled_by(pipe, probe):
        return len(count(**{name: values[name] for name in names if name in values})[0])


def _strength(pipe: Any, arguments: Mapping[str, Any]) -> float | None:
    """How much of the loop is left where it starts from an image; None if it does not."""
    if "strength" not in call_names(pipe):
        return None
    if is_modular(pipe):
        defaults = {entry.name: entry.default for entry in pipe.blocks.inputs}
        if arguments.get("image") is None:
            return None
    else:
        call = inspect.signature(type(pipe).__call__).parameters
        defaults = {"strength": call["strength"].default} if "strength" in call else {}
    value = arguments.get("strength", defaults.get("strength"))
    return float(value) if isinstance(value, (int, float)) and 0.0 < value <= 1.0 else None


def _name(strategy: Strategy, scheduler: Any) -> str:
    if strategy.sampler is not None:
        return strategy.sampler
    kind = type(scheduler).__name__
    return next((name for name, entry in SAMPLERS.items() if entry.scheduler == kind), kind)


def _check_latents(arguments: Mapping[str, Any], num_particles: int, budget: int, num_steps: int) -> None:
    latents = arguments.get("latents")
    if latents is None:
        return
    images = number_of_prompts(arguments) * max(arguments.get(name) or 1 for name in NUMBERS)
    if len(latents) != images * num_particles:
        raise ValueError(
            f"A budget of {budget} denoiser calls per image has room for {num_particles} particles over a loop of "
            f"{num_steps} steps, so `latents` have to be {images * num_particles}, but are {len(latents)}. Give as "
            "many, another budget, or `num_particles` in its place."
        )

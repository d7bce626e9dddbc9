"""Which components of a pipeline do what, whatever they are called."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch


_TIMES = frozenset({"timestep", "timesteps", "t", "timestep_ratio", "r"})
"""What denoisers call the time they are at."""


def denoisers_of(pipe: Any) -> dict[str, torch.nn.Module]:
    """The components that are called with noisy rows and a time in every step, by name: denoisers, control networks."""
    return {
        name: component
        for name, component in pipe.components.items()
        if isinstance(component, torch.nn.Module) and _TIMES & set(parameters_of(component))
    }


def is_control(module: torch.nn.Module) -> bool:
    """Whether a denoiser's output goes into another denoiser."""
    return "ControlNet" in type(original(module)).__name__


def conditions_of_all(conditions: Any, num_rows: int, size: int) -> Any:
    """What a control network is conditioned on, where a pipeline has it for one row only: the same for each.

    Args:
        conditions: a tensor, or several in lists.
        num_rows: of the pipeline's batch.
        size: of the batch that the network is called with.
    """
    if isinstance(conditions, (list, tuple)):
        return type(conditions)(conditions_of_all(one, num_rows, size) for one in conditions)
    # Those for guidance, one after another, are equal.
    missing = isinstance(conditions, torch.Tensor) and 1 < len(conditions) < size and len(conditions) * num_rows == size
    return conditions.repeat(num_rows, *[1] * (conditions.ndim - 1)) if missing else conditions


def mixes_rows(module: torch.nn.Module) -> bool:
    """Whether a denoiser's output for a row depends on the first row of its batch: OmniGen's rotary embedding takes the
    positions of that for all."""
    return type(original(module)).__name__ == "OmniGenTransformer2DModel"


def autoencoder_of(pipe: Any) -> tuple[str, Any] | None:
    """Name and component that makes images of latents; None for a pipeline that works on pixels."""
    for name in ("vae", "movq", "vqgan"):
        component = pipe.components.get(name)
        if component is not None and hasattr(component, "decode"):
            return name, component
    return None


def several_autoencoders(pipe: Any) -> bool:
    """Whether more than one component decodes, a sound beside frames for example."""
    models = (part for part in pipe.components.values() if isinstance(part, torch.nn.Module))
    return sum(hasattr(part, "decode") for part in models) > 1


def schedulers_of(pipe: Any) -> list[Any]:
    """The components that take steps."""
    return [part for part in pipe.components.values() if hasattr(part, "step") and hasattr(part, "set_timesteps")]


def asks_for_x0(pipe: Any) -> bool:
    """Whether a pipeline's loop calls `scheduler.step` twice: first to be told x0, then, with an x0 of its own
    (`pred_original_sample`), to go on (Cosmos 1)."""
    if is_modular(pipe) or not accepts_x0(pipe.scheduler):
        return False
    code = inspect.unwrap(type(pipe).__call__).__code__
    return any(isinstance(value, tuple) and "pred_original_sample" in value for value in code.co_consts)


def accepts_x0(scheduler: Any) -> bool:
    """Whether a scheduler's `step` can be given x0."""
    return "pred_original_sample" in inspect.signature(scheduler.step).parameters


def original(module: torch.nn.Module) -> torch.nn.Module:
    """The module itself, where it was compiled."""
    inner: torch.nn.Module = getattr(module, "_orig_mod", module)
    return inner


def parameters_of(module: torch.nn.Module) -> list[str]:
    """Names of what a module's forward takes."""
    return list(inspect.signature(original(module).forward).parameters)


def is_modular(pipe: Any) -> bool:
    """Whether a pipeline is made of blocks."""
    return hasattr(pipe, "blocks") and not hasattr(pipe, "register_modules")


def call_names(pipe: Any) -> frozenset[str]:
    """Names of the arguments of a pipeline's call, those of the call that it inherits too, to which it may hand on
    whatever it is given."""
    if is_modular(pipe):
        return frozenset(entry.name for entry in pipe.blocks.inputs if entry.name)
    calls = [vars(kind)["__call__"] for kind in type(pipe).__mro__ if "__call__" in vars(kind)]
    return frozenset(name for call in calls for name in inspect.signature(call).parameters)


def image_output(pipe: Any) -> str | None:
    """What a modular pipeline calls the images or videos that it makes; None if it makes none."""
    # Blocks may say that they make images, and have been left without those that do.
    found = {entry.name for entry in pipe.blocks.outputs} & set(_made(pipe._blocks))
    return next((name for name in ("videos", "images", "image") if name in found), None)


def _made(block: Any) -> Iterator[str]:
    for part in block.sub_blocks.values():
        yield from _made(part)
    if not block.sub_blocks:
        yield from (entry.name for entry in block.intermediate_outputs)


def makes_videos(pipe: Any) -> bool:
    """Whether a pipeline gives frames rather than images."""
    if is_modular(pipe):
        return image_output(pipe) == "videos"
    names = call_names(pipe)
    return bool(names & {"num_frames", "num_videos_per_prompt", "video_length", "num_frames_per_chunk"})

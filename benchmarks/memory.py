"""Peak memory by number of particles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from fk_steer.config import FKSteering
from fk_steer.diffusion import steer
from fk_steer.rewards.base import RewardFunction


def peak_bytes(function: Callable[[], object]) -> int:
    """Most bytes of tensors alive at once during a call, beyond those alive before it, on the CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def peak_bytes_on(device: torch.device, function: Callable[[], object]) -> int:
    """The same on any device."""
    if device.type != "cuda":
        return peak_bytes(function)
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    return torch.cuda.max_memory_allocated(device) - before


def by_particles(
    pipe: Any,
    reward: RewardFunction,
    steering: FKSteering,
    prompt: str,
    *,
    particles: Sequence[int] = (4, 16, 64),
    chunk: int = 4,
    **call: Any,
) -> dict[str, dict[int, int]]:
    """Peak bytes beyond the models' own, 'chunked' and 'unchunked', by number of particles.

    Args:
        chunk: particles per denoiser call, latents per decode and images per reward call.
        **call: of the pipeline.
    """
    sizes: dict[str, Any] = {"denoise_batch_size": 2 * chunk, "decode_batch_size": chunk, "reward_batch_size": chunk}

    def peak(num_particles: int, sizes: dict[str, Any]) -> int:
        settings = dataclasses.replace(steering, num_particles=num_particles, **sizes)
        generator = torch.Generator().manual_seed(0)
        return peak_bytes_on(
            pipe._execution_device, lambda: steer(pipe, reward, settings)(prompt, generator=generator, **call)
        )

    peak(chunk, sizes)  # what is allocated once
    return {
        "chunked": {number: peak(number, sizes) for number in particles},
        "unchunked": {number: peak(number, dict.fromkeys(sizes)) for number in particles},
    }

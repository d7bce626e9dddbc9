"""What a run costs: peak memory, and the machine it is measured on."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from ..diffusion import Execution, steer
from ..rewards.base import RewardFunction
from ..rewards.loading import default_device
from ..search import Strategy


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
    steering: Strategy,
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
    chunked = Execution(denoise_batch_size=2 * chunk, decode_batch_size=chunk, reward_batch_size=chunk)

    def peak(num_particles: int, execution: Execution) -> int:
        steered = steer(pipe, reward, steering.replace(num_particles=num_particles), execution)
        generator = torch.Generator().manual_seed(0)
        return peak_bytes_on(pipe._execution_device, lambda: steered(prompt, generator=generator, **call))

    peak(chunk, chunked)  # what is allocated once
    return {
        "chunked": {number: peak(number, chunked) for number in particles},
        "unchunked": {number: peak(number, Execution()) for number in particles},
    }


def machine(device: torch.device | str | None) -> str:
    """Name of the processor or GPU and its share in use."""
    target = default_device(device)
    if target.type == "cuda":
        return torch.cuda.get_device_name(target)
    info = Path("/proc/cpuinfo")  # Linux alone
    names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.M) if info.exists() else []
    return f"{(names or [platform.processor()])[0]}, threads: {torch.get_num_threads()}"

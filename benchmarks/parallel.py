"""What several processes gain on one prompt's particles: time and memory of a particle-parallel call beside those of
the same call by one process, in turn on the same machine."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from accelerate import PartialState

from fk_steer.config import FKSteering
from fk_steer.diffusion import steer
from fk_steer.loading import set_scheduler
from fk_steer.rewards.base import RewardFunction
from fk_steer.shapes.captions import evaluation_prompts

from .memory import peak_bytes_on


def measure(
    pipe: Any,
    reward: RewardFunction,
    steering: FKSteering,
    processes: PartialState,
    *,
    prompts: int = 4,
    repeats: int = 5,
    **call: Any,
) -> dict[str, Any] | None:
    """To be called by every process. While rank 0 works alone, the others wait.

    Args:
        prompts: prompts per repeat, one steered call each.
        **call: of the pipeline.

    Returns:
        On rank 0 'seconds' of each repeat by way ('alone', 'shared') after a warm-up, the median 'speed-up' (alone /
        shared), 'peak bytes' of one call on rank 0 by way, and the largest 'difference' of a reward; None on the other
        ranks.
    """
    set_scheduler(pipe, None, steering, call.get("num_inference_steps"))
    texts = [line["prompt"] for line in evaluation_prompts()[:prompts]]
    steered = steer(pipe, reward, steering)

    def generate(text: str, shared: bool) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return steered(text, generator=generator, output_type="pt", particle_parallel=shared, **call).rewards

    def timed(shared: bool) -> tuple[float, torch.Tensor]:
        processes.wait_for_everyone()
        started = time.perf_counter()
        if not shared and not processes.is_main_process:
            return 0.0, torch.zeros(0)
        rewards = torch.cat([generate(text, shared) for text in texts])
        if processes.device.type == "cuda":
            torch.cuda.synchronize(processes.device)
        return time.perf_counter() - started, rewards

    seconds: dict[str, list[float]] = {"alone": [], "shared": []}
    difference, peaks = 0.0, {}
    for repeat in range(repeats + 1):
        (alone, expected), (shared, rewards) = timed(False), timed(True)
        if not processes.is_main_process:
            continue
        difference = max(difference, (rewards - expected).abs().max().item())
        if repeat:
            seconds["alone"].append(alone)
            seconds["shared"].append(shared)
    if processes.is_main_process:
        peaks["alone"] = peak_bytes_on(processes.device, lambda: generate(texts[0], False))
    peaks["shared"] = peak_bytes_on(processes.device, lambda: generate(texts[0], True))
    if not processes.is_main_process:
        return None
    return {
        "processes": processes.num_processes,
        "seconds": seconds,
        "speed-up": statistics.median(a / b for a, b in zip(seconds["alone"], seconds["shared"])),
        "peak bytes": peaks,
        "difference": difference,
    }

"""What several processes gain on one prompt's particles: time and memory of a particle-parallel call beside those of
the same call by one process, in turn on the same machine."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from accelerate import PartialState

from fk_steer.cli.options import (
    Device,
    FullSize,
    Model,
    RandomWeights,
    Repeats,
    Size,
    SizedPreset,
    Steps,
    one_line_errors,
)
from fk_steer.console import console
from fk_steer.diffusion import steer
from fk_steer.evaluation.costs import machine, peak_bytes_on
from fk_steer.evaluation.world import sized
from fk_steer.files import write_json
from fk_steer.loading import join_processes, quiet_libraries, set_scheduler
from fk_steer.rewards.base import RewardFunction
from fk_steer.search import FKSteering
from fk_steer.shapes.captions import evaluation_prompts
from fk_steer.testing.full_size import bundled_or_full_size


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


app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Write seconds, the speed-up and peak memory to this JSON file.")],
    model: Model = "shapes",
    full_size: FullSize = None,
    random_weights: RandomWeights = False,
    preset: SizedPreset = "adaptive:8",
    prompts: Annotated[int, typer.Option(min=1, help="Generate this many prompts in a repeat, in a call each.")] = 4,
    repeats: Repeats = 5,
    steps: Steps = None,
    size: Size = None,
    device: Device = None,
) -> None:
    """Measure a particle-parallel call and the same call by one process, in turn: seconds and peak memory. Start with
    `torchrun --nproc-per-node N --no-python`."""
    with one_line_errors():
        quiet_libraries()

        if (full_size is not None) != random_weights:
            raise ValueError("Expected --full-size and --random-weights together, or neither.")
        processes = join_processes(device)
        pipe, guide, call = bundled_or_full_size(model, full_size, processes.device, steps, size)
        steering = sized(preset, call["num_inference_steps"])
        measured = measure(pipe, guide, steering, processes, prompts=prompts, repeats=repeats, **call)
        if measured is None:
            return
        setup = {"model": full_size or model, "preset": preset, "prompts": prompts, **call}
        write_json(out, {**setup, "machine": machine(processes.device), **measured})
        console.print(f"speed-up by {measured['processes']} processes: {measured['speed-up']:.3f}", highlight=False)
        for way, peak in measured["peak bytes"].items():
            console.print(f"peak memory, {way}: {peak / 2**20:.1f} MiB", highlight=False)


if __name__ == "__main__":
    app()

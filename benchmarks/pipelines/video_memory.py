"""Peak memory of steered videos by the number of particles, at fixed sizes of chunks.

python -m benchmarks.pipelines.video_memory --out out/video_memory.json

A tiny Wan with random weights makes videos of 16 frames (17: its autoencoder takes one more than a multiple of four).
`tensors` is the most bytes of tensors alive at once during the call. Final videos of all particles are what a steered
call gives back, so they are there whatever is done: a byte per value as PIL images, which are no tensors, and four as
'pt'. `beyond` is what is alive beside them and the latents. `process` is how much the memory of a process of its own
grows during the call, the images included.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from fk_steer import Execution, FKSteering, FrameReward, steer
from fk_steer.evaluation.live import LiveBytes
from fk_steer.options import Help
from fk_steer.smc import Schedule
from fk_steer.testing import redness
from fk_steer.testing.tiny import wan


FRAMES = 17
PARTICLES = (4, 8, 16)


def call(particles: int, output_type: str, execution: Execution, side: int) -> object:
    """A steered call of a tiny Wan; its events are one in the loop and the final videos."""
    pipe = wan(FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True))
    settings = FKSteering(num_particles=particles, lmbda=10.0, schedule=Schedule((0.5,)))
    steered = steer(pipe, FrameReward(redness, frames=4), settings, execution)
    return steered(
        "a red circle",
        num_inference_steps=2,
        height=side,
        width=side,
        num_frames=FRAMES,
        max_sequence_length=16,
        generator=torch.Generator().manual_seed(0),
        output_type=output_type,
    )


def peak_of_tensors(particles: int, output_type: str, execution: Execution, side: int = 48) -> int:
    """Most bytes of tensors alive at once during a call."""
    gc.collect()
    with LiveBytes() as live:
        call(particles, output_type, execution, side)
    return live.peak


def unavoidable(particles: int, output_type: str, side: int = 48) -> int:
    """Bytes of the final videos, where they are tensors, and of the latents."""
    latents = 4 * 4 * (FRAMES // 4 + 1) * (side // 8) ** 2
    return particles * (latents + (4 * FRAMES * 3 * side**2 if output_type == "pt" else 0))


def growth_of_process(particles: int, output_type: str, side: int) -> int:
    """By how much the most memory of a process grows during a call, after one of two particles."""
    code = (
        "import resource, torch; from fk_steer import Execution; from benchmarks.pipelines.video_memory import call\n"
        "torch.set_num_threads(1)\n"
        "sizes = Execution(2, 1, 1)\n"
        f"call(2, {output_type!r}, sizes, {side})\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"call({particles}, {output_type!r}, sizes, {side})\n"
        "print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))"
    )
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    return int(run.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--side", type=int, default=48, help="Make videos of this side in pixels.")
    parser.add_argument("--process", action="store_true", help="Measure processes of their own too.")
    parser.add_argument("--out", type=Path, help="Write the table to this JSON file.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print("| output | decode | reward | particles | tensors, MiB | beyond, MiB |" + " process, MiB |" * options.process)
    print("|---|---|---|---|---|---|" + "---|" * options.process)
    for output_type in ("pil", "pt", "latent"):
        for decode, reward in ((1, None), (2, None), (1, 2)):
            for particles in PARTICLES:
                peak = peak_of_tensors(particles, output_type, Execution(2, decode, reward), options.side)
                beyond = peak - unavoidable(particles, output_type, options.side)
                row: dict[str, str | float | None] = {
                    "output": output_type,
                    "decode": decode,
                    "reward": reward,
                    "particles": particles,
                }
                row |= {"tensors": round(peak / 2**20, 2), "beyond": round(beyond / 2**20, 2)}
                if options.process:
                    row["process"] = round(growth_of_process(particles, output_type, options.side) / 2**20, 1)
                rows.append(row)
                cells = " | ".join("-" if value is None else str(value) for value in row.values())
                print(f"| {cells} |", flush=True)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()

"""Peak memory: flat in the number of particles at fixed chunk sizes, and full-size models in 20 GiB."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.profiler import ProfilerActivity, profile

from fk_steer import FKSteering, steer
from fk_steer.testing import PROMPTS, redness, sd


def peak_bytes(function: Callable[[], object]) -> int:
    """Most bytes of tensors alive at once during a call, on the CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def test_peak_memory_is_that_of_the_chunk():
    pipe = sd()
    side = 64

    def peak(num_particles: int, chunk: int | None) -> int:
        sizes = dict.fromkeys(("reward_batch_size", "decode_batch_size"), chunk)
        settings = FKSteering(
            num_particles=num_particles, lmbda=1.0, denoise_batch_size=chunk and 2 * chunk, schedule=(0.5,), **sizes
        )
        call = dict(num_inference_steps=3, height=side, width=side, output_type="latent")
        return peak_bytes(lambda: steer(pipe, redness, settings)(PROMPTS[0], **call))

    peak(4, 4)  # what is allocated once
    latents = 4 * (side // 2) ** 2 * 4
    few, many, unchunked = peak(4, 4), peak(64, 4), peak(64, None)
    # Besides the chunk there are only latents, text embeddings and model outputs: a few latents' worth a particle.
    assert many - few < 60 * 12 * latents
    assert few + 60 * 12 * latents < 0.2 * unchunked


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parameters"), [("sd21", 865_910_724), ("sdxl", 2_567_463_684)])
def test_full_size_models_fit(name, parameters):
    script = Path(__file__).with_name("full_size.py")
    run = subprocess.run([sys.executable, script, name], stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(run.stdout.splitlines()[-1])
    assert result["parameters"] == parameters
    assert result["finite"]
    assert result["gibibytes"] < 20

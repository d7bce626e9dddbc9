"""Peak memory: flat in the number of particles at fixed chunk sizes, and full-size models in 20 GiB."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from fk_steer import FKSteering
from fk_steer.evaluation.costs import by_particles
from fk_steer.testing import PROMPTS, redness, sd


def test_peak_memory_is_that_of_the_chunk():
    side = 64
    call = dict(num_inference_steps=3, height=side, width=side, output_type="latent")
    peaks = by_particles(sd(), redness, FKSteering(lmbda=1.0, schedule=(0.5,)), PROMPTS[0], particles=(4, 64), **call)
    latents = 4 * (side // 2) ** 2 * 4
    few, many, unchunked = peaks["chunked"][4], peaks["chunked"][64], peaks["unchunked"][64]
    # Besides the chunk there are only latents, text embeddings and model outputs: a few latents' worth a particle.
    assert many - few < 60 * 12 * latents
    assert few + 60 * 12 * latents < 0.2 * unchunked


# In a process of its own, whose peak is the model's.
TWO_STEPS = """
import json, resource, sys
from fk_steer import Execution, FKSteering, steer
from fk_steer.testing.full_size import random_pipeline
from fk_steer.testing import redness

pipe = random_pipeline(sys.argv[1])
settings = FKSteering(num_particles=2, lmbda=1.0, schedule=(0,))
steered = steer(pipe, redness, settings, Execution(denoise_batch_size=2))
output = steered("a", num_inference_steps=2, height=64, width=64, output_type="pt")
print(json.dumps({
    "parameters": pipe.unet.num_parameters(),
    "gibibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    "finite": bool(output.rewards.isfinite().all()),
}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parameters"), [("sd21", 865_910_724), ("sdxl", 2_567_463_684)])
def test_full_size_models_fit(name, parameters):
    run = subprocess.run([sys.executable, "-c", TWO_STEPS, name], stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(run.stdout.splitlines()[-1])
    assert result["parameters"] == parameters
    assert result["finite"]
    assert result["gibibytes"] < 20

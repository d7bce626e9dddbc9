"""Presets side by side on the same prompts, from the same initial noise: rewards, denoiser rows and seconds.

python examples/compare_presets.py
python examples/compare_presets.py --preset adaptive best-of-n lookahead evolution --particles 8
"""

import argparse

import torch

from fk_steer import load_reward, preset, steer
from fk_steer.bundled import bundled_options
from fk_steer.loading import load_pipeline, set_scheduler
from fk_steer.options import Help


PRESETS = ["best-of-n", "adaptive", "finish", "evolution"]
PROMPTS = ["a photo of three hearts", "a photo of a blue star and a red moon"]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
parser.add_argument("--model", default="shapes", help="Draw with this pipeline, a hub id, folder or bundled one.")
parser.add_argument("--reward", default="clip-score", help="Steer by this reward; `fk-steer rewards` lists them.")
parser.add_argument("--preset", nargs="+", default=PRESETS, help="Compare these presets.")
parser.add_argument("--prompt", nargs="+", default=PROMPTS, help="Say what to generate.")
parser.add_argument("--particles", type=int, default=4, help="Denoise this many candidates of each image (particles).")
parser.add_argument("--steps", type=int, default=25, help="Take this many denoising steps.")
options = parser.parse_args()

device = "cuda" if torch.cuda.is_available() else "cpu"
pipe = load_pipeline(options.model, device=device)
pipe.set_progress_bar_config(disable=True)
reward = load_reward(options.reward, **bundled_options(options.model, options.reward))
stock = pipe.scheduler
print(f"{'preset':14} {'mean best reward':>16} {'denoiser rows':>14} {'images scored':>14} {'seconds':>8}")
for name in options.preset:
    settings = preset(name, num_particles=options.particles)
    pipe.scheduler = stock
    set_scheduler(pipe, None, settings, options.steps)
    output = steer(pipe, reward, settings)(
        options.prompt, num_inference_steps=options.steps, generator=torch.Generator().manual_seed(0)
    )
    best, trace = output.rewards[:, 0].mean().item(), output.trace
    print(f"{name:14} {best:16.3f} {trace.nfe:14} {trace.reward_calls:14} {trace.seconds['total']:8.1f}")
# Two prompts illustrate and do not measure: `python benchmarks/compute/run.py --help` does that.

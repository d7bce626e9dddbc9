"""SDXL steered by a reward: several particles go through the denoiser together, the promising ones are continued.

python examples/steer_sdxl.py
python examples/steer_sdxl.py --model stabilityai/stable-diffusion-xl-base-1.0 --reward image-reward
"""

import argparse
from pathlib import Path

import torch

from fk_steer import Execution, FKSteering
from fk_steer.bundled import bundled_options
from fk_steer.loading import load_guide, load_pipeline, set_scheduler
from fk_steer.options import Help


PROMPTS = ["a photo of three hearts", "a photo of a blue star and a red moon"]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
parser.add_argument("--model", default="shapes-xl", help="Draw with this SDXL, a hub id, folder or bundled one.")
parser.add_argument("--reward", default="clip-score", help="Steer by this reward; `fk-steer rewards` lists them.")
parser.add_argument("--prompt", nargs="+", default=PROMPTS, help="Say what to generate.")
parser.add_argument("--particles", type=int, default=4, help="Denoise this many candidates of each image (particles).")
parser.add_argument("--steps", type=int, default=25, help="Take this many denoising steps.")
parser.add_argument("--out", type=Path, default=Path("out/examples/steer_sdxl"), help="Write images to this folder.")
options = parser.parse_args()

device = "cuda" if torch.cuda.is_available() else "cpu"
# An SDXL comes as an `FKStableDiffusionXLPipeline`, whose call takes `reward=` and `steering=`. By hand it is
# `FKStableDiffusionXLPipeline.from_pretrained("stabilityai/stable-diffusion-xl-base-1.0", dtype=torch.float16)`.
pipe = load_pipeline(options.model, device=device)
reward = load_guide(options.reward, device, **bundled_options(options.model, options.reward))

# The default settings: at six events from 40% of the loop on, particles are weighed and resampled. They need no lambda.
steering = FKSteering(num_particles=options.particles)
# Copies of a particle part by the sampler's noise, so a sampler without any is replaced.
set_scheduler(pipe, None, steering, options.steps)

output = pipe(
    options.prompt,
    reward=reward,
    steering=steering,
    # How much is done at a time changes no result: peak memory stays flat as particles grow.
    execution=Execution(denoise_batch_size=8, decode_batch_size=4, reward_batch_size=4),
    num_inference_steps=options.steps,
    generator=torch.Generator().manual_seed(0),
)

options.out.mkdir(parents=True, exist_ok=True)
for number, (prompt, image, rewards) in enumerate(zip(options.prompt, output.images, output.rewards.tolist())):
    # `images` holds the best of each prompt's particles, `particles[number]` all of them, best first.
    image.save(options.out / f"{number}.png")
    print(f"{prompt}: rewards {', '.join(f'{value:.3f}' for value in rewards)}")
# The trace says what happened at every event; `plot` draws who descends from whom.
output.trace.plot(0).savefig(options.out / "lineages.png")
print(f"{output.trace.nfe} denoiser rows, {output.trace.seconds['total']:.1f} s; see {options.out}")

"""Videos steered by a reward of their frames.

python examples/steer_video.py                      # a tiny Wan with random weights, seconds on a CPU
python examples/steer_video.py --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --height 480 --width 832 --frames 33 --steps 30
"""

import argparse
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from fk_steer import Execution, FKSteering, FrameReward, load_reward, steer
from fk_steer.bundled import bundled_options
from fk_steer.files import webp
from fk_steer.options import Help
from fk_steer.testing import tiny


parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
parser.add_argument("--model", help="Steer this pipeline of videos, a hub id or folder; left out, a tiny Wan.")
parser.add_argument("--reward", default="clip-score", help="Steer by this reward; `fk-steer rewards` lists them.")
parser.add_argument("--prompt", default="a photo of a red star", help="Say what to generate.")
parser.add_argument("--particles", type=int, default=4, help="Denoise this many candidates of each image (particles).")
parser.add_argument("--height", type=int, default=32, help="Make videos of this height in pixels.")
parser.add_argument("--width", type=int, default=32, help="Make videos of this width in pixels.")
parser.add_argument("--frames", type=int, default=17, help="Make videos of this many frames.")
parser.add_argument("--steps", type=int, default=6, help="Take this many denoising steps.")
parser.add_argument(
    "--out", type=Path, default=Path("out/examples/steer_video"), help="Write everything to this folder."
)
options = parser.parse_args()

pipe = tiny.wan() if options.model is None else DiffusionPipeline.from_pretrained(options.model, dtype=torch.bfloat16)
pipe = pipe.to("cuda" if torch.cuda.is_available() else "cpu")
images = load_reward(options.reward, **({} if options.model else bundled_options("shapes", options.reward)))

# A reward of images scores frames. 'min': a video is as good as its worst frame.
reward = FrameReward(images, frames=4, reduce="min")
# Memory does not grow with the particles but by what is kept of each: latents, and the final frames.
sizes = Execution(denoise_batch_size=2, decode_batch_size=1)
steered = steer(pipe, reward, FKSteering(num_particles=options.particles, schedule=(0.4, 0.7)), sizes)
output = steered(
    options.prompt,
    height=options.height,
    width=options.width,
    num_frames=options.frames,
    num_inference_steps=options.steps,
    generator=torch.Generator().manual_seed(0),
    output_type="pil",
)

options.out.mkdir(parents=True, exist_ok=True)
for rank, video in enumerate(output.particles[0]):
    (options.out / f"{rank}.webp").write_bytes(webp(video, fps=8))
print(f"{len(output.particles[0])} videos of {len(output.images[0])} frames, best first:", end=" ")
print(", ".join(f"{value:.3f}" for value in output.rewards[0].tolist()), f"; see {options.out}")

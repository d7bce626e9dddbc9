"""A pipeline that you have already, steered without a subclass: `steer(pipe, reward)` is called as the pipeline is.

python examples/any_pipeline.py
python examples/any_pipeline.py --model black-forest-labs/FLUX.1-dev --guidance 3.5
"""

import argparse
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from fk_steer import load_reward, steer
from fk_steer.bundled import BUNDLED, bundled_options, resolve
from fk_steer.shapes import shared_components


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="shapes", help="hub id or folder of any text-to-image pipeline")
parser.add_argument("--reward", default="clip-score", help="see `fk-steer rewards`")
parser.add_argument("--preset", default="adaptive", help="see `fk-steer presets`")
parser.add_argument("--prompt", default="a photo of a red star and a blue circle")
parser.add_argument("--guidance", type=float, default=3.0)
parser.add_argument("--steps", type=int, default=25)
parser.add_argument("--out", type=Path, default=Path("out/examples/any_pipeline"))
options = parser.parse_args()

# Any pipeline of Diffusers' own, loaded in any way, with its LoRAs, offloading or compiled denoiser.
components = shared_components(options.model) if options.model in BUNDLED else {}
pipe = DiffusionPipeline.from_pretrained(resolve(options.model), **components)
pipe = pipe.to("cuda" if torch.cuda.is_available() else "cpu")

reward = load_reward(options.reward, **bundled_options(options.model, options.reward))
steered = steer(pipe, reward, options.preset)


def watch(event):
    """Called after every scoring event; `event.stop()` would end the run with the predictions of this step."""
    best = event.rewards.max().item()
    print(f"step {event.step}: best reward {best:.3f}, ancestors {event.ancestors[0].tolist()}")


output = steered(
    options.prompt,
    num_inference_steps=options.steps,
    guidance_scale=options.guidance,
    generator=torch.Generator().manual_seed(0),
    on_event=watch,
)

options.out.mkdir(parents=True, exist_ok=True)
for rank, image in enumerate(output.particles[0]):
    image.save(options.out / f"{rank}.png")
print(f"best of {len(output.particles[0])}: {output.rewards[0, 0].item():.3f}; see {options.out}")

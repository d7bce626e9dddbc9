"""A reward of your own: a function of tensors, a function of PIL images, or a class; and rewards made of rewards.

python examples/your_own_reward.py
"""

import argparse

import torch
from PIL import ImageStat

from fk_steer import Reward, as_pil, load_reward, steer
from fk_steer.bundled import bundled_options
from fk_steer.loading import load_pipeline
from fk_steer.options import Help
from fk_steer.rewards import Cascade, Clipped, WeightedSum, ZScoreSum


# 1. A function of images (B, 3, H, W) in [0, 1] and B prompts, which returns B numbers: higher is better.
def brightness(images, prompts):
    return images.mean((1, 2, 3))


# 2. The shape that most people's first scorer has: a list of PIL images. `as_pil` makes a reward of it.
@as_pil
def contrast(pictures, prompts):
    return [ImageStat.Stat(picture.convert("L")).stddev[0] / 128 for picture in pictures]


# 3. A class, for a scorer with weights or settings. `default_lmbda` is a lambda that suits its scale: about one over
# the spread of its values among images of one prompt. The default preset needs none.
class Redness(Reward):
    default_lmbda = 10.0

    def __init__(self, against: float = 0.5) -> None:
        self.against = against

    def __call__(self, images, prompts):
        return images[:, 0].mean((1, 2)) - self.against * images[:, 1:].mean((1, 2, 3))


parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
parser.add_argument("--model", default="shapes", help="Draw with this pipeline, a hub id, folder or bundled one.")
parser.add_argument("--prompt", default="a photo of a star", help="Say what to generate.")
parser.add_argument("--steps", type=int, default=25, help="Take this many denoising steps.")
options = parser.parse_args()

pipe = load_pipeline(options.model, device="cuda" if torch.cuda.is_available() else "cpu")
clip = load_reward("clip-score", **bundled_options(options.model, "clip-score"))
# Rewards made of rewards are rewards, and nest freely.
rewards = {
    "a function": brightness,
    "a function of PIL images": contrast,
    "a class": Redness(),
    "a sum": WeightedSum({clip: 1.0, Redness(): 0.2}),
    "z-scores, one of them of a clipped reward": ZScoreSum({Clipped(clip, high=0.9): 1.0, brightness: 0.5}),
    "a cheap one early, a sum late": Cascade(brightness, WeightedSum({clip: 1.0, contrast: 0.1}, default_lmbda=10.0)),
}
for name, reward in rewards.items():
    output = steer(pipe, reward)(
        options.prompt, num_inference_steps=options.steps, generator=torch.Generator().manual_seed(0)
    )
    found = ", ".join(f"{value:.3f}" for value in output.rewards[0].tolist())
    print(f"{name}: {found}")

# A package of your own adds rewards to `load_reward` and to the command line by an entry point in its setup.cfg:
#     [options.entry_points]
#     fk_steer.rewards =
#         redness = my_package:Redness

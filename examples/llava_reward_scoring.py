"""LLaVA-Reward on its own: images scored for prompts from several perspectives, by one backbone.

    python examples/llava_reward_scoring.py
    python examples/llava_reward_scoring.py --checkpoint smz8599/LLaVA-Reward/alignment/llavareward_phi_alignment \
        --images a.png b.png --prompt "a photo of a brown oven"
"""

import argparse
from pathlib import Path

from fk_steer.bundled import BUNDLED_LLAVA_REWARD
from fk_steer.options import Help
from fk_steer.shapes import load_pipeline
from llava_reward_guide import LlavaReward
from llava_reward_guide.images import load_image


parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
parser.add_argument(
    "--checkpoint",
    help="Load this folder, or OWNER/REPO/PATH of the hub; left out, the bundled one.",
)
parser.add_argument(
    "--images", type=Path, nargs="+", help="Score these files; left out, two that the bundled model draws."
)
parser.add_argument("--prompt", default="a photo of a red star and a blue circle", help="Say what the images are of.")
parser.add_argument("--steps", type=int, default=25, help="Take this many denoising steps.")
options = parser.parse_args()

# A checkpoint is a head, an adapter and settings; several of them share a backbone, which is loaded once.
if options.checkpoint:
    reward = LlavaReward.from_pretrained(options.checkpoint)
else:
    folders = {name: BUNDLED_LLAVA_REWARD / name for name in ("alignment", "fidelity", "overall")}
    reward = LlavaReward.from_pretrained(folders, backbone=str(BUNDLED_LLAVA_REWARD / "backbone"))

if options.images:
    images = [load_image(path) for path in options.images]
    names = [str(path) for path in options.images]
else:
    pipe = load_pipeline()
    call = {"num_inference_steps": options.steps, "guidance_scale": 3.0}
    images = [pipe(prompt, **call).images[0] for prompt in (options.prompt, "a photo of two hearts")]
    names = ["an image of the prompt", "an image of another prompt"]

for perspective in reward.perspectives:
    reward.set_perspective(perspective)
    scores = reward.score(images, [options.prompt] * len(images)).tolist()
    print(f"{perspective}: " + ", ".join(f"{name} {score:.3f}" for name, score in zip(names, scores)))

# As a guide: `load_reward("llava-reward", path=...)`.

"""Rewards as guides, side by side: the same prompts steered by each, judged by GenEval's rules and by each other.

python examples/compare_rewards.py
python examples/compare_rewards.py --model sd21 sdxl --reward none clip-score image-reward --prompts geneval drawbench
"""

import argparse
from pathlib import Path

from fk_steer.evaluation.comparison.run import run
from fk_steer.options import Help


parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
parser.add_argument("--model", nargs="+", default=["shapes"], help="Draw with these: sd21, sdxl, or bundled models.")
parser.add_argument(
    "--reward",
    nargs="+",
    default=["none", "clip-score", "llava-reward"],
    help="Compare these rewards as guides; none is the stock pipeline.",
)
parser.add_argument(
    "--prompts", nargs="+", default=["shapes"], help="Take these lists: geneval, drawbench, shapes or files."
)
parser.add_argument("--limit", type=int, default=6, help="Take this many prompts of each list.")
parser.add_argument("--samples", type=int, default=1, help="Make this many images of each prompt.")
parser.add_argument("--steps", type=int, default=25, help="Take this many denoising steps.")
parser.add_argument(
    "--out", type=Path, default=Path("out/examples/compare_rewards"), help="Write the study to this folder."
)
options = parser.parse_args()

config = {
    "models": options.model,
    "rewards": {name: {} for name in options.reward},
    "prompts": options.prompts,
    "generation": {"limit": options.limit, "samples_per_prompt": options.samples, "steps": options.steps},
}
# Everything is resumed: run again, it does what is missing and writes the same tables.
failures = run(config, options.out)
print(f"{len(failures)} failures; open {options.out / 'report.html'}")

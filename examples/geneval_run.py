"""A generation run over a prompt list, judged by GenEval's rules. Killed and started again, it makes what is missing.

python examples/geneval_run.py
python examples/geneval_run.py --model stabilityai/stable-diffusion-xl-base-1.0 --reward image-reward
"""

import argparse
from pathlib import Path

from fk_steer.bundled import BUNDLED
from fk_steer.evaluation.generation import GenerationSettings, generate
from fk_steer.evaluation.geneval.accuracy import detector_settings, evaluate_folders
from fk_steer.evaluation.geneval.evaluator import lines
from fk_steer.options import Help
from fk_steer.search import DEFAULT_PRESET


parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
parser.add_argument("--model", default="shapes", help="Draw with this pipeline, a hub id, folder or bundled one.")
parser.add_argument("--reward", default="clip-score", help="Steer by this reward; `fk-steer rewards` lists them.")
parser.add_argument("--preset", default=DEFAULT_PRESET, help="Steer by these settings; `fk-steer presets` lists them.")
parser.add_argument("--limit", type=int, default=12, help="Take this many prompts, spread evenly over the tasks.")
parser.add_argument("--samples", type=int, default=1, help="Make this many images of each prompt.")
parser.add_argument("--steps", type=int, default=25, help="Take this many denoising steps.")
parser.add_argument("--out", type=Path, default=Path("out/examples/geneval"), help="Write everything to this folder.")
options = parser.parse_args()

bundled = options.model in BUNDLED
settings = GenerationSettings(
    model=options.model,
    # GenEval's 553 prompts; for the bundled models the held-out prompts of their world, in GenEval's six tasks.
    prompts="shapes" if bundled else "geneval",
    reward=options.reward,
    preset=options.preset,
    limit=options.limit,
    samples_per_prompt=options.samples,
    steps=options.steps,
)
# The folder has GenEval's own layout, so that the official scorer runs on it too.
generate(settings, options.out)
detector = detector_settings("shapes" if bundled else "mask2former")
(summary,) = evaluate_folders([(options.out, options.out / "evaluation")], detector, device=None)
print("\n".join(lines(summary)))

"""Sums up the answers that TIIF-Bench publishes image by image, with standard errors.

    python benchmarks/prompt_lists/published.py --tiif TIIF-Bench

TIIF-Bench is a checkout of A113N-W3I/TIIF-Bench; its eval-results/testmini_subset_eval_results have a file per image with
the right answers and those of a judge.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fk_steer.evaluation.checklists import summaries
from fk_steer.evaluation.checklists.summaries import Answered
from fk_steer.evaluation.statistics import plus_minus
from fk_steer.rewards.checks import Check


SHOWN = ("QwenVL/sd_xl", "GPT-4o/DALLE3", "GPT-4o/FluxPro")


def answered(folder: Path, length: str) -> list[Answered]:
    """The images of a model; an answer is 1 where the judge's is the right one."""
    found = []
    for file in sorted(folder.glob(f"*/{length}/*.json")):
        one = json.loads(file.read_text(encoding="utf-8"))
        right = tuple(
            float(said.strip().lower() == expected.strip().lower())
            for expected, said in zip(one["gt_answers"], one["model_pred"])
        )
        if right:
            category = file.parent.parent.name
            checks = tuple(Check(question) for question in one["questions"][: len(right)])
            found.append(Answered(f"{category}/{file.stem}", {"category": category}, checks, right))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiif", type=Path, required=True, help="checkout of the repository")
    root = parser.parse_args().tiif / "eval-results" / "testmini_subset_eval_results"
    for name in SHOWN:
        judge, model = name.split("/")
        for length in ("short", "long"):
            images = answered(root / f"testmini_subset_eval_results_{judge}" / model, length)
            print(f"\n{model} by {judge}, {length} prompts, {len(images)} images")
            for line in summaries.tiif(images):
                if line.group != "attribute":
                    print(f"  {line.name:<36} {plus_minus(line.estimate, '.1f')}")

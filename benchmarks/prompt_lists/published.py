"""Compares with what is published: answers that TIIF-Bench gives image by image, summed up with standard errors, and
GenEval 2's questions with those that its prompts are taken apart into.

    python benchmarks/prompt_lists/published.py --tiif TIIF-Bench
    python benchmarks/prompt_lists/published.py --geneval2 GenEval2/geneval2_data.jsonl

TIIF-Bench is a checkout of A113N-W3I/TIIF-Bench; its eval-results/testmini_subset_eval_results have a file per image
with the right answers and those of a judge.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fk_steer.evaluation.checklists import summaries
from fk_steer.evaluation.checklists.summaries import Answered
from fk_steer.evaluation.prompts import prompt_list
from fk_steer.evaluation.statistics import plus_minus
from fk_steer.rewards.check_templates import from_wording
from fk_steer.rewards.checks import Check, checklist_of


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


def tiif(root: Path) -> None:
    for name in SHOWN:
        judge, model = name.split("/")
        for length in ("short", "long"):
            images = answered(root / f"testmini_subset_eval_results_{judge}" / model, length)
            print(f"\n{model} by {judge}, {length} prompts, {len(images)} images")
            for line in summaries.tiif(images):
                if line.group != "attribute":
                    print(f"  {line.name:<36} {plus_minus(line.estimate, '.1f')}")


def geneval2(file: Path) -> None:
    """How many prompts give the published questions, answers and kinds in the published order."""
    entries = prompt_list("geneval2", file)
    same = sum(
        [(one.question, one.answer, one.kind) for one in from_wording(entry["prompt"])]
        == [(one.question, one.answer.lower(), one.kind) for one in checklist_of(entry)]
        for entry in entries
    )
    print(f"{same} of {len(entries)} prompts of GenEval 2 are taken apart into the published questions")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiif", type=Path, help="checkout of the repository")
    parser.add_argument("--geneval2", type=Path, help="geneval2_data.jsonl")
    options = parser.parse_args()
    if options.tiif:
        tiif(options.tiif / "eval-results" / "testmini_subset_eval_results")
    if options.geneval2:
        geneval2(options.geneval2)

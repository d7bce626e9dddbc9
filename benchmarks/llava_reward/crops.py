"""How the ranking of a prompt's images changes when LLaVA-Reward sees fewer crops of them.

python benchmarks/llava_reward/crops.py runs/preferences runs/crops/final --backbone runs/llava/backbone

The checkpoint should be trained on the most crops: `fk_steer.shapes.train_llava_reward --num-crops 4`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from fk_steer.console import console
from fk_steer.evaluation.preferences import accuracies
from fk_steer.evaluation.statistics import clustered_mean, plus_minus
from fk_steer.files import write_json
from fk_steer.loading import quiet_libraries
from llava_reward_guide import LlavaReward
from llava_reward_guide.cost import CropsAgreement, crops_agreement
from llava_reward_guide.images import load_image


def agreement(reward: LlavaReward, file: Path, num_crops: list[int]) -> dict[int, dict[str, Any]]:
    """Number of crops -> TFLOP per image, share of pairs told right in %, and over the groups of images of one prompt
    Kendall's tau with the ranking by the most crops and how often the best image is the same, in %. All but the first
    are estimates (see `statistics.Estimate`) with standard errors clustered by prompt.

    Args:
        reward: whose backbone cuts images into crops.
        file: a JSON file of `preferences`.
        num_crops: numbers to compare.
    """
    groups: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for item in json.loads(file.read_text()):
        groups[item["prompt"]][item["group"]] |= {item["chosen_path"], item["reject_path"]}
    found: dict[int, dict[str, list[CropsAgreement]]] = defaultdict(lambda: defaultdict(list))
    for prompt, members in groups.items():
        for paths in members.values():
            images = [load_image(file.parent / path) for path in sorted(paths)]
            for row in crops_agreement(reward, images, [prompt] * len(images), num_crops):
                found[row.num_crops][prompt].append(row)
    results: dict[int, dict[str, Any]] = {}
    for number, by_prompt in found.items():
        results[number] = {
            "tflop_per_image": next(iter(by_prompt.values()))[0].tflop_per_image,
            "told_right": accuracies(partial(reward.score, num_crops=number), file)["all"],
            "kendall_tau": clustered_mean([[row.kendall_tau for row in rows] for rows in by_prompt.values()]),
            "same_best": clustered_mean([[100.0 * row.same_best for row in rows] for rows in by_prompt.values()]),
        }
    return results


def main(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="Read pairs from this folder, which `fk_steer.shapes.preferences` has made."
        ),
    ],
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Load this LLaVA-Reward, trained on the most crops.")
    ],
    backbone: Annotated[Path, typer.Option(help="Load the multimodal LLM from this folder.")],
    num_crops: Annotated[list[int], typer.Option(help="Compare these numbers of crops.")] = [4, 1],  # noqa: B006
    out: Annotated[
        Path | None, typer.Option(help="Write agreement and accuracy to this JSON file.", show_default="none")
    ] = None,
) -> None:
    """Print agreement and accuracy by number of crops, on held-out pairs with clean labels."""
    quiet_libraries()
    reward = LlavaReward.from_pretrained(checkpoint, backbone=str(backbone), device="cpu")
    results = agreement(reward, folder / "alignment-heldout-clean.json", num_crops)
    table = Table("crops", "GFLOP per image", "told right, %", "Kendall's tau", "same best, %")
    for number, row in results.items():
        table.add_row(
            str(number),
            f"{1000 * row['tflop_per_image']:.2f}",
            plus_minus(row["told_right"], ".1f"),
            plus_minus(row["kendall_tau"], ".2f"),
            plus_minus(row["same_best"], ".1f"),
        )
    console.print(table)
    if out is not None:
        write_json(out, results)


if __name__ == "__main__":
    typer.run(main)

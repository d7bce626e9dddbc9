"""How often rewards agree with the clean labels of held-out preferences, by task.

python benchmarks/llava_reward/preferences.py runs/preferences --out results.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fk_steer.console import console
from fk_steer.evaluation.preferences import accuracies
from fk_steer.evaluation.statistics import Estimate, plus_minus
from fk_steer.files import write_json
from fk_steer.loading import quiet_libraries
from fk_steer.rewards import load_reward
from fk_steer.shapes.preferences import PERSPECTIVES


REWARDS: dict[str, tuple[str, dict[str, str]]] = {
    "guide": ("clip-score", {"path": "shapes"}),
    "judge": ("clip-score", {"path": "shapes-held-out"}),
    "image-reward": ("image-reward", {"path": "shapes"}),
    **{
        f"llava-reward, {perspective}": ("llava-reward", {"path": "shapes", "perspective": perspective})
        for perspective in PERSPECTIVES
    },
}
"""Name in the table -> reward and its options."""


def main(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="Read pairs from this folder, which `fk_steer.shapes.preferences` has made."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Write accuracies to this JSON file.", show_default="none")] = None,
) -> None:
    """Print accuracies on held-out pairs with clean labels."""
    quiet_libraries()
    results: dict[str, dict[str, dict[str, Estimate]]] = {}
    for label, (name, options) in REWARDS.items():
        reward = load_reward(name, **options)
        for perspective in PERSPECTIVES:
            found = accuracies(reward, folder / f"{perspective}-heldout-clean.json")
            results.setdefault(perspective, {})[label] = found
    for perspective, rows in results.items():
        table = Table("pairs", *rows, title=perspective)
        for column in next(iter(rows.values())):
            table.add_row(column, *(plus_minus(found[column], ".1f") for found in rows.values()))
        console.print(table)
    if out is not None:
        write_json(out, results)


if __name__ == "__main__":
    typer.run(main)

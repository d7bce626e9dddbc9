"""Put trained models where the package looks for them, in float16.

python -m fk_steer.shapes.package --runs runs
"""

from __future__ import annotations

import filecmp
import json
import shutil
from pathlib import Path
from typing import Annotated

import typer
from diffusers import AutoencoderTiny
from transformers import CLIPModel, CLIPTokenizer

from ..console import console
from ..files import write_json
from . import BUNDLED, SHARED, WEIGHTS
from .models import copy_half, save_half


LLAVA_REWARDS = ("alignment", "alignment-gpm", "fidelity", "fidelity-gpm", "overall", "overall-gpm")


def main(
    runs: Annotated[
        Path,
        typer.Option(
            help="Take runs from this folder: guide, judge, preview, image-reward, llava, llava-reward/*, sd, sdxl."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Write the weights to this folder.")] = WEIGHTS,
) -> None:
    """Copy the models out of the folders of their training runs, and print their sizes."""
    for name in ("guide", "judge"):
        save_half(CLIPModel.from_pretrained(runs / name / "model"), out / name)
        CLIPTokenizer.from_pretrained(runs / name / "model").save_pretrained(out / name)
    save_half(AutoencoderTiny.from_pretrained(runs / "preview" / "model"), out / "preview")
    shutil.copytree(runs / "image-reward" / "model", out / "image-reward", dirs_exist_ok=True)
    copy_half(runs / "llava" / "backbone", out / "llava-reward" / "backbone")
    for name in LLAVA_REWARDS:
        copy_half(runs / "llava-reward" / name / "final", out / "llava-reward" / name)
        settings = out / "llava-reward" / name / "llava_reward.json"
        stored = json.loads(settings.read_text())
        # Where the backbone lay when the adapter was trained concerns nobody else.
        stored["backbone"]["name"] = None
        write_json(settings, stored)
    for name, folder in BUNDLED.items():
        shared = SHARED.get(name, {})
        for component, same in shared.items():
            _check_same(runs / folder / "pipeline" / component, out / BUNDLED["shapes"] / same)
        ignored = shutil.ignore_patterns(*shared)
        shutil.copytree(runs / folder / "pipeline", out / folder, ignore=ignored, dirs_exist_ok=True)
    for made in sorted(out.iterdir()):
        size = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
        console.print(f"{made.name}: {size / 1e6:.1f} MB", highlight=False)


def _check_same(folder: Path, other: Path) -> None:
    """
    Raises:
        ValueError: if a file of a folder is not the same in the other.
    """
    for path in folder.iterdir():
        if not filecmp.cmp(path, other / path.name, shallow=False):
            raise ValueError(f"Expected {path} to be as in {other}, where it is stored for both, but it is not.")


if __name__ == "__main__":
    typer.run(main)

"""`python -m llava_reward_guide.data`: annotations in, JSON to train on out."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from ..packages import require_for_commands


if __name__ == "__main__":
    require_for_commands()

import typer

from ..cli import one_line_errors
from ..terminal import flowing, usable_device
from .convert import best_images, labels_from_annotations, pairs_from_ratings
from .items import Items, check_images, read_rows, standard
from .overlap import remove_overlap
from .places import find_images


app = typer.Typer(
    help="Make data for training a LLaVA-Reward from annotations.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)

Sources = Annotated[
    list[Path], typer.Argument(metavar="FILE...", help="Read annotations from these JSON, JSONL or CSV files.")
]


def _no_csv(path: Path) -> Path:
    if path.suffix == ".csv":
        raise typer.BadParameter("Expected a name that ends in .json or .jsonl; CSV has no place for two prompts.")
    return path


Out = Annotated[
    Path,
    typer.Option(help="Write this JSON or JSONL file. Paths in it are as in the sources.", callback=_no_csv),
]
Evaluation = Annotated[
    list[Path],
    typer.Option(
        "--evaluation", help="Drop prompts similar to those of this file; may be repeated.", show_default="none"
    ),
]
Threshold = Annotated[
    float, typer.Option(min=0, max=1, help="Drop a prompt from this similarity on, 1 being the same text.")
]
Distance = Annotated[str, typer.Option(help="Normalise the edit distance between prompts by max or yujian-bo.")]
Validation = Annotated[
    float,
    typer.Option(
        min=0, max=0.9, help="Put this share of the prompts into a second file, OUT with '-validation' in its name."
    ),
]
Seed = Annotated[int, typer.Option(help="Draw the split from this seed.")]


@app.command()
def pairs(
    sources: Sources,
    out: Out,
    rating: Annotated[
        str | None,
        typer.Option(
            help="Compare by this column; for ImageReward alignment, fidelity or overall.",
            show_default="rating, or else a rank or preference",
        ),
    ] = None,
    min_gap: Annotated[float, typer.Option(help="Take ratings that differ by no more than this for ties.")] = 0.0,
    evaluation: Evaluation = [],  # noqa: B006
    threshold: Threshold = 0.85,
    distance: Distance = "max",
    negatives: Annotated[
        str | None,
        typer.Option(help="Add hard negatives, found with this CLIP (folder or hub id).", show_default="none"),
    ] = None,
    image_folder: Annotated[
        Path | None,
        typer.Option(
            help="Look for the images in this folder, under their paths or the ends of these.",
            show_default="the folder of the first file, which paths are relative to",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            callback=usable_device,
            help="Run that CLIP on this device: cpu, cuda, cuda:1 or mps.",
            show_default="cuda if there is one, else cpu",
        ),
    ] = None,
    validation: Validation = 0.0,
    seed: Seed = 0,
) -> None:
    """Make pairs from rated or ranked images.

    There is a row per image {prompt, path, RATING}, per prompt with lists of images and ranks (ImageReward, HPDv2), or
    per comparison (Pick-a-Pic, HPDv3, GenAI-Bench).
    """
    with one_line_errors():
        rows, where = _read(sources)
        items, statistics = pairs_from_ratings(rows, rating, min_gap, where=where)
        typer.echo(str(statistics))
        items = _without_overlap(items, evaluation, threshold, distance)
        if negatives is not None:
            import torch

            from .negatives import CLIPEmbedding, hard_negative_images, hard_negative_prompts

            folder = sources[0].parent if image_folder is None else image_folder
            listed = Items(items, folder)
            if image_folder is not None:
                listed = replace(listed, places=find_images(listed.paths(), folder))
                typer.echo(str(listed.places))
            good, bad = check_images(listed)
            for index, problem in bad.items():
                typer.echo(f"Skipped: pair {index}: {problem}", err=True)
            items = [items[index] for index in good]
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
            embedding = CLIPEmbedding(negatives, listed.open, device)
            best = best_images(items)
            images = [(pair[side], pair["prompt"]) for pair in items for side in ("chosen_path", "reject_path")]
            found = hard_negative_prompts(best, embedding.text) + hard_negative_images(best, images, embedding.image)
            typer.echo(f"{len(found)} hard negatives added")
            items += found
        _write(items, out, validation, seed)


@app.command()
def labels(
    sources: Sources,
    out: Out,
    evaluation: Evaluation = [],  # noqa: B006
    threshold: Threshold = 0.85,
    distance: Distance = "max",
    validation: Validation = 0.0,
    seed: Seed = 0,
) -> None:
    """Make labelled images from annotations: {path, label or safety_label (Safe, Unsafe, 1, 0), prompt or text}."""
    with one_line_errors():
        items = labels_from_annotations(*_read(sources))
        good = sum(item["label"] for item in items)
        typer.echo(f"{len(items)} images, {good} labelled 1 (good, safe) and {len(items) - good} labelled 0")
        _write(_without_overlap(items, evaluation, threshold, distance), out, validation, seed)


flowing(app)


def _read(sources: list[Path]) -> tuple[list[dict[str, Any]], Callable[[int], str]]:
    """Rows of all files, and what tells where a row is from."""
    rows: list[dict[str, Any]] = []
    places: list[tuple[Path, int]] = []
    for source in sources:
        found = read_rows(source)
        rows += found
        places += [(source, index) for index in range(len(found))]
    return rows, lambda index: f"item {places[index][1]} of '{places[index][0]}'"


def _without_overlap(items: list[Any], evaluation: list[Path], threshold: float, distance: str) -> list[Any]:
    if not evaluation:
        return items
    texts = [text for path in evaluation for row in read_rows(path) for text in _texts(row)]
    if not texts:
        raise ValueError(f"Expected prompts in {', '.join(map(str, evaluation))}, but found none.")
    kept, dropped = remove_overlap(items, texts, threshold, distance)
    typer.echo(
        f"{len(dropped)} prompts dropped, and with them {len(items) - len(kept)} items, as similar to those of the "
        f"evaluation"
    )
    return list(kept)


def _texts(row: dict[str, Any]) -> list[str]:
    """Its prompts that are not empty."""
    prompt = standard(row).get("prompt") or []
    texts = prompt if isinstance(prompt, list) else [prompt]
    return [text for text in texts if isinstance(text, str) and text]


def _write(items: list[dict[str, Any]], out: Path, validation: float, seed: int) -> None:
    """By prompt, so that no prompt is in both files; pairs with a prompt of either are left out."""

    def of(item: dict[str, Any]) -> set[str]:
        # Labelled images without a caption are told apart by their path.
        return set(_texts(item)) or {item.get("path", "")}

    prompts = sorted(set().union(*map(of, items)))
    random.Random(seed).shuffle(prompts)
    held_out = set(prompts[: round(validation * len(prompts))])
    parts = {out: [item for item in items if held_out.isdisjoint(of(item))]}
    if held_out:
        parts[out.with_name(f"{out.stem}-validation{out.suffix}")] = [item for item in items if of(item) <= held_out]
    if torn := len(items) - sum(map(len, parts.values())):
        typer.echo(f"{torn} pairs left out, as one of their prompts is held out and the other is not")
    out.parent.mkdir(parents=True, exist_ok=True)
    for path, part in parts.items():
        if path.suffix == ".jsonl":
            text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in part)
        else:
            text = json.dumps(part, indent=1, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8")
        typer.echo(f"{len(part)} items written to {path}")


if __name__ == "__main__":
    app(prog_name="python -m llava_reward_guide.data")

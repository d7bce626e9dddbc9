"""Images with their prompts: a folder in GenEval's layout, or a list of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llava_reward_guide.texts import TABLES, read_json, read_json_lines, read_table


@dataclass(frozen=True)
class Item:
    """An image and the prompt it was made for.

    Attributes:
        name: its path relative to the folder or the list, with slashes.
        path: where it is.
        prompt: the text.
        group: the images that were made together share it: the prompt's folder, or in a list the prompt.
        tag: the task or category of the prompt; empty if there is none.
    """

    name: str
    path: Path
    prompt: str
    group: str
    tag: str = ""


def read_items(source: Path) -> list[Item]:
    """The images of a folder in GenEval's layout (`00000/metadata.jsonl`, `00000/samples/00000.png`), of which only the
    prompts are needed, or of a CSV or JSON-lines file with the fields `path`, relative to it, and `prompt`, and perhaps
    `tag` or `category`.

    Raises:
        OSError: if there are none.
        ValueError: if prompts are missing.
    """
    items = _listed(source) if source.is_file() else _in_layout(source)
    if not items:
        raise FileNotFoundError(
            f"Expected images such as {source / '00000' / 'samples' / '00000.png'}, each prompt's folder with its "
            "metadata.jsonl, or a CSV or JSONL file with the fields 'path' and 'prompt', but found none."
        )
    return items


def prompt_folders(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """(metadata.jsonl, its images) of each prompt of a folder in GenEval's layout, in order."""
    for subfolder in sorted(path for path in folder.glob("*") if path.name.isdigit() and path.is_dir()):
        images = sorted(path for path in (subfolder / "samples").glob("*") if re.fullmatch(r"(?i)\d+\.png", path.name))
        yield subfolder / "metadata.jsonl", images


def _in_layout(folder: Path) -> list[Item]:
    items = []
    for record, images in prompt_folders(folder):
        if not images:
            continue
        metadata = read_json(record)
        prompt = _text(metadata, "prompt", str(record))
        tag = str(metadata.get("tag") or metadata.get("category") or "")
        items += [Item(path.relative_to(folder).as_posix(), path, prompt, record.parent.name, tag) for path in images]
    return items


def _listed(file: Path) -> list[Item]:
    is_table = file.suffix.lower() in TABLES
    rows = read_table(file) if is_table else [row for _, row in read_json_lines(file)]
    items = []
    for number, row in enumerate(rows, start=1):
        where = f"entry {number} of {file}"
        name = _text(row, "path", where)
        prompt = _text(row, "prompt", where)
        items.append(Item(name, file.parent / name, prompt, prompt, str(row.get("tag") or row.get("category") or "")))
    if missing := [item.name for item in items if not item.path.exists()]:
        # Scoring the rest would give means over other images than those of another list that is compared with this one.
        raise FileNotFoundError(
            f"{len(missing)} of the {len(items)} images listed in {file} do not exist, the first: {missing[0]}. Paths "
            f"are relative to {file.parent.absolute()}: correct them, put the images there, or take the lines out."
        )
    return items


def _text(row: object, field: str, where: str) -> str:
    value = row.get(field) if isinstance(row, dict) else None
    if not isinstance(value, str):
        raise ValueError(f"Expected a text {field!r} in {where}, but got {value!r}.")
    return value

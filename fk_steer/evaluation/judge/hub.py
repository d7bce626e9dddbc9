"""Human judgements from a Hugging Face dataset, as files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from llava_reward_guide.data.items import hub_rows

from ...files import write_json


def export(name: str, folder: Path) -> Path:
    """Write the rows of 'NAME[:SPLIT]' and the images in them to a folder, by the trainer's reader.

    Returns:
        The JSON file of the rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index, row in enumerate(hub_rows(name)):
        rows.append({key: _named(value, folder / f"{index:06d}-{key}.image") for key, value in row.items()})
    write_json(folder / "data.json", rows)
    return folder / "data.json"


def _named(value: Any, path: Path) -> Any:
    if isinstance(value, Mapping) and value.get("bytes") is not None:
        path.write_bytes(value["bytes"])
    elif isinstance(value, Image.Image):
        value.save(path, "png")
    elif isinstance(value, Mapping) and isinstance(value.get("path"), str):
        return str(Path(value["path"]).absolute())
    else:
        return value
    return path.name

"""Human judgements from a Hugging Face dataset or Parquet files, as files."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from llava_reward_guide.data.items import hub_rows

from ...files import check_settings, record_settings, write_atomically, write_json
from ...published import download
from .media import FILMS


_strange = re.compile(r"[^\w-]")


def export(name: str, folder: Path) -> Path:
    """Write the rows of a data set and the images and videos in them to a folder, unless that is done.

    Args:
        name: 'NAME[/CONFIG][:SPLIT]' on the hub, a Parquet file, or a folder of them.

    Returns:
        The JSON file of the rows.

    Raises:
        ValueError: if the folder holds those of another data set.
        OSError: if a video that a row has the address of cannot be fetched.
    """
    check_settings(folder, {"data": name})
    # Written when all else is there.
    if (folder / "data.json").exists():
        return folder / "data.json"
    folder.mkdir(parents=True, exist_ok=True)
    record_settings(folder, {"data": name})
    rows = []
    for index, row in enumerate(hub_rows(name)):
        names = {key: folder / f"{index:06d}-{_strange.sub('_', key)}" for key in row}
        rows.append({key: _named(value, names[key]) for key, value in row.items()})
    write_json(folder / "data.json", rows)
    return folder / "data.json"


def _named(value: Any, path: Path) -> Any:
    """A value of a row as JSON takes it: media are written to files, `path` with an ending, and named."""
    if isinstance(value, list):
        return [_named(one, path.with_name(f"{path.name}-{place}")) for place, one in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        # JSON has no word for it.
        return None
    if isinstance(value, Mapping) and value.get("bytes") is not None:
        path = path.with_name(f"{path.name}{Path(value.get('path') or '').suffix or '.image'}")
        path.write_bytes(value["bytes"])
    elif isinstance(value, Image.Image):
        path = path.with_name(f"{path.name}.image")
        value.save(path, "png")
    elif isinstance(value, Mapping) and isinstance(value.get("path"), str):
        return str(Path(value["path"]).absolute())
    elif isinstance(value, str) and value.startswith("https://") and value.lower().endswith(FILMS):
        path = path.with_name(f"{path.name}{Path(value).suffix}")
        if not path.exists():
            write_atomically(path, download(value))
    else:
        return value
    return path.name

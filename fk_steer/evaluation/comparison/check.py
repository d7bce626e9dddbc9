"""Two runs of one study side by side: what has to be equal, and whether it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...records import read_lines, read_record


NOT_REPRODUCIBLE = {
    "results.json": ("cost/seconds", "prompts_file", "max_rows"),
    "records": ("seconds",),
    "panel": ("mtime_ns",),
    "evaluation": ("filename",),
}
"""Kind of file -> fields, at any depth, that differ between runs of one study on one machine: times, places, and how
much is worked on at once. Everything else in these files is reproducible, and so are images, metadata and traces. The
page, CSV and LaTeX are made from results.json and hold its seconds."""


def differences(folder: Path, other: Path) -> list[str]:
    """What differs between the results of two runs of a study, a line each, in all that is reproducible; one may have
    been stopped and resumed, or made by several processes.

    Raises:
        FileNotFoundError: if one holds no results.json.
        UnreadableFile: naming a file that is broken.
    """
    for one in (folder, other):
        if not (one / "results.json").exists():
            raise FileNotFoundError(f"{one} holds no finished comparison: {one / 'results.json'} is not there.")
    own, theirs = _files(folder), _files(other)
    found = [f"{name}: only in {folder}" for name in own if name not in theirs]
    found += [f"{name}: only in {other}" for name in theirs if name not in own]
    for name in own:
        if name in theirs:
            found += _compared(name, _content(folder / name), _content(other / name))
    return found


def _files(folder: Path) -> list[str]:
    patterns = [
        "results.json",
        *(f"*/*/*/*/{part}/*" for part in ("samples", "records", "traces")),
        "*/*/*/*/metadata.jsonl",
        "*/*/*/settings.json",
        "*/*/*/panel/*.json",
        "*/*/*/evaluation/results.jsonl",
    ]
    names = (path.relative_to(folder) for pattern in patterns for path in sorted(folder.glob(pattern)))
    return [name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts)]


def _content(path: Path) -> Any:
    """What of a file has to be equal."""
    if path.suffix == ".png":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    kind = path.name if path.name in NOT_REPRODUCIBLE else path.parent.name
    value: Any = read_lines(path, dict) if path.suffix == ".jsonl" else read_record(path, dict)
    return _without(value, NOT_REPRODUCIBLE.get(kind, ()))


def _without(value: Any, fields: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {name: _without(item, fields) for name, item in value.items() if name not in fields}
    return [_without(item, fields) for item in value] if isinstance(value, list) else value


def _compared(where: str, own: Any, theirs: Any) -> Iterator[str]:
    if isinstance(own, dict) and isinstance(theirs, dict):
        for name in dict.fromkeys([*own, *theirs]):
            yield from _compared(f"{where}: {name}", own.get(name), theirs.get(name))
    elif isinstance(own, list) and isinstance(theirs, list) and len(own) == len(theirs):
        for number, pair in enumerate(zip(own, theirs)):
            yield from _compared(f"{where}: {number}", *pair)
    # NaN is equal to itself here.
    elif own != theirs and repr(own) != repr(theirs):
        yield f"{where}: {own!r} and {theirs!r}"

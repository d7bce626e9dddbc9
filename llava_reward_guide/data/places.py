"""Where the images of a list are, which may name them by paths of another machine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


SHOWN = 5
"""Missing images that a message names."""


@dataclass(frozen=True)
class Places:
    """Images of a list and the files that they are.

    Attributes:
        folder: where they were looked for.
        found: path as listed -> file.
        moved: how many of these were found by the end of their paths.
        missing: paths as listed, in their order.
        unclear: those of the missing that end as another path does, so that one file could be either.
    """

    folder: Path
    found: Mapping[str, Path] = field(default_factory=dict)
    moved: int = 0
    missing: tuple[str, ...] = ()
    unclear: frozenset[str] = frozenset()

    def __str__(self) -> str:
        total = len(self.found) + len(self.missing)
        text = f"{len(self.found)} of {total} images found in '{self.folder}'"
        if self.moved:
            text += f", {self.moved} of them by the end of their paths"
        if not self.missing:
            return text
        some = ", ".join(
            f"{path} (as is another path to the same file)" if path in self.unclear else path
            for path in self.missing[:SHOWN]
        )
        more = f" and {len(self.missing) - SHOWN} more" if len(self.missing) > SHOWN else ""
        return f"{text}; missing: {some}{more}"


def find_images(paths: Iterable[str], folder: Path, by_end: bool = True) -> Places:
    """Look for images in a folder.

    A path that is not there as it is listed is the file below the folder that fits the longest end of it, so that
    `/data/of/authors/images/0.png` is `FOLDER/images/0.png`, or else `FOLDER/0.png`. A file that two different paths
    come down to is neither. An absolute path that the folder has nothing for may still exist where it says.

    Args:
        paths: as listed; repeated ones count once.
        by_end: False to take paths as they are listed.

    Raises:
        ValueError: if there is no such folder, or none of the images is found.
    """
    if not folder.is_dir():
        raise ValueError(f"Expected a folder of images at '{folder}', but there is no such folder.")
    listed = list(dict.fromkeys(paths))
    found: dict[str, Path] = {}
    ends: dict[str, tuple[str, ...]] = {}
    for path in listed:
        if by_end:
            # A relative path is its own longest end.
            for end in _ends(path):
                if (place := folder.joinpath(*end)).is_file():
                    found[path], ends[path] = place, end
                    break
        if path not in found and (place := folder / path).is_file():
            found[path] = place
    unclear = _unclear(found)
    for path in unclear:
        del found[path]
    missing = tuple(path for path in listed if path not in found)
    moved = sum(path in found and ends[path] != _parts(path) for path in ends)
    places = Places(folder, found, moved, missing, frozenset(unclear))
    if listed and not found:
        raise ValueError(f"Expected images of the list in the image folder, but {places}. Give the one that has them.")
    return places


def _parts(path: str) -> tuple[str, ...]:
    """Of a path of any system, without the root: an absolute one then differs from what is below a folder."""
    parts = re.split(r"[\\/]+" if "\\" in path else "/+", path)
    return tuple(part for part in parts if part != ".")


def _ends(path: str) -> Iterable[tuple[str, ...]]:
    """Longest first, none with a step up."""
    parts = _parts(path)
    start = max((index + 1 for index, part in enumerate(parts) if part in ("", "..")), default=0)
    return (parts[index:] for index in range(start, len(parts)))


def _unclear(found: Mapping[str, Path]) -> set[str]:
    """Paths that share a file, unless one is the end of the other."""
    first: dict[Path, str] = {}
    unclear: set[str] = set()
    for path, place in found.items():
        other = first.setdefault(place, path)
        if other == path:
            continue
        short, long = sorted((_parts(path), _parts(other)), key=len)
        if long[len(long) - len(short) :] != short:
            unclear |= {path, other}
    return unclear

"""Several lists of items as one, and a part of them held out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from .items import Item, Items, standard


def join(parts: Sequence[Items]) -> tuple[Items, list[int]]:
    """Lists one after the other, each with its own folder of images.

    Returns:
        All items, and for each the number of the list that it is from.

    Raises:
        ValueError: if some hold pairs and others labelled images.
    """
    kinds = {part.labelled: part.source for part in parts}
    if len(kinds) > 1:
        raise ValueError(
            f"Expected pairs or labelled images in all data sets, but '{kinds[False]}' holds pairs and "
            f"'{kinds[True]}' labelled images. One objective learns from one of them."
        )
    sources = [number for number, part in enumerate(parts) for _ in range(len(part))]
    if len(parts) == 1:
        return parts[0], sources
    places = [index for part in parts for index in range(len(part))]
    return Items(_Joined(parts, sources, places), source=", ".join(part.source for part in parts)), sources


def select(items: Items, indices: Sequence[int]) -> Items:
    """Some of the items."""
    return replace(items, rows=_Selected(items.rows, indices))


def hold_out(items: Items, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Set items aside to validate on, the same ones for the same items, fraction and seed.

    No prompt is on both sides; pairs of which one prompt is held out and the other is not are left out of both.
    Images without a prompt are told apart by their path. Where prompts are too few to be told apart so (fewer than two
    of them could be held out), items are held out one by one.

    Args:
        fraction: of the prompts, above 0 and below 1; at least one is held out and one is kept.

    Returns:
        Indices of the items to train on, and of those held out.

    Raises:
        ValueError: if there are not two items.
    """
    if len(items) < 2:
        raise ValueError(f"Expected at least two items in '{items.source}' to hold some out, but got {len(items)}.")
    texts = [_texts(items, index) for index in range(len(items))]
    every = sorted(set().union(*texts))
    if round(fraction * len(every)) < 2:
        texts = [{f"{index:09d}"} for index in range(len(items))]
        every = sorted(set().union(*texts))
    random.Random(seed).shuffle(every)
    count = min(max(round(fraction * len(every)), 1), len(every) - 1)
    held = set(every[:count])
    kept = [index for index, found in enumerate(texts) if held.isdisjoint(found)]
    out = [index for index, found in enumerate(texts) if found <= held]
    if not kept or not out:
        raise ValueError(
            f"Expected prompts in '{items.source}' that can be held out without those of the rest, but there are none: "
            f"its pairs share their prompts. Give `validation_data` instead."
        )
    return kept, out


def _texts(items: Items, index: int) -> set[str]:
    found = {prompt for prompt in items.prompts(index) if prompt}
    if found:
        return found
    value = items[index][items.sides[0]]
    # An image in a data set has no name of its own.
    return {f"path {value}" if isinstance(value, (str, Path)) else f"item {index}"}


class _View(Sequence[Item]):
    """Rows that are looked up when they are asked for."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return [self.row(place) for place in range(*index.indices(self._length))]
        return self.row(range(self._length)[index])

    def row(self, index: int) -> Item:
        raise NotImplementedError


@dataclass
class _Selected(_View):
    rows: Sequence[Item]
    indices: Sequence[int]

    def __post_init__(self) -> None:
        super().__init__(len(self.indices))

    def row(self, index: int) -> Item:
        return self.rows[self.indices[index]]


@dataclass
class _Joined(_View):
    """Their paths are made whole, as each list has a folder of its own."""

    parts: Sequence[Items]
    sources: Sequence[int]
    places: Sequence[int]

    def __post_init__(self) -> None:
        super().__init__(len(self.sources))

    def row(self, index: int) -> Item:
        part = self.parts[self.sources[index]]
        item: dict[str, Any] = standard(part.rows[self.places[index]])
        for side in part.sides:
            value = item[side]
            if isinstance(value, (str, Path)):
                found = None if part.places is None else part.places.found.get(str(value))
                item[side] = str(part.folder / str(value) if found is None else found)
        return item

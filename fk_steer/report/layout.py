"""Where the nodes of a family tree are drawn."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from .tree import Tree


@dataclass(frozen=True)
class Place:
    """The box of a node, by its middle."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Layout:
    """Where everything is, in pixels.

    Attributes:
        width, height: of all.
        centers, widths: of the columns.
        places: of the nodes.
        starts: of the noise that particles begin with, by node.
        strip: the middle of a row with the winner's lineage; None if its pictures are large in the tree already.
        body: top and bottom of the tree.
        lane: the distance between rows.
    """

    width: float
    height: float
    centers: list[float]
    widths: list[float]
    places: list[Place]
    starts: dict[int, tuple[float, float]]
    strip: float | None
    body: tuple[float, float]
    lane: float


GUTTER, HEADER, STRIP = 46, 40, 64
"""In pixels: what is left of the first column, above the first row, and how high the row of the winner's lineage is."""


def lay_out(tree: Tree, pictures: bool, aspect: float = 1.0) -> Layout:
    """Columns from left to right, slots from top to bottom; the particles of a pass with one event stand in a grid.

    Args:
        pictures: whether nodes are pictures, else dots.
        aspect: width through height of a picture.
    """
    by_run = defaultdict(list)
    for index, column in enumerate(tree.columns):
        by_run[column.run].append(index)
    grids = {columns[0] for columns in by_run.values() if len(columns) == 1 and tree.columns[columns[0]].size > 1}
    slots = [node.slot for node in tree.nodes if node.column not in grids]
    rows = max(slots, default=0) + 1
    side, gap = _size(rows, pictures)
    width, height = _box(side, aspect)
    with_strip = pictures and side < 40 and any(index not in grids for index in range(len(tree.columns)))
    strip = HEADER + STRIP / 2 if with_strip else None
    top = HEADER + (STRIP + 12 if with_strip else 0)
    many = len(tree.columns)
    between = max(34.0, 0.6 * width) if many <= 14 else max(26.0, 0.4 * width)
    pitch = max(width + between, STRIP + 10 if with_strip else 52, min(870 / many, 1.9 * width + 60))

    at = defaultdict(list)
    for index, node in enumerate(tree.nodes):
        at[node.column].append(index)
    places: dict[int, Place] = {}
    starts: dict[int, tuple[float, float]] = {}
    centers, widths, left, bottom = [], [], float(GUTTER), 0.0
    for index, column in enumerate(tree.columns):
        if index and column.run != tree.columns[index - 1].run:
            left += 28
        if index in grids:
            tile, space = _size(math.ceil(math.sqrt(column.size)) + 3, pictures)
            w, h = _box(tile, aspect)
            across = min(column.size, 10) if many == 1 else math.ceil(math.sqrt(column.size))
            wide = max(across * (w + space) + 20, 52)
            for number, own in enumerate(at[index]):
                down, right = divmod(number, across)
                x = left + wide / 2 + (right - (across - 1) / 2) * (w + space)
                places[own] = Place(x, top + (down + 0.5) * (h + space), w, h)
        else:
            wide = pitch
            for own in at[index]:
                y = top + (tree.nodes[own].slot + 0.5) * (height + gap)
                places[own] = Place(left + wide / 2, y, width, height)
                if tree.nodes[own].parent is None:
                    starts[own] = (max(left - 8, GUTTER - 12), y)
        centers.append(left + wide / 2)
        widths.append(wide)
        left += wide
        bottom = max([bottom, *(places[own].y + places[own].height / 2 for own in at[index])])
    body = (top, bottom + 14)
    ordered = [places[index] for index in range(len(tree.nodes))]
    return Layout(left + 14, body[1], centers, widths, ordered, starts, strip, body, height + gap)


def _size(rows: int, pictures: bool) -> tuple[float, float]:
    """The side of a node and the gap to the next row."""
    if pictures:
        sizes = ((6, 72, 12), (10, 56, 10), (16, 40, 8), (32, 24, 6), (64, 14, 3))
    else:
        sizes = ((10, 22, 14), (20, 16, 8), (32, 12, 5), (64, 10, 3), (64, 10, 3))
    return next(((side, gap) for most, side, gap in sizes if rows <= most), (8, 2))


def _box(side: float, aspect: float) -> tuple[float, float]:
    root = math.sqrt(min(max(aspect, 0.4), 2.5))
    return side * root, side / root

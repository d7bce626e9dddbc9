"""Reads the objects of a scene off its pixels: no learned part, exact on renders.

1. The background is the median of the border; pixels that differ from it form connected components.
2. Each component is cut at half of its own contrast, which is where an antialiased edge runs.
3. Its silhouette, centred and scaled to unit area, is compared with those of all shapes over a range of rotations; the
   overlap with the best one is the confidence.
4. Its colour is the nearest one of most of its inner pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from llava_reward_guide.packages import require

from ..evaluation.geneval.rules import Detection
from .world import COLOURS, SHAPES, outline


CONTRAST = 24.0
"""Smallest colour distance (RGB, Euclidean) between an object and the background."""
SMALLEST = 12.0
"""Smallest object, in pixels of area at 64 x 64."""
GRID = 28
CONFIDENT = 0.80
"""Overlap with the best silhouette from which a detection counts (confidence 0.5)."""


@dataclass(frozen=True)
class Found:
    """A component and what it looks like.

    Attributes:
        shape, colour: the best match of each.
        box: (left, top, right, bottom) in pixels.
        overlap: of its silhouette with that of the shape, intersection over union in [0, 1].
        purity: share of its inner pixels that have the colour, in [0, 1].
        mask: its pixels, (H, W) bool.
    """

    shape: str
    colour: str
    box: tuple[float, float, float, float]
    overlap: float
    purity: float
    mask: np.ndarray = field(compare=False, repr=False)

    @property
    def score(self) -> float:
        """Confidence in [0, 1]: 0.5 at an overlap of `CONFIDENT`, 1 for a perfect silhouette."""
        if self.overlap < CONFIDENT:
            return 0.5 * self.overlap / CONFIDENT
        return 0.5 + 0.5 * (self.overlap - CONFIDENT) / (1 - CONFIDENT)


def detect(image: Image.Image | np.ndarray, threshold: float = 0.5) -> dict[str, list[Detection]]:
    """Detections by shape, each with its colour, in the form that GenEval's rules take.

    Args:
        image: RGB, a PIL image or (H, W, 3) in [0, 255].
        threshold: smallest confidence of a detection.
    """
    return by_shape(components(np.asarray(image)), threshold)


def by_shape(found: Iterable[Found], threshold: float = 0.5) -> dict[str, list[Detection]]:
    """Components as `detect` gives them."""
    detections: dict[str, list[Detection]] = {}
    for item in found:
        if item.score >= threshold:
            detections.setdefault(item.shape, []).append(Detection(item.box, item.score, item.colour))
    return detections


def components(array: np.ndarray) -> list[Found]:
    """Everything in an image (H, W, 3), [0, 255], that stands out from the background, whatever it looks like."""
    pixels = array.astype(np.float32)
    height, width = pixels.shape[:2]
    background = border_colour(pixels)
    distance = np.linalg.norm(pixels - background, axis=2)
    labels, count = ndimage().label(distance > CONTRAST)
    found = []
    for index, window in enumerate(ndimage().find_objects(labels), start=1):
        window = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in window)
        inside = labels[window] == index
        contrast = np.percentile(distance[window][inside], 80)
        # 0 at the background, 1 inside, linear across an antialiased edge.
        cover = np.clip(distance[window] / contrast, 0, 1) * ndimage().binary_dilation(inside)
        parts, number = ndimage().label(cover > 0.5)
        for part in range(1, number + 1):
            solid = parts == part
            if solid.sum() < SMALLEST * height * width / 4096:
                continue
            near = ndimage().binary_dilation(solid, iterations=1)
            silhouette = np.where(near, cover, 0.0)
            shape, overlap = _classify(silhouette)
            colour, purity = _colour(pixels[window], solid)
            rows, columns = np.nonzero(solid)
            top, left = window[0].start, window[1].start
            box = (
                float(left + columns.min()),
                float(top + rows.min()),
                float(left + columns.max() + 1),
                float(top + rows.max() + 1),
            )
            mask = np.zeros((height, width), bool)
            mask[window] = solid
            found.append(Found(shape, colour, box, overlap, purity, mask))
    return found


def ndimage() -> Any:
    """SciPy's functions on images, imported when they are first needed.

    Raises:
        ImportError: without SciPy.
    """
    require("scipy")
    from scipy import ndimage as functions

    return functions


def border_colour(array: np.ndarray) -> np.ndarray:
    """Median colour (3,) of the outer two pixels of an image (H, W, 3): that of the background."""
    border = (array[:2], array[-2:], array[:, :2], array[:, -2:])
    return np.median(np.concatenate([part.reshape(-1, 3) for part in border]), axis=0)


def _classify(silhouette: np.ndarray) -> tuple[str, float]:
    normal = _normalize(silhouette)
    bank, names = _bank()
    intersection = np.minimum(bank, normal).sum((1, 2))
    union = np.maximum(bank, normal).sum((1, 2))
    overlaps = intersection / union
    best = int(overlaps.argmax())
    return names[best], float(overlaps[best])


def _normalize(silhouette: np.ndarray) -> np.ndarray:
    """A silhouette (H, W) with values in [0, 1] on a GRID x GRID canvas, centred, scaled to cover a fifth of it."""
    area = silhouette.sum()
    rows, columns = np.indices(silhouette.shape)
    centre = np.array([(rows * silhouette).sum(), (columns * silhouette).sum()]) / area
    step = np.sqrt(area / (0.2 * GRID**2))
    offsets = (np.arange(GRID) - (GRID - 1) / 2) * step
    at = np.meshgrid(centre[0] + offsets, centre[1] + offsets, indexing="ij")
    return ndimage().map_coordinates(silhouette, at, order=1, mode="constant")


@functools.lru_cache(maxsize=1)
def _bank() -> tuple[np.ndarray, list[str]]:
    """Normalised silhouettes of all shapes, rotated by up to 30 degrees, at two sizes (small ones are blunter)."""
    bank, names = [], []
    for name in SHAPES:
        for rotation in range(-30, 31, 5):
            for radius in (7.5, 13.0):
                side = 40
                canvas = Image.new("L", (8 * side,) * 2)
                angle = np.radians(rotation)
                turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
                corners = (outline(name) @ turn * radius + side / 2) * 8
                ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in corners], fill=255)
                small = np.asarray(canvas.resize((side, side), Image.Resampling.BOX)) / 255.0
                bank.append(_normalize(small))
                names.append(name)
    return np.stack(bank), names


def _colour(pixels: np.ndarray, solid: np.ndarray) -> tuple[str, float]:
    inner = ndimage().binary_erosion(solid)
    values = pixels[inner if inner.any() else solid]
    palette = np.array(list(COLOURS.values()), dtype=np.float32)
    nearest = np.linalg.norm(values[:, None] - palette, axis=2).argmin(1)
    votes = np.bincount(nearest, minlength=len(palette))
    return list(COLOURS)[int(votes.argmax())], float(votes.max() / votes.sum())

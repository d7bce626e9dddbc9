"""Images made worse on purpose: the same picture with artefacts of a given strength, to learn fidelity from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from PIL import Image

from .detector import border_colour, components, ndimage
from .world import Scene


STRENGTHS = (0.25, 0.5, 0.75, 1.0)


def noise(array: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise of up to 48 grey levels."""
    return array + 48 * strength * rng.standard_normal(array.shape)


def blur(array: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian of up to 2.5 pixels."""
    return ndimage().gaussian_filter(array, (2.5 * strength, 2.5 * strength, 0))


def smear(array: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Every pixel fetched from up to a few pixels away, neighbours from similar places, so that edges fray."""
    offsets = ndimage().gaussian_filter(rng.standard_normal((2, *array.shape[:2])), (0, 1.5, 1.5))
    # 2 pixels in the root mean square at full strength.
    at = np.indices(array.shape[:2]) + 2 * strength * offsets / offsets.std()
    channels = [ndimage().map_coordinates(channel, at, order=1, mode="nearest") for channel in np.moveaxis(array, 2, 0)]
    return np.stack(channels, axis=2)


def cut(array: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Up to 60% of an object gone, from one of its four sides."""
    found = components(array)
    side = rng.integers(4)
    if not found:
        return array
    left, top, right, bottom = (int(edge) for edge in found[rng.integers(len(found))].box)
    # The antialiased edge belongs to the object too.
    left, top, right, bottom = max(left - 1, 0), max(top - 1, 0), right + 1, bottom + 1
    width, height = (max(1, round(0.6 * strength * size)) for size in (right - left, bottom - top))
    window = [
        np.s_[top:bottom, left : left + width],
        np.s_[top:bottom, max(right - width, 0) : right],
        np.s_[top : top + height, left:right],
        np.s_[max(bottom - height, 0) : bottom, left:right],
    ][side]
    array = array.copy()
    array[window] = border_colour(array)
    return array


ON_PIXELS: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "noise": noise,
    "blur": blur,
    "smear": smear,
    "cut": cut,
}
"""Name -> (image (H, W, 3) float in [0, 255], strength in (0, 1], random numbers) -> image, perhaps out of range."""


def spoil(image: Image.Image, kind: str, strength: float, seed: int) -> Image.Image:
    """An image with an artefact of `ON_PIXELS`. The same seed gives the same artefact at any strength."""
    array = ON_PIXELS[kind](np.asarray(image).astype(np.float32), strength, np.random.default_rng(seed))
    return Image.fromarray(np.clip(array, 0, 255).round().astype(np.uint8))


def merge(scene: Scene, strength: float) -> Scene:
    """A scene whose second object runs into the first: by a little more than a fifth of their radii at a strength of
    0.25, almost onto its centre at 1."""
    first, second = scene.objects[:2]
    offset = np.array([second.x - first.x, second.y - first.y])
    distance = (1 - 0.85 * strength) * (first.radius + second.radius)
    x, y = (first.x, first.y) + offset * (distance / np.hypot(*offset))
    return replace(scene, objects=(first, replace(second, x=float(x), y=float(y)), *scene.objects[2:]))

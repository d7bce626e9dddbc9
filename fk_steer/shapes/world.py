"""The world: coloured shapes on plain backgrounds, 64 x 64 pixels, drawn from a seed.

A scene is data (`Scene`); `render` draws it, `sample_scene` makes one up. Objects keep clear of each other and of the
border, so that what a scene shows can be read off its pixels exactly (`detector`).
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw


SIZE = 64
SUPERSAMPLING = 4

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 38),
    "orange": (245, 140, 30),
    "yellow": (242, 222, 40),
    "green": (38, 156, 66),
    "cyan": (64, 200, 224),
    "blue": (46, 76, 214),
    "purple": (132, 48, 168),
    "black": (24, 24, 28),
}

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "heart", "cross", "diamond", "moon")

# Radius of the circle around an object, in pixels, by number of objects in the scene.
RADII = {1: (11.0, 17.0), 2: (9.0, 13.0), 3: (7.5, 10.5), 4: (7.0, 9.5)}
GAP = 2.5
MARGIN = 2.0
MAX_ROTATION = 15.0


@dataclass(frozen=True)
class Shape:
    """One object.

    Attributes:
        name: one of `SHAPES`.
        colour: one of `COLOURS`.
        x, y: centre in pixels, y downwards.
        radius: of the circle around it, in pixels.
        rotation: counter-clockwise, in degrees.
        shade: RGB in [0, 255] that is drawn, a jittered `colour`.
    """

    name: str
    colour: str
    x: float
    y: float
    radius: float
    rotation: float
    shade: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """Objects on a background colour (RGB in [0, 255])."""

    objects: tuple[Shape, ...]
    background: tuple[int, int, int]


def outline(name: str) -> np.ndarray:
    """Corners (N, 2) of a shape that fits the unit circle, y downwards."""
    if name == "circle":
        return _polar(np.linspace(0, 360, 60, endpoint=False), 0.92)
    if name == "square":
        return 0.8 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    if name == "triangle":
        return _polar(np.array([90, 210, 330]), 1.0) + (0, 0.12)
    if name == "star":
        return _polar(90 + 36.0 * np.arange(10), np.where(np.arange(10) % 2, 0.44, 1.0))
    if name == "heart":
        t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
        x = 16 * np.sin(t) ** 3
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return np.stack([x, -y - 2], axis=1) / 17.0
    if name == "cross":
        a, b = 0.3, 0.92
        corners = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
        return np.array(corners + [(-x, -y) for x, y in corners])
    if name == "diamond":
        return np.array([(0, -1.0), (0.62, 0), (0, 1.0), (-0.62, 0)])
    if name == "moon":
        outer = _polar(np.linspace(52, 308, 40), 0.95)
        # The inner edge is an arc through the same two tips around a centre to the right.
        tip = outer[-1]
        centre = np.array([0.6, 0.0])
        reach = np.hypot(*(tip - centre))
        angle = math.degrees(math.atan2(tip[1] - centre[1], tip[0] - centre[0]))
        angles = np.radians(np.linspace(angle, angle + 2 * (180 - angle), 40))
        inner = centre + reach * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return np.concatenate([outer, inner]) + (0.15, 0)
    raise ValueError(f"Unknown shape {name!r}. Known: {', '.join(SHAPES)}.")


def _polar(degrees: np.ndarray, radius: float | np.ndarray) -> np.ndarray:
    angle = np.radians(degrees)
    return np.stack([radius * np.cos(angle), -radius * np.sin(angle)], axis=1)


def render(scene: Scene, size: int = SIZE) -> Image.Image:
    """Draw a scene, antialiased, as a size x size RGB image (the scene's coordinates are those of 64 pixels)."""
    scale = SUPERSAMPLING * size / SIZE
    canvas = Image.new("RGB", (SUPERSAMPLING * size,) * 2, scene.background)
    draw = ImageDraw.Draw(canvas)
    for item in scene.objects:
        draw.polygon([(float(x), float(y)) for x, y in corners_of(item) * scale], fill=item.shade)
    return canvas.resize((size, size), Image.Resampling.BOX)


def sample_scene(rng: np.random.Generator, kinds: Sequence[tuple[str, str]], direction: float | None = None) -> Scene:
    """A scene of the given objects with everything else drawn at random.

    Args:
        rng: all randomness.
        kinds: (shape, colour) of each object, 1 to 4.
        direction: of the second object as seen from the first, in degrees counter-clockwise from the right; None for
            any. Only for two objects.
    """
    low, high = RADII[len(kinds)]
    while True:
        radii = rng.uniform(low, high, len(kinds))
        centres = _place(rng, radii, direction)
        if centres is not None:
            break
    objects = tuple(
        Shape(
            name,
            colour,
            float(x),
            float(y),
            float(radius),
            float(rng.uniform(-MAX_ROTATION, MAX_ROTATION)),
            _shade(rng, colour),
        )
        for (name, colour), (x, y), radius in zip(kinds, centres, radii)
    )
    level = rng.uniform(196, 250)
    background = np.clip(level + rng.uniform(-10, 10, 3), 0, 255).round().astype(int).tolist()
    return Scene(objects, (background[0], background[1], background[2]))


def _place(rng: np.random.Generator, radii: np.ndarray, direction: float | None) -> list[np.ndarray] | None:
    """Centres that keep clear of each other and the border, or None if this attempt found none."""
    centres: list[np.ndarray] = []
    for index, radius in enumerate(radii):
        inside = (radius + MARGIN, SIZE - radius - MARGIN)
        for _ in range(30):
            if direction is not None and index == 1:
                distance = rng.uniform(radii[0] + radii[1] + GAP, SIZE)
                angle = math.radians(direction)
                centre = centres[0] + distance * np.array([math.cos(angle), -math.sin(angle)])
                if not (inside[0] <= centre.min() and centre.max() <= inside[1]):
                    continue
            else:
                centre = rng.uniform(*inside, 2)
            if all(np.hypot(*(centre - c)) > radius + r + GAP for c, r in zip(centres, radii)):
                centres.append(centre)
                break
        else:
            return None
    return centres


def _shade(rng: np.random.Generator, colour: str) -> tuple[int, int, int]:
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in COLOURS[colour]))
    hue = (hue + rng.uniform(-0.012, 0.012)) % 1.0
    saturation = float(np.clip(saturation * rng.uniform(0.92, 1.08), 0, 1))
    value = float(np.clip(value * rng.uniform(0.92, 1.08), 0, 1))
    red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def bounding_box(item: Shape) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of an object in pixels."""
    corners = corners_of(item)
    (left, top), (right, bottom) = corners.min(0), corners.max(0)
    return float(left), float(top), float(right), float(bottom)


def corners_of(item: Shape) -> np.ndarray:
    """Corners (N, 2) of an object in pixels, y downwards."""
    angle = math.radians(item.rotation)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return outline(item.name) @ turn * item.radius + (item.x, item.y)

"""Small pictures of a family tree, and the colours of its rewards."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping

from PIL import Image

from .tree import Fate, Tree


BYTES = 200_000
"""Of all pictures of a tree, as text. Of more, and larger ones, the size is reduced, then those of pruned branches are
left out."""

LIT_SIDE = 128
"""Of the pictures of the winner and its ancestors, in pixels."""

VIRIDIS = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")


def colour(reward: float, span: tuple[float, float] | None) -> str:
    """Of a reward within the span of those that are finite."""
    if span is None or math.isnan(reward):
        return "#888"
    share = 0.5 if span[0] == span[1] else (min(max(reward, span[0]), span[1]) - span[0]) / (span[1] - span[0])
    low = min(int(share * (len(VIRIDIS) - 1)), len(VIRIDIS) - 2)
    part = share * (len(VIRIDIS) - 1) - low
    ends = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in VIRIDIS[low : low + 2]]
    return "#" + "".join(f"{round(a + part * (b - a)):02x}" for a, b in zip(*ends))


def thumbnails(tree: Tree, images: Mapping[int, Image.Image], side: int) -> dict[int, str]:
    """Small pictures by node: those of the winner's lineage first, and as many of the others as there is room for."""
    order = {Fate.WINNER: 0, Fate.ALIVE: 1, Fate.PRUNED: 2}
    wanted = sorted(images, key=lambda index: order[tree.nodes[index].fate])
    made = {index: _shrunk(images[index], LIT_SIDE) for index in wanted if tree.nodes[index].fate is Fate.WINNER}
    others = [index for index in wanted if index not in made]
    room = BYTES - sum(map(len, made.values()))
    sample = others[:: max(1, len(others) // 12)]
    for size in (size for size in (96, 72, 48, 32, 24) if size <= side):
        if sample and sum(len(_shrunk(images[i], size)) for i in sample) / len(sample) * len(others) <= 0.95 * room:
            break
    for index in others:
        picture = _shrunk(images[index], size)
        room -= len(picture)
        if room < 0:
            break
        made[index] = picture
    return made


def _shrunk(image: Image.Image, side: int) -> str:
    """A picture of at most that size, as a 'data:' URL."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=78)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def opened(url: str | None) -> Image.Image | None:
    """The picture in a 'data:' URL, of an animation the middle frame; None if there is none that can be read."""
    if not url:
        return None
    try:
        image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
        image.seek(getattr(image, "n_frames", 1) // 2)
        return image.convert("RGB")
    except (OSError, ValueError, SyntaxError):
        return None

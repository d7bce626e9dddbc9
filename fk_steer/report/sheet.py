"""Contact sheets."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from .results import Picture, Result


_FRAMES = {True: "#1a9850", False: "#d73027"}


def contact_sheet(results: Sequence[Result], tile: int = 144) -> Image.Image:
    """A row of pictures per prompt with their rewards, the unsteered ones on the left, framed in green or red where
    it is known whether they are correct. A video is a strip of its frames, from the first to the last.

    Args:
        results: at least one.
        tile: side of a picture in pixels; frames of videos are a little smaller.
    """
    size = max(11, tile // 11)
    font = ImageFont.load_default(size)
    line, margin = math.ceil(size * 1.5), max(6, tile // 20)
    groups = [[group for group in (result.unsteered, result.steered) if group] for result in results]
    columns = max(sum(len(group) for group in row) for row in groups)
    images = {id(picture): _shown(picture, tile) for row in groups for group in row for picture in group}
    tile = max(image.width for image in images.values())
    width = columns * (tile + margin) + margin + (3 * margin if any(len(row) > 1 for row in groups) else 0)
    heights = [max(images[id(picture)].height for group in row for picture in group) for row in groups]
    sheet = Image.new("RGB", (width, sum(3 * line + height + margin for height in heights) + margin), "white")
    draw = ImageDraw.Draw(sheet)
    top = margin
    for result, row, height in zip(results, groups, heights):
        draw.text((margin, top), _shorten(result.prompt, font, width - 2 * margin), fill="black", font=font)
        left = margin
        for group in row:
            name = "steered" if group is result.steered else "unsteered, same noise"
            draw.text((left, top + line), _shorten(name, font, len(group) * (tile + margin)), fill="gray", font=font)
            for picture in group:
                scaled = images[id(picture)]
                sheet.paste(scaled, (left, top + 2 * line))
                if picture.correct is not None:
                    frame = (left - 3, top + 2 * line - 3, left + scaled.width + 2, top + 2 * line + scaled.height + 2)
                    draw.rectangle(frame, outline=_FRAMES[picture.correct], width=3)
                draw.text((left, top + 2 * line + height + 3), f"{picture.reward:.3f}", fill="black", font=font)
                left += tile + margin
            left += 3 * margin
        top += 3 * line + height + margin
    return sheet


STRIP = 4
"""Frames of a video that are shown side by side."""


def _shown(picture: Picture, tile: int) -> Image.Image:
    if not picture.frames:
        return fit(picture.image, tile)
    number = min(STRIP, len(picture.frames))
    chosen = [picture.frames[round(i * (len(picture.frames) - 1) / max(1, number - 1))] for i in range(number)]
    scaled = [fit(frame, round(tile / 1.5)) for frame in chosen]
    gap = 2
    strip = Image.new("RGB", (sum(frame.width + gap for frame in scaled) - gap, scaled[0].height), "white")
    for place, frame in enumerate(scaled):
        strip.paste(frame, (place * (frame.width + gap), 0))
    return strip


def fit(image: Image.Image, tile: int) -> Image.Image:
    resample = Image.Resampling.LANCZOS if tile < image.width else Image.Resampling.NEAREST
    return image.resize((tile, round(tile * image.height / image.width)), resample)


def _shorten(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."

"""The page about a run of `fk-steer generate`."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from PIL.Image import Image

from llava_reward_guide.packages import require

from ..files import FPS, png, webp
from .results import Picture, Result, summarize
from .sheet import fit


def html_report(results: Sequence[Result], settings: dict[str, Any]) -> str:
    """One page with everything in it, that opens without a network.

    Raises:
        ImportError: without Jinja.
    """
    require("jinja2")
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined)
    environment.filters["data_url"] = lambda content: f"data:image/png;base64,{base64.b64encode(content).decode()}"
    environment.filters["picture_url"] = _picture_url
    return environment.get_template("generate.html").render(
        results=results, settings=settings, summary=summarize(results)
    )


def _picture_url(picture: Picture) -> str:
    """A picture, or an animation of a video, as a 'data:' URL."""

    def scaled(image: Image) -> Image:
        return fit(image, max(192, min(image.width, 512)))

    if picture.frames:
        content, kind = webp([scaled(frame) for frame in picture.frames], FPS, lossless=False), "webp"
    else:
        content, kind = png(scaled(picture.image)), "png"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"

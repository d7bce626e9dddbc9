"""The page about a run of `fk-steer generate`."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..files import png
from .results import Result, summarize
from .sheet import fit


def html_report(results: Sequence[Result], settings: dict[str, Any]) -> str:
    """One page with everything in it, that opens without a network."""
    environment = Environment(loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined)
    environment.filters["data_url"] = lambda content: f"data:image/png;base64,{base64.b64encode(content).decode()}"
    environment.filters["png"] = lambda image: png(fit(image, max(192, min(image.width, 512))))
    return environment.get_template("generate.html").render(
        results=results, settings=settings, summary=summarize(results)
    )

"""The figures of a study's page, as SVG that takes its colours from the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from ..statistics import Estimate
from .results import OVERALL, CellResults, Value


def interval(difference: Estimate, reach: float, width: int = 84, height: int = 14) -> str:
    """A dot at a difference with a bar of two standard errors to either side, and a line at zero.

    Args:
        reach: the difference at the edges.
    """
    mean, error = difference
    if not math.isfinite(mean):
        return ""
    error = error if error is not None and math.isfinite(error) else None
    middle, scale = width / 2, (width / 2 - 4) / (reach or 1.0)
    spread = 2 * (error or 0.0)
    left, right = (middle + scale * (mean + sign * spread) for sign in (-1, 1))
    return (
        f'<svg class="interval" width="{width}" height="{height}" viewBox="0 0 {width} {height}" aria-hidden="true">'
        f'<line class="zero" x1="{middle}" x2="{middle}" y1="0" y2="{height}"/>'
        f'<line x1="{left:.1f}" x2="{right:.1f}" y1="{height / 2}" y2="{height / 2}"/>'
        f'<circle cx="{middle + scale * mean:.1f}" cy="{height / 2}" r="3"/></svg>'
    )


def reach(differences: Sequence[Estimate]) -> float:
    """The largest end of the intervals of `interval`."""
    ends = (abs(mean) + 2 * (error or 0.0) for mean, error in differences)
    return max((end for end in ends if math.isfinite(end)), default=1.0)


def accuracy_by_cost(results: Sequence[CellResults], guides: Sequence[str], width: int = 520, height: int = 300) -> str:
    """Overall accuracy over the denoiser rows of an image, a point per cell with its standard error.

    Args:
        results: of one list of prompts; those with an accuracy and a positive cost are shown, if costs differ.
        guides: the labels of all guides; their order gives the colours.
    """
    points = [
        (one, one.costs["nfe"].mean, one.accuracy[OVERALL])
        for one in results
        if OVERALL in one.accuracy
        and "nfe" in one.costs
        and math.isfinite(one.costs["nfe"].mean)
        and one.costs["nfe"].mean > 0
        and math.isfinite(one.accuracy[OVERALL].mean)
    ]
    if len({nfe for _, nfe, _ in points}) < 2:
        return ""
    left, right, top, bottom = 52, 14, 12, 44
    logs = [math.log(nfe) for _, nfe, _ in points]
    pad = 0.08 * (max(logs) - min(logs))
    low_x, high_x = min(logs) - pad, max(logs) + pad
    ticks = _ticks(
        min(value.mean - _spread(value) for *_, value in points),
        max(value.mean + _spread(value) for *_, value in points),
    )
    low_y, high_y = ticks[0], ticks[-1]

    def x(nfe: float) -> float:
        return left + (math.log(nfe) - low_x) / (high_x - low_x) * (width - left - right)

    def y(accuracy: float) -> float:
        return height - bottom - (accuracy - low_y) / (high_y - low_y) * (height - top - bottom)

    parts = [f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="accuracy over cost">']
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.3g}</text>')
    shown: list[float] = []
    for nfe in sorted({nfe for _, nfe, _ in points}):
        # Labels that would overlap are left out.
        if not shown or x(nfe) - x(shown[-1]) > 44:
            shown.append(nfe)
            parts.append(
                f'<text class="tick" x="{x(nfe):.1f}" y="{height - bottom + 18}" text-anchor="middle">{nfe:.0f}</text>'
            )
    parts.append(
        f'<text class="label" x="{(left + width - right) / 2}" y="{height - 6}" text-anchor="middle">'
        "denoiser rows per image (logarithmic)</text>"
    )
    models = list(dict.fromkeys(one.cell.model for one, *_ in points))
    for one, nfe, value in points:
        cell, number = one.cell, guides.index(one.cell.guide)
        colour = f"g{number % 8}"
        # Guides of equal cost stand beside one another.
        at = x(nfe) + 9 * (number - (len(guides) - 1) / 2)
        title = f"{cell.model}, {cell.guide}: {value.mean:.3f}, {nfe:.0f} denoiser rows"
        parts.append(
            f'<g class="{colour}" data-prompts="{escape(cell.prompts)}" data-model="{escape(cell.model)}" '
            f'data-guide="{escape(cell.guide)}"><title>{escape(title)}</title>'
        )
        if _spread(value):
            ends = (y(value.mean - _spread(value)), y(value.mean + _spread(value)))
            parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{ends[0]:.1f}" y2="{ends[1]:.1f}"/>')
        parts.append(_marker(models.index(cell.model), at, y(value.mean)) + "</g>")
    parts.append("</svg>")
    return "".join(parts)


def _spread(value: Value) -> float:
    """The standard error, where there is one."""
    return value.error if value.error is not None and math.isfinite(value.error) else 0.0


def marker_key(number: int) -> str:
    """The marker of a model, for a legend."""
    return (
        f'<svg class="key" width="14" height="14" viewBox="0 0 14 14" aria-hidden="true">{_marker(number, 7, 7)}</svg>'
    )


def _marker(number: int, x: float, y: float) -> str:
    """A circle, a square, a triangle or a diamond."""
    shapes: list[Sequence[tuple[float, float]]] = [
        [(-5, -5), (5, -5), (5, 5), (-5, 5)],
        [(0, -6), (6, 5), (-6, 5)],
        [(0, -7), (7, 0), (0, 7), (-7, 0)],
    ]
    if number % 4 == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>'
    corners = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in shapes[number % 4 - 1])
    return f'<polygon points="{corners}"/>'


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers that enclose an interval, four to nine of them."""
    # Where everything is equal, it stands in the middle.
    if high - low < 1e-6:
        low, high = low - 0.05, high + 0.05
    span = high - low
    step = 10.0 ** math.floor(math.log10(span))
    step = next(step * factor for factor in (0.2, 0.5, 1.0, 2.0) if span / (step * factor) <= 6)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(index * step, 12) for index in range(first, last + 1)]

"""Family trees as HTML.

`tree_html` is a fragment for any page: a figure with an SVG, its style included. `tree_script` is what makes its
slider, keys and details work; a page needs it once, however many trees are put into it and when.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from llava_reward_guide.packages import require

from .layout import Layout, lay_out
from .thumbnails import VIRIDIS, colour, opened, thumbnails
from .trace import Trace
from .tree import Column, Tree, family_tree
from .wording import number, short, summary, told_of_event, told_of_node


if TYPE_CHECKING:
    from jinja2 import Environment


CHART = 84
"""Height of a chart below the tree, in pixels."""

THEMES = ("auto", "light", "dark")


def environment() -> Environment:
    """The templates of this package.

    Raises:
        ImportError: without Jinja.
    """
    require("jinja2")
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["number"] = number
    return made


def tree_html(
    trace: Trace, population: int = 0, *, theme: str = "auto", controls: bool = True, style: bool = True
) -> str:
    """The family tree of a population as a fragment of HTML, for a run that is finished or one under way.

    x0 predictions are shown where the trace has them (`keep_predictions=True`), else dots whose colour is the reward.

    Args:
        trace: of a run, or so far: `ScoringEvent.trace`.
        population: index into `trace.prompts`.
        theme: 'light', 'dark', or 'auto': what the browser prefers.
        controls: whether there are a slider over the events and what belongs to it, which need `tree_script`.
        style: whether `tree_style` is included; else the page has to.

    Raises:
        IndexError: for a population that is not there.
        ValueError: for an unknown theme.
    """
    if theme not in THEMES:
        raise ValueError(f"Expected `theme` to be one of {', '.join(THEMES)}, but got {theme!r}.")
    tree = family_tree(trace, population)
    template = environment().get_template("tree.html")
    return template.render(
        tree=tree, drawing=_draw(tree) if tree.nodes else None, theme=theme, controls=controls, style=style
    )


def tree_style() -> str:
    """The CSS of `tree_html`."""
    return environment().get_template("tree.css").render()


def tree_script() -> str:
    """The JavaScript of `tree_html`, for a page's head or its end. It serves trees that come later, too."""
    return environment().get_template("tree.js").render()


def _draw(tree: Tree) -> dict[str, Any]:
    """What the template needs."""
    images = {index: image for index, node in enumerate(tree.nodes) if (image := opened(node.picture)) is not None}
    with_picture = bool(images)
    width, height = next(iter(images.values())).size if images else (1, 1)
    aspect = width / height
    layout = lay_out(tree, with_picture, aspect)
    side = max((max(place.width, place.height) for place in layout.places), default=0)
    small = thumbnails(tree, images, max(48, min(96, round(1.34 * side))))
    finite = [node.reward for node in tree.nodes if math.isfinite(node.reward)]
    span = (min(finite), max(finite)) if finite else None
    charts, bottom = _charts(tree, layout)
    return {
        "layout": layout,
        "height": bottom,
        "nodes": [_drawn(tree, layout, index, small, span) for index in range(len(tree.nodes))],
        "edges": [edge for index in range(len(tree.nodes)) if (edge := _edge(tree, layout, index))],
        "columns": [_headed(tree, layout, index) for index in range(len(tree.columns))],
        "slots": _slots(tree, layout),
        "dividers": [
            (layout.centers[index] - layout.widths[index] / 2 - 14, column.run) if index else (16, 0)
            for index, column in enumerate(tree.columns)
            if tree.num_runs > 1 and (not index or column.run != tree.columns[index - 1].run)
        ],
        "strip": [] if layout.strip is None else _strip(tree, layout, small),
        "charts": charts,
        "span": span,
        "scale": ", ".join(VIRIDIS),
        "has_pictures": with_picture,
        "left_out": len(images) - len(small),
        "summary": summary(tree),
        "described": told_of_event(tree.columns[-1], len(tree.columns) - 1, len(tree.columns)),
        "shown": small.get(tree.winner) if tree.winner is not None else None,
        "told": told_of_node(tree, tree.winner) if tree.winner is not None else "",
        "backwards": any(_goes_back(column) for column in tree.columns),
        "stops": any(_reaches(tree, index) for index in range(len(tree.columns))),
    }


def _drawn(
    tree: Tree, layout: Layout, index: int, small: Mapping[int, str], span: tuple[float, float] | None
) -> dict[str, Any]:
    node, place = tree.nodes[index], layout.places[index]
    last = node.column == len(tree.columns) - 1 or tree.columns[node.column + 1].run != tree.columns[node.column].run
    return {
        "node": node,
        "place": place,
        "is_dot": index not in small or min(place.width, place.height) < 16,
        "picture": small.get(index),
        "colour": colour(node.reward, span),
        "ends": node.children == 0 and not last and layout.lane >= 14,
        "told": told_of_node(tree, index),
        "is_winner": index == tree.winner,
    }


def _edge(tree: Tree, layout: Layout, index: int) -> dict[str, Any] | None:
    """The line from a node's parent, or from the noise it began with."""
    node, to = tree.nodes[index], layout.places[index]
    end = to.x - to.width / 2
    if node.parent is None:
        if index not in layout.starts:
            return None
        x, y = layout.starts[index]
        return {"path": f"M{x:.0f} {y:.0f}H{end:.0f}", "node": node, "index": index, "start": (x, y)}
    parent, of = tree.nodes[node.parent], layout.places[node.parent]
    begin = of.x + of.width / 2
    bend = min(40.0, (end - begin) / 2)
    if node.column - parent.column == 1:
        if of.y == to.y:
            path = f"M{begin:.0f} {of.y:.0f}H{end:.0f}"
        else:
            first, second = f"{begin + bend:.0f} {of.y:.0f}", f"{end - bend:.0f} {to.y:.0f}"
            path = f"M{begin:.0f} {of.y:.0f}C{first} {second} {end:.0f} {to.y:.0f}"
    else:
        # Between the rows, past the events in between.
        lane = of.y + math.copysign(layout.lane / 2, to.y - of.y)
        leave = layout.places[node.parent].x + layout.widths[parent.column] / 2
        enter = to.x - layout.widths[node.column] / 2
        path = (
            f"M{begin:.0f} {of.y:.0f}C{leave:.0f} {of.y:.0f} {begin:.0f} {lane:.0f} {leave:.0f} {lane:.0f}"
            f"H{enter:.0f}C{end:.0f} {lane:.0f} {enter:.0f} {to.y:.0f} {end:.0f} {to.y:.0f}"
        )
    return {"path": path, "node": node, "index": index, "start": None}


def _headed(tree: Tree, layout: Layout, index: int) -> dict[str, Any]:
    column = tree.columns[index]
    return {
        "x": layout.centers[index],
        "width": layout.widths[index],
        "name": "final" if column.final else f"step {column.step}",
        "note": f"↩ to {column.resume}" if _goes_back(column) else "✓ target" if _reaches(tree, index) else "",
        "described": told_of_event(column, index, len(tree.columns)),
        "run": column.run,
    }


def _goes_back(column: Column) -> bool:
    return column.resume is not None and column.resume <= column.step


def _reaches(tree: Tree, index: int) -> bool:
    """Whether it is the first event after which the best particle goes on alone."""
    columns = tree.columns
    before = columns[index - 1] if index and columns[index - 1].run == columns[index].run else None
    return columns[index].stopped and not columns[index].final and not (before and before.stopped)


def _slots(tree: Tree, layout: Layout) -> list[tuple[float, int]]:
    """Heights of the rows and the slots there, as many as can be read."""
    rows = {tree.nodes[index].slot: y for index, (_, y) in layout.starts.items()}
    every = math.ceil(14 / layout.lane)
    return [(y, slot) for slot, y in sorted(rows.items()) if slot % every == 0]


def _strip(tree: Tree, layout: Layout, small: Mapping[int, str]) -> list[dict[str, Any]]:
    return [
        {
            "x": layout.centers[tree.nodes[index].column],
            "picture": small[index],
            "index": index,
            "told": told_of_node(tree, index),
        }
        for index in reversed(tree.lineage(tree.winner))
        if index in small
    ]


def _charts(tree: Tree, layout: Layout) -> tuple[list[dict[str, Any]], float]:
    """Small charts below the tree, and where they end."""
    charts, top = [], layout.body[1]
    columns = tree.columns
    if len(columns) == 1:
        return [], top

    def add(name: str, explained: str, values: list[float | None], low: float, high: float, kind: str) -> None:
        nonlocal top
        base, tall = top + CHART - 10, CHART - 52
        scale = tall / ((high - low) or 1.0)
        points = []
        for index, value in enumerate(values):
            if value is not None and math.isfinite(value):
                y = base - (value - low) * scale
                label = min(y, base - (columns[index].size - low) * scale) if kind == "bars" else y
                points.append((index, layout.centers[index], y, short(value), label - 6))
        lines = [
            (a[:3], b[:3])
            for a, b in pairwise(points)
            if kind == "line" and b[0] - a[0] == 1 and columns[a[0]].run == columns[b[0]].run
        ]
        charts.append(
            {
                "name": name,
                "explained": explained,
                "kind": kind,
                "top": top,
                "base": base,
                "points": points,
                "lines": [(b, f"M{x:.0f} {y:.1f}L{x2:.0f} {y2:.1f}") for (_, x, y), (b, x2, y2) in lines],
                "full": [(i, base - (columns[i].size - low) * scale) for i, *_ in points] if kind == "bars" else [],
                "resampled": [c.resampled for c in columns],
                "missing": [layout.centers[i] for i, value in enumerate(values) if value is None],
            }
        )
        top += CHART

    best = [column.best for column in columns]
    known = [value for value in best if value is not None]
    if known:
        add("best reward", f"the highest reward by {tree.reward} at each event", best, min(known), max(known), "line")
    if any(column.ess is not None for column in columns):
        explained = "how many particles the weights are worth, of those alive; filled where copies took others' place"
        most = max(column.size for column in columns)
        add("effective sample size", explained, [column.ess for column in columns], 0.0, most, "bars")
    lambdas = [value for column in columns if (value := column.lmbda) is not None and math.isfinite(value)]
    if lambdas:
        explained = "how strongly the reward tilts the choice: weights are exp(lambda · reward)"
        add("lambda", explained, [column.lmbda for column in columns], 0.0, max(lambdas), "line")
    return charts, top + 8

"""Family trees as HTML.

`tree_html` is a fragment for any page: a figure with an SVG, its style included. `tree_script` is what makes its
slider, keys and details work; a page needs it once, however many trees are put into it and when.
"""

from __future__ import annotations

import base64
import io
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from .trace import Trace
from .tree import Column, Fate, Tree, family_tree


BYTES = 200_000
"""Of all pictures of a tree, as text. Of more, and larger ones, the size is reduced, then those of pruned branches are
left out."""

LIT_SIDE = 128
"""Of the pictures of the winner and its ancestors, in pixels."""

THEMES = ("auto", "light", "dark")


def environment() -> Environment:
    """The templates of this package."""
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


def tree_style() -> Markup:
    """The CSS of `tree_html`."""
    return Markup(environment().get_template("tree.css").render())


def tree_script() -> Markup:
    """The JavaScript of `tree_html`, for a page's head or its end. It serves trees that come later, too."""
    return Markup(environment().get_template("tree.js").render())


def number(value: float | None) -> str:
    """A reward or another quantity in a few digits."""
    if value is None or math.isnan(value):
        return "unknown" if value is None else "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"


def short(value: float) -> str:
    """A number in three digits."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


# Where everything is.


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


GUTTER, HEADER, STRIP, CHART = 46, 40, 64, 84


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


# What is drawn.


def _draw(tree: Tree) -> dict[str, Any]:
    """What the template needs."""
    images = {index: image for index, node in enumerate(tree.nodes) if (image := _opened(node.picture)) is not None}
    with_picture = bool(images)
    width, height = next(iter(images.values())).size if images else (1, 1)
    aspect = width / height
    layout = lay_out(tree, with_picture, aspect)
    side = max((max(place.width, place.height) for place in layout.places), default=0)
    small = _pictures(tree, images, max(48, min(96, round(1.34 * side))))
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
        "scale": ", ".join(_VIRIDIS),
        "has_pictures": with_picture,
        "left_out": len(images) - len(small),
        "summary": _summary(tree),
        "described": _described(tree.columns[-1], len(tree.columns) - 1, len(tree.columns)),
        "shown": small.get(tree.winner) if tree.winner is not None else None,
        "told": _told(tree, tree.winner) if tree.winner is not None else "",
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
        "colour": _colour(node.reward, span),
        "ends": node.children == 0 and not last and layout.lane >= 14,
        "told": _told(tree, index),
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
        "described": _described(column, index, len(tree.columns)),
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
            "told": _told(tree, index),
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


# What is said.


def _told(tree: Tree, index: int) -> str:
    """A node in words."""
    node = tree.nodes[index]
    column = tree.columns[node.column]
    run = f"pass {column.run + 1}, " if tree.num_runs > 1 else ""
    what = "final image" if column.final else f"step {column.step} of {column.num_steps}"
    parts = [f"{run}{what}, particle {node.slot}", f"reward {number(node.reward)} ({node.rank} of {column.size})"]
    if len(node.scores) > 1:
        parts.append(", ".join(f"{name} {number(score)}" for name, score in node.scores.items()))
    if node.weight is not None:
        parts.append(f"weight {100 * node.weight:.0f}%")
    if node.parent is not None and tree.nodes[node.parent].slot != node.slot:
        parts.append(f"continues particle {tree.nodes[node.parent].slot}")
    if node.children > 1:
        parts.append(f"goes on as {node.children} particles")
    if index == tree.winner:
        parts.append("the best one" if tree.finished else "in the lead")
    elif node.fate is Fate.WINNER:
        parts.append("ancestor of the best one" if tree.finished else "ancestor of the leader")
    elif node.fate is Fate.PRUNED:
        parts.append("pruned" if node.children == 0 else "without descendants at the end")
    text = "; ".join(parts)
    return text[0].upper() + text[1:]


def _described(column: Column, index: int, count: int) -> str:
    """An event in words."""
    what = "final images" if column.final else f"step {column.step} of {column.num_steps}"
    parts = [f"event {index + 1} of {count}: {what}"]
    if column.best is not None:
        parts.append(f"best reward {number(column.best)}")
    if column.ess is not None:
        parts.append(f"ESS {column.ess:.1f} of {column.size}")
    if column.lmbda is not None:
        parts.append(f"lambda {short(column.lmbda)}")
    return ", ".join(parts)


def _summary(tree: Tree) -> str:
    """The tree in a sentence, for those who do not see it."""
    first, last, nodes = tree.columns[0], tree.columns[-1], tree.nodes
    passes = f" in {tree.num_runs} passes" if tree.num_runs > 1 else ""
    events = f"{len(tree.columns)} event{'s'[: len(tree.columns) != 1]}"
    text = f"{first.size} particle{'s'[: first.size != 1]} over {events}{passes}."
    if tree.winner is not None:
        lineage = tree.lineage(tree.winner)
        began, best = nodes[lineage[-1]], nodes[tree.winner]
        slots = [nodes[index].slot for index in reversed(lineage)]
        changes = [slot for slot, before in zip(slots, [None, *slots]) if slot != before]
        text += f" The {'best' if tree.finished else 'leading'} one, with reward {number(best.reward)},"
        text += f" descends from particle {began.slot}" if len(lineage) > 1 else f" is particle {best.slot}"
        text += f" by way of {', '.join(map(str, changes[1:]))}." if len(changes) > 1 else "."
    pruned = sum(node.fate is Fate.PRUNED for node in nodes)
    if pruned:
        text += f" {pruned} of {len(nodes)} predictions have no descendants {'at the end' if tree.finished else 'now'}."
    if all(column.ess is None for column in tree.columns) and last.size > 1:
        text += " This search does not weigh its particles: there is no effective sample size."
    return text


# Colours and pictures.

_VIRIDIS = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")


def _colour(reward: float, span: tuple[float, float] | None) -> str:
    """Of a reward within the span of those that are finite."""
    if span is None or math.isnan(reward):
        return "#888"
    share = 0.5 if span[0] == span[1] else (min(max(reward, span[0]), span[1]) - span[0]) / (span[1] - span[0])
    low = min(int(share * (len(_VIRIDIS) - 1)), len(_VIRIDIS) - 2)
    part = share * (len(_VIRIDIS) - 1) - low
    ends = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in _VIRIDIS[low : low + 2]]
    return "#" + "".join(f"{round(a + part * (b - a)):02x}" for a, b in zip(*ends))


def _pictures(tree: Tree, images: Mapping[int, Image.Image], side: int) -> dict[int, str]:
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


def _opened(url: str | None) -> Image.Image | None:
    """The picture in a 'data:' URL, of an animation the middle frame; None if there is none that can be read."""
    if not url:
        return None
    try:
        image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
        image.seek(getattr(image, "n_frames", 1) // 2)
        return image.convert("RGB")
    except (OSError, ValueError, SyntaxError):
        return None

"""The page of a study: one file with everything in it, that opens without a network."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

from llava_reward_guide.images import load_image
from llava_reward_guide.packages import require

from ...records import UnreadableFile
from ...report.drawing import tree_html, tree_script, tree_style
from ...report.trace import Trace
from ...rewards.registry import reward_factory
from ...shapes import NUM_INFERENCE_STEPS
from ..panel.metrics import DIVERSITY
from .figures import accuracy_by_cost, interval, marker_key, reach
from .results import CellResults, Picture
from .tables import TASK_TITLES, Table, clear, number, tables


TEMPLATES = ("compare.html", "compare.css", "compare.js")
MARK = "fk-steer-digest"
"""Name of the page's meta element that holds the digest of what it was made from."""


@dataclass(frozen=True)
class Column:
    """The images of a prompt by one guide.

    Attributes:
        pictures: by sample, as the page has them.
        self_scored: labels of the metrics that guided.
    """

    guide: str
    pictures: list[dict[str, Any]]
    self_scored: list[str]


@dataclass(frozen=True)
class Card:
    """A prompt by all guides.

    Attributes:
        models: model -> its columns.
    """

    prompts: str
    group: str
    prompt: str
    tag: str
    models: dict[str, list[Column]]

    @property
    def differs(self) -> bool:
        """Whether for some model some guides' first images are right and some wrong."""
        return any(len({column.pictures[0]["correct"] for column in columns}) > 1 for columns in self.models.values())


def digest(results: Mapping[str, Any], images: int) -> str:
    """Of everything that the page is made from, given `to_dict` of the results and the number of prompts shown."""
    content = [json.dumps(results, sort_keys=True), str(images)]
    content += [(files(__package__) / "templates" / name).read_text(encoding="utf-8") for name in TEMPLATES]
    content += [tree_style(), tree_script()]
    return hashlib.sha256("\n".join(content).encode()).hexdigest()


def digest_of(page: Path) -> str | None:
    """The digest that a page was written with; None if there is no page."""
    if not page.is_file():
        return None
    with page.open(encoding="utf-8", errors="replace") as file:
        _, found, after = file.read(1000).partition(f'name="{MARK}" content="')
    return after.partition('"')[0] if found else None


def page(results: Sequence[CellResults], plain: Mapping[str, Any], out: Path, images: int, title: str) -> str:
    """
    Args:
        results: of all cells.
        plain: `to_dict` of them.
        out: the study's folder.
        images: prompts of each list that are shown with their images, evenly over the tasks, the first ones of each.
    """
    require("jinja2")
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"number": number, "clear": clear, "interval": interval, "marker_key": marker_key}
    environment.filters["task"] = lambda tag: TASK_TITLES.get(tag, tag)
    shown = tables(results, plain["baseline"])
    guides = list(dict.fromkeys(one.cell.guide for one in results))
    return environment.get_template(TEMPLATES[0]).render(
        title=title,
        mark=MARK,
        digest=digest(plain, images),
        plain=plain,
        tables=shown,
        reaches={table.name: _reaches(table) for table in shown if table.differences},
        guides=guides,
        models=list(dict.fromkeys(one.cell.model for one in results)),
        prompts=list(dict.fromkeys(one.cell.prompts for one in results)),
        headlines=_headlines(results),
        plots=_plots(results, guides),
        cards=cards(results, images),
        metrics=list(dict.fromkeys(label for one in results for label in one.metrics)),
        rows=_rows(results),
        trees=_trees(results, out),
        tree_style=tree_style(),
        tree_script=tree_script(),
        results=results,
        tasks=TASK_TITLES,
        unsteered=next((one.cell.guide for one in results if one.cell.settings.reward is None), None),
        settings=_settings(results),
        said=_said(results),
    )


def _settings(results: Sequence[CellResults]) -> list[str]:
    """How images were made, a line for each way, with the guides it holds for where there are several."""
    by_line: dict[str, list[str]] = {}
    for one in results:
        settings, steering = one.cell.settings, one.cell.settings.steering()
        if steering is None:
            continue
        steps = settings.steps or steering.steps
        steps = steps or (NUM_INFERENCE_STEPS if one.cell.world else 50)
        size = f"{steering.num_particles} particles, {steps} steps"
        if steering.calls is not None:
            size = f"at most {steering.calls} denoiser calls"
        lmbda = f", lambda {settings.lmbda:g}" if settings.lmbda is not None else ""
        scheduler = f", sampler {settings.scheduler}" if settings.scheduler else ""
        number = settings.samples_per_prompt * len(settings.seeds)
        each = f"{number} image{'s'[: number > 1]} of each prompt"
        line = f"preset '{settings.preset}', {size}{lmbda}{scheduler} and {each}."
        by_line.setdefault(line, []).append(one.cell.guide)
    if len(by_line) == 1:
        return [f"Steered with the {line}" for line in by_line]
    return [f"{', '.join(dict.fromkeys(guides))}: steered with the {line}" for line, guides in by_line.items()]


def _said(results: Sequence[CellResults]) -> dict[str, str]:
    """Label of a metric -> what its reward says of itself."""
    labels = dict.fromkeys(label for one in results for label in one.metrics)
    rewards = {metric.label: metric.reward for one in results for metric in one.measured}
    said = {}
    for label in labels:
        reward = rewards.get(label, DIVERSITY)
        # What diversity is, is said in any case.
        card = None if reward == DIVERSITY else getattr(reward_factory(reward), "card", None)
        if card is not None:
            said[label] = card.summary
    return said


def cards(results: Sequence[CellResults], images: int) -> list[Card]:
    """The prompts that are shown, by list and number."""
    made: dict[tuple[str, str], Card] = {}
    for one in results:
        groups = _by_group(one)
        for group in _spread(one.pictures, images):
            item = groups[group][0].item
            columns = made.setdefault(
                (one.cell.prompts, group), Card(one.cell.prompts, group, item.prompt, item.tag, {})
            ).models.setdefault(one.cell.model, [])
            pictures = [_plain_picture(picture, f"{one.cell.name}/{picture.item.name}") for picture in groups[group]]
            own = [label for label, value in one.metrics.items() if value.self_scored]
            columns.append(Column(one.cell.guide, pictures, own))
    return [made[key] for key in sorted(made)]


def _by_group(one: CellResults) -> dict[str, list[Picture]]:
    groups: dict[str, list[Picture]] = {}
    for picture in one.pictures:
        groups.setdefault(picture.item.group, []).append(picture)
    return groups


def _spread(pictures: Sequence[Picture], number_of_groups: int) -> list[str]:
    """So many groups, evenly over the tasks, the first ones of each."""
    by_tag: dict[str, list[str]] = {}
    for picture in pictures:
        of_tag = by_tag.setdefault(picture.item.tag, [])
        if picture.item.group not in of_tag:
            of_tag.append(picture.item.group)
    rounds = [
        groups[index]
        for index in range(max(map(len, by_tag.values()), default=0))
        for groups in by_tag.values()
        if index < len(groups)
    ]
    return sorted(rounds[:number_of_groups])


def _plain_picture(picture: Picture, file: str) -> dict[str, Any]:
    return {
        "src": _thumbnail(picture.item.path),
        "file": file,
        "correct": picture.correct,
        "reason": picture.reason,
        "scores": picture.scores,
    }


def _thumbnail(path: Path, side: int = 224) -> str:
    """A data URL: small images as they are, others scaled down."""
    image = load_image(path)
    buffer = io.BytesIO()
    if max(image.size) <= side:
        image.save(buffer, "WEBP", lossless=True)
    else:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        image.save(buffer, "WEBP", quality=82)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _headlines(results: Sequence[CellResults]) -> list[dict[str, Any]]:
    """For each model and list of prompts, the guide with the best accuracy, or where there is none the most means; of
    several that are alike, all."""
    blocks: dict[tuple[str, str], list[CellResults]] = {}
    for one in results:
        blocks.setdefault((one.cell.prompts, one.cell.model), []).append(one)
    made = []
    for (prompts, model), block in blocks.items():
        judged = [one for one in block if "overall" in one.accuracy]
        headline: dict[str, Any] = {"prompts": prompts, "model": model, "overall": bool(judged)}
        if judged:
            # As it is shown: guides that a reader cannot tell apart are alike.
            figures = {one.cell.guide: round(one.accuracy["overall"].mean, 3) for one in judged}
            differences = {one.cell.guide: one.accuracy["overall"].difference for one in judged}
        else:
            figures = {one.cell.guide: sum(v.fair_rank == 1 for v in one.metrics.values()) for one in block}
            differences = {}
        figure = max(figures.values())
        if not judged and figure == 0:
            continue
        best = [(guide, differences.get(guide)) for guide, one in figures.items() if one == figure]
        made.append({**headline, "figure": figure, "best": best})
    return made


def _plots(results: Sequence[CellResults], guides: Sequence[str]) -> list[tuple[str, str]]:
    """(prompts, SVG) of the lists for which there is one."""
    lists = dict.fromkeys(one.cell.prompts for one in results)
    plots = [(name, accuracy_by_cost([one for one in results if one.cell.prompts == name], guides)) for name in lists]
    return [(name, plot) for name, plot in plots if plot]


def _reaches(table: Table) -> list[float]:
    """The reach of each column's intervals."""
    columns = zip(*(row.cells for row in table.rows))
    return [reach([value.difference for value in column if value and value.difference]) for column in columns]


def _rows(results: Sequence[CellResults]) -> list[list[Any]]:
    """Every prompt by every guide: list, number, task, model, guide, prompt, share correct, mean scores by label."""
    rows = []
    for one in results:
        labels = list(one.metrics)
        for group, pictures in _by_group(one).items():
            verdicts = [picture.correct for picture in pictures if picture.correct is not None]
            means = {}
            for label in labels:
                known = [picture.scores[label] for picture in pictures if label in picture.scores]
                if known:
                    means[label] = float(f"{sum(known) / len(known):.5g}")
            item = pictures[0].item
            share = sum(verdicts) / len(verdicts) if verdicts else None
            rows.append([one.cell.prompts, group, item.tag, one.cell.model, one.cell.guide, item.prompt, share, means])
    return rows


def _trees(results: Sequence[CellResults], out: Path, most: int = 6) -> list[dict[str, str]]:
    """Family trees of steered samples, as many of each run; the first ones whose traces are there."""
    by_run = []
    for one in results:
        named = (
            (f"{one.cell.name}/{picture.item.group}/traces/{picture.item.path.stem}.json", picture.item)
            for picture in one.pictures
        )
        there = ((one.cell, item, name) for name, item in named if (out / name).exists())
        if found := list(itertools.islice(there, most)):
            by_run.append(found)
    trees = []
    for cell, item, name in [one for found in by_run for one in found[: max(1, most // len(by_run))]]:
        try:
            trace = Trace.load(out / name)
        # Of a run that failed; it is among the failures.
        except UnreadableFile:
            continue
        trees.append(
            {
                "title": f"{cell.model}, {cell.guide}: {item.prompt}, image {int(item.path.stem) + 1}",
                "file": name,
                "html": tree_html(trace, style=False),
            }
        )
    return trees

"""How to look at a run: lineage plots, contact sheets, a page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from ..files import png
from ..shapes import BUNDLED
from .trace import Trace


if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_lineages(trace: Trace, population: int = 0) -> Figure:
    """Who descends from whom in one population, and how its weights and rewards went.

    Top: one line per particle from event to event, coloured by the reward of its x0 prediction; the best final image's
    lineage is drawn wide and particles without descendants end in a cross. Middle: effective sample size as a fraction
    of the particles alive, filled markers where the population was resampled. Bottom: all rewards, and the best.

    Args:
        trace: of a finished run.
        population: index into `trace.prompts`.

    Raises:
        IndexError: for a population that is not there.
    """
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    events = trace.events
    prompt = trace.prompts[population]
    rewards = [dict(zip(event.slots_before[population], event.rewards[population])) for event in events]
    finite = [value for by_slot in rewards for value in by_slot.values() if math.isfinite(value)] or [0.0]
    colour = Normalize(min(finite), max(finite))
    steps = [event.step for event in events]
    best = _best_lineage(trace, population)

    figure = Figure(figsize=(9, 7), layout="constrained")
    tree, ess, levels = figure.subplots(3, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1, 1.4]})
    before, origin = 0, {slot: slot for slot in rewards[0]}
    for index, event in enumerate(events):
        for slot, start in origin.items():
            tree.plot(
                [before, event.step],
                [start, slot],
                color="0.25" if best[index] == slot else "0.75",
                linewidth=2.5 if best[index] == slot else 1.0,
                zorder=1,
            )
        continued = set(event.parents[population])
        ends = [slot for slot in rewards[index] if slot not in continued]
        tree.plot([event.step] * len(ends), ends, "x", color="0.4", markersize=9, zorder=3)
        points = tree.scatter(
            [event.step] * len(rewards[index]),
            list(rewards[index]),
            c=list(rewards[index].values()),
            norm=colour,
            cmap="viridis",
            zorder=2,
        )
        before, origin = event.step, dict(zip(event.slots[population], event.parents[population]))
    tree.set(ylabel="particle", title=f"{trace.reward}: {prompt}")
    tree.invert_yaxis()
    tree.yaxis.get_major_locator().set_params(integer=True)
    figure.colorbar(points, ax=tree, label="reward")

    fractions = [event.ess[population] / len(event.slots_before[population]) for event in events]
    ess.plot(steps, fractions, color="0.4", marker="o", markerfacecolor="white")
    resampled = [index for index, event in enumerate(events) if event.resampled[population]]
    ess.plot([steps[i] for i in resampled], [fractions[i] for i in resampled], "o", color="0.2", label="resampled")
    ess.axhline(trace.steering["ess_threshold"], color="0.6", linestyle=":", label="threshold")
    ess.set(ylabel="ESS / particles", ylim=(0, 1.05))
    ess.legend(loc="upper left", fontsize="small")

    for step, by_slot in zip(steps, rewards):
        levels.plot([step] * len(by_slot), list(by_slot.values()), ".", color="0.6")
    levels.plot(steps, [max(by_slot.values()) for by_slot in rewards], color="0.2", label="best")
    levels.set(ylabel="reward", xlabel="denoising step")
    levels.legend(loc="upper left", fontsize="small")
    return figure


def _best_lineage(trace: Trace, population: int) -> list[int]:
    """The slot of the best final image's ancestor at each event."""
    last = trace.events[-1]
    slots, rewards = last.slots_before[population], last.rewards[population]
    slot = slots[rewards.index(max(rewards))]
    lineage = [slot]
    for event in reversed(trace.events[:-1]):
        slot = dict(zip(event.slots[population], event.parents[population]))[slot]
        lineage.append(slot)
    return lineage[::-1]


@dataclass(frozen=True)
class Picture:
    """An image, its reward, and whether it is correct where that can be told (the bundled world)."""

    image: Image.Image
    reward: float
    correct: bool | None = None


@dataclass(frozen=True)
class Result:
    """One prompt of a run, read back from its folder.

    Attributes:
        steered: best first.
        unsteered: as many images from the same noise without steering, best first; empty if not made.
        lineage: the bytes of the lineage plot, PNG.
    """

    prompt: str
    steered: list[Picture]
    unsteered: list[Picture]
    lineage: bytes
    trace: Trace


def results_in(folder: Path, settings: dict[str, Any]) -> list[Result]:
    """What `fk-steer generate` left in a folder, prompt by prompt."""
    results = []
    for index, prompt in enumerate(settings["prompts"]):
        here = folder / f"{index:03d}"
        judged = settings["model"] in BUNDLED
        results.append(
            Result(
                prompt,
                steered=_pictures(here, "", prompt, judged),
                unsteered=_pictures(here, "unsteered-", prompt, judged) if settings["compare"] else [],
                lineage=(here / "lineage.png").read_bytes(),
                trace=Trace.load(here / "trace.json"),
            )
        )
    return results


def _pictures(folder: Path, prefix: str, prompt: str, judged: bool) -> list[Picture]:
    rewards = sorted(Trace.load(folder / f"{prefix}trace.json").events[-1].rewards[0], reverse=True)
    images = [Image.open(folder / f"{prefix}{rank:02d}.png").convert("RGB") for rank in range(len(rewards))]
    return [
        Picture(image, reward, _is_correct(image, prompt) if judged else None) for image, reward in zip(images, rewards)
    ]


def _is_correct(image: Image.Image, prompt: str) -> bool | None:
    """The exact detector's verdict; None for a prompt that is not one of the bundled world's captions."""
    from ..evaluation.geneval.rules import evaluate
    from ..shapes.captions import parse
    from ..shapes.detector import detect

    try:
        metadata = parse(prompt)
    except ValueError:
        return None
    return evaluate(metadata, detect(image)).correct


def contact_sheet(results: Sequence[Result], tile: int = 144) -> Image.Image:
    """A row of pictures per prompt with their rewards, the unsteered ones on the left, framed in green or red where
    it is known whether they are correct.

    Args:
        results: at least one.
        tile: side of a picture in pixels.
    """
    size = max(11, tile // 11)
    font = ImageFont.load_default(size)
    line, margin = math.ceil(size * 1.5), max(6, tile // 20)
    groups = [[group for group in (result.unsteered, result.steered) if group] for result in results]
    columns = max(sum(len(group) for group in row) for row in groups)
    width = columns * (tile + margin) + margin + (3 * margin if any(len(row) > 1 for row in groups) else 0)
    heights = [max(round(tile * p.image.height / p.image.width) for group in row for p in group) for row in groups]
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
                scaled = _fit(picture.image, tile)
                sheet.paste(scaled, (left, top + 2 * line))
                if picture.correct is not None:
                    frame = (left - 3, top + 2 * line - 3, left + tile + 2, top + 2 * line + scaled.height + 2)
                    draw.rectangle(frame, outline=_FRAMES[picture.correct], width=3)
                draw.text((left, top + 2 * line + height + 3), f"{picture.reward:.3f}", fill="black", font=font)
                left += tile + margin
            left += 3 * margin
        top += 3 * line + height + margin
    return sheet


_FRAMES = {True: "#1a9850", False: "#d73027"}


def _fit(image: Image.Image, tile: int) -> Image.Image:
    resample = Image.Resampling.LANCZOS if tile < image.width else Image.Resampling.NEAREST
    return image.resize((tile, round(tile * image.height / image.width)), resample)


def html_report(results: Sequence[Result], settings: dict[str, Any]) -> str:
    """One page with everything in it, that opens without a network."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined)
    environment.filters["data_url"] = lambda content: f"data:image/png;base64,{base64.b64encode(content).decode()}"
    environment.filters["png"] = lambda image: png(_fit(image, max(192, min(image.width, 512))))
    return environment.get_template("generate.html").render(
        results=results, settings=settings, summary=summarize(results)
    )


def summarize(results: Sequence[Result]) -> list[tuple[str, str, str]]:
    """(what, mean reward, share correct) over the prompts: an unsteered image, the best unsteered, the best steered."""
    rows: list[tuple[str, list[list[Picture]]]] = []
    if all(result.unsteered for result in results):
        rows.append(("one image without steering (mean over all)", [result.unsteered for result in results]))
        rows.append(("best image without steering", [result.unsteered[:1] for result in results]))
    rows.append(("best steered image", [result.steered[:1] for result in results]))
    lines = []
    for name, groups in rows:
        rewards = [sum(picture.reward for picture in group) / len(group) for group in groups]
        judged = [[p.correct for p in group if p.correct is not None] for group in groups]
        judged = [group for group in judged if group]
        correct = sum(sum(map(bool, group)) / len(group) for group in judged) / len(judged) if judged else None
        lines.append((name, f"{sum(rewards) / len(rewards):.3f}", "" if correct is None else f"{100 * correct:.0f}%"))
    return lines


def figure_png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _shorten(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."

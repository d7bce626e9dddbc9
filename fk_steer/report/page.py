"""Pages about runs: of `fk-steer generate`, and of any trace."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from PIL.Image import Image

from ..files import FPS, differences, png, webp
from .drawing import environment, tree_html, tree_script, tree_style
from .results import Picture, Result, summarize
from .sheet import fit
from .trace import Trace
from .tree import family_tree
from .wording import number, short


THUMBNAIL = 300
"""The largest width, in pixels, of a picture in a page; the whole one lies beside it."""

TINY = 160
"""A picture of at most that width is kept pixel by pixel."""


def html_report(results: Sequence[Result], settings: dict[str, Any]) -> str:
    """The page about a run of `fk-steer generate`: small pictures, family trees and all numbers. It opens without a
    network; the whole images lie beside it, in the folder of the run.

    Raises:
        ImportError: without Jinja.
    """
    traces = [result.trace for result in results]
    return _render(
        "generate.html", results=results, settings=settings, summary=summarize(results), facts=_facts(traces, settings)
    )


def trace_page(trace: Trace) -> str:
    """A page about any run, with everything in it: the family tree of each population.

    Raises:
        ValueError: for a trace without events.
    """
    if not trace.events:
        raise ValueError("There is no family tree to draw: the trace has no events. Save it when the run is finished.")
    return _render("trace.html", trace=trace, facts=_facts([trace], {"steering": trace.steering}))


def _render(template: str, **values: Any) -> str:
    made = environment()
    made.filters["picture_url"] = _picture_url
    trees = {"tree": partial(tree_html, style=False), "style": tree_style(), "script": tree_script()}
    return made.get_template(template).render(**values, **trees, events=_events, details=details_of_best)


def _facts(traces: Sequence[Trace], settings: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, value, remark) about a run."""
    if not traces:
        return []
    trace, steering = traces[0], settings["steering"]
    name, changes = preset_of(steering)
    facts = [("preset" if name else "search", name or str(steering.get("strategy", "of your own")), ", ".join(changes))]
    particles = str(trace.chosen.get("num_particles", steering.get("num_particles", len(trace.events[0].rewards[0]))))
    facts.append(("particles", particles, f"{len(trace.passes())} passes" if len(trace.passes()) > 1 else ""))
    lambdas = [
        event.lmbda[own]
        for whole in traces
        for population in range(len(whole.prompts))
        for one, own in whole.passes(population)
        for event in one.events
        if math.isfinite(event.lmbda[own])
    ]
    if lambdas:
        low, high = short(min(lambdas)), short(max(lambdas))
        solved = "" if steering.get("lmbda") is not None else "chosen by the run or the reward"
        facts.append(("lambda", low if low == high else f"{low} to {high}", solved))
    facts.append(("steps", str(trace.num_steps), trace.chosen.get("sampler") or ""))
    if trace.scheduler:
        facts.append(("scheduler", trace.scheduler, ""))
    if trace.chosen.get("budget"):
        budget = f"a budget of {trace.chosen['budget']} denoiser calls per image"
        facts.append(("denoiser calls", str(trace.chosen["calls"]), budget))
    if settings.get("guidance") is not None:
        facts.append(("guidance", f"{settings['guidance']:g}", ""))
    if settings.get("seed") is not None:
        facts.append(("seed", str(settings["seed"]), ""))
    seconds = [one.seconds for one in traces if one.seconds]
    if seconds:
        total = sum(one["total"] for one in seconds)
        parts = {part: sum(one[part] for one in seconds) for part in ("denoiser", "decode", "reward", "rest")}
        shares = ", ".join(f"{part} {100 * value / total:.0f}%" for part, value in parts.items()) if total else ""
        facts.append(("time", _duration(total), shares))
    return facts


def preset_of(steering: dict[str, Any]) -> tuple[str, list[str]]:
    """The preset that settings were made of, and what differs from it: strength, size and seed are not counted. An
    empty name for those that are like none.

    Args:
        steering: as of `Strategy.to_dict` or `Strategy.describe`.
    """
    from ..search import PRESETS

    def compared(settings: Any) -> Any:
        if not isinstance(settings, dict):
            return list(settings) if isinstance(settings, tuple) else settings
        return {name: compared(value) for name, value in settings.items() if name not in _NOT_COUNTED}

    asked = compared(steering)
    found = []
    for name, preset in PRESETS.items():
        for settings in (preset.settings.to_dict(), preset.settings.describe()):
            plain = compared(settings)
            if plain.get("strategy") == asked.get("strategy") and plain.keys() == asked.keys():
                found.append((name, differences(plain, asked)))
    if not found:
        return "", []
    name, changes = min(found, key=lambda one: len(one[1]))
    return (name, changes) if len(changes) <= 4 else ("", [])


_NOT_COUNTED = ("num_particles", "lmbda", "calls", "steps", "sampler", "seed")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def details_of_best(trace: Trace, population: int = 0) -> dict[str, float]:
    """What the reward of a population's best particle was made of, by name; empty for most rewards."""
    tree = family_tree(trace, population)
    return tree.nodes[tree.winner].details if tree.winner is not None else {}


def _events(trace: Trace, population: int = 0) -> list[dict[str, Any]]:
    """A row of the table of events for each of them."""
    rows = []
    passes = trace.passes(population)
    for run, (one, own) in enumerate(passes):
        for event in one.events:
            rewards = [reward for reward in event.rewards[own] if not math.isnan(reward)]
            alive = len(set(event.slots_before[own]))
            ess, lmbda = event.ess[own], event.lmbda[own]
            rows.append(
                {
                    "run": run + 1 if len(passes) > 1 else None,
                    "step": "final" if event.final else str(event.step),
                    "lambda": "–" if math.isnan(lmbda) else f"{lmbda:.2f}",
                    "best": number(max(rewards, default=math.nan)),
                    "mean": number(sum(rewards) / len(rewards) if rewards else math.nan),
                    "ess": "–" if math.isnan(ess) else f"{min(ess, alive):.2f} of {alive}",
                    "resampled": "yes" if event.resampled[own] else "",
                    "roots": event.distinct_roots[own],
                    "nfe": event.nfe,
                }
            )
    return rows


def _picture_url(picture: Picture) -> str:
    """A small picture, or an animation of a video, as a 'data:' URL."""

    def scaled(image: Image) -> Image:
        return fit(image, THUMBNAIL) if image.width > THUMBNAIL else image

    if picture.frames:
        content, kind = webp([scaled(frame) for frame in picture.frames], FPS, lossless=False), "webp"
    elif picture.image.width <= TINY:
        content, kind = png(picture.image), "png"
    else:
        buffer = io.BytesIO()
        scaled(picture.image).save(buffer, "WEBP", quality=82)
        content, kind = buffer.getvalue(), "webp"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"

"""Pieces of the page as HTML. Whatever somebody typed is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

from ..files import FPS, webp
from ..report.results import Picture
from ..report.wording import number
from .judging import Scored, Verdict


SHOWN = 640
"""The longer side of a picture in the page, in pixels, at most; the whole one is among the files."""

SMALL = 160
"""Pictures up to this width are shown pixel by pixel."""


def status(text: str, share: float | None = None, error: bool = False) -> str:
    """The line that says how things stand.

    Args:
        share: of the work that is done, in [0, 1]; None for none to show.
        error: whether it says what is wrong.
    """
    if not text:
        return ""
    if error:
        return f'<div class="fk-line-status fk-error" role="alert">{escape(text)}</div>'
    bar = "" if share is None else f'<progress max="1" value="{share:.3f}" aria-label="How far the run is"></progress>'
    return f'<div class="fk-line-status" role="status">{escape(text)}{bar}</div>'


def line_of(error: BaseException) -> str:
    """An error as one line that says what to do about it."""
    import torch

    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return "There is not enough memory: ask for fewer candidates, a smaller picture, or fewer rows at a time."
    if isinstance(error, (ValueError, OSError, ImportError, ArithmeticError)):
        return text
    return f"{type(error).__name__}: {text} (The terminal shows where this comes from.)"


def figures(shown: Sequence[tuple[str, Picture, str]]) -> str:
    """Pictures side by side: of each what it is, itself, and a remark."""
    parts = [
        f"<figure{_judged(picture)}><figcaption><b>{escape(title)}</b><span>{escape(note)}</span></figcaption>"
        f'<img src="{_url(picture)}" alt="{escape(title)}: {escape(note)}"{_pixelated(picture.image)}></figure>'
        for title, picture, note in shown
    ]
    return f'<div class="fk-figures">{"".join(parts)}</div>' if parts else ""


def remark(picture: Picture) -> str:
    """The reward of a picture, and whether it is right where that can be told."""
    right = {True: ", shows what was asked for", False: ", not what was asked for", None: ""}[picture.correct]
    return f"reward {number(picture.reward)}{right}"


MARKS = {True: " ✓", False: " ✗", None: ""}
"""Of pictures of which it is known whether they are right."""


def score_table(scored: Sequence[Scored]) -> str:
    """Pictures and their scores, best first; the best of each reward is marked."""
    names = list(scored[0].scores)
    best = {name: max((v for one in scored if (v := one.scores.get(name)) is not None), default=None) for name in names}
    several = sum(one.image is not None for one in scored) > 1
    head = "".join(f'<th class="fk-number">{escape(name)}</th>' for name in names)
    if several:
        head += (
            '<th class="fk-number" title="Each reward brought to mean 0 and spread 1 over these pictures">overall</th>'
        )
    rows = []
    for place, one in enumerate(scored, 1):
        if one.image is None:
            cells = f'<td class="fk-problem" colspan="{len(names) + several}">{escape(one.problem)}</td>'
            rows.append(f"<tr><td></td><td></td><td>{escape(one.name)}</td>{cells}</tr>")
            continue
        values = [one.scores.get(name) for name in names]
        cells = "".join(
            f'<td class="fk-number{" fk-best" if several and v is not None and v == best[name] else ""}">'
            f"{'no answer' if v is None else number(v)}</td>"
            for name, v in zip(names, values)
        )
        if several:
            cells += f'<td class="fk-number">{"" if one.overall is None else f"{one.overall:+.2f}"}</td>'
        image = f'<img src="{_still(one.image, 192)}" alt=""{_pixelated(one.image)}>'
        rows.append(f"<tr><td>{place}</td><td>{image}</td><td>{escape(one.name)}</td>{cells}</tr>")
    body = "".join(rows)
    return (
        '<div class="fk-wide" tabindex="0" role="region" aria-label="Scores"><table class="fk-scores">'
        f"<thead><tr><th></th><th></th><th>picture</th>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def verdict(found: Verdict) -> str:
    """Which of two pictures is better, by how much, and why where that was said."""
    first, second = found.scores
    better = found.better
    if None in found.scores:
        said = "No verdict: the judge gave a score to one of them alone."
    elif better is None:
        said = "Neither: both are equally good to this reward."
    else:
        said = f"{'AB'[better]} is better."
    if found.relative and first is not None and second is not None:
        how = f"A is preferred with probability {first:.0%}, B with {second:.0%}."
        bar = f'<div class="fk-balance" aria-hidden="true"><i style="width: {100 * first:.1f}%"></i></div>'
    else:
        how = ", ".join(f"{one} {'no answer' if v is None else number(v)}" for one, v in zip("AB", found.scores))
        how, bar = f"Scores by {found.reward}: {how}.", ""
    said_why = "".join(
        f"<details open><summary>What the judge said{' ' + escape(title) if title else ''}</summary>"
        f"<blockquote>{escape(text)}</blockquote></details>"
        for title, text in found.reasons
    )
    none = "" if said_why else '<p class="fk-soft">This reward gives numbers, no reasons; a chat judge would.</p>'
    return f'<div class="fk-verdict"><h3>{escape(said)}</h3>{bar}<p>{escape(how)}</p>{said_why}{none}</div>'


def _judged(picture: Picture) -> str:
    return {True: ' class="fk-right"', False: ' class="fk-wrong"', None: ""}[picture.correct]


def _pixelated(image: Image.Image) -> str:
    return ' style="image-rendering: pixelated"' if image.width <= SMALL else ""


def _url(picture: Picture) -> str:
    if not picture.frames:
        return _still(picture.image, SHOWN)
    small = [_reduced(frame, SHOWN) for frame in picture.frames]
    return _as_url(webp(small, FPS, lossless=False))


def _still(image: Image.Image, side: int) -> str:
    buffer = io.BytesIO()
    lossless = image.width <= SMALL
    _reduced(image.convert("RGB"), side).save(buffer, "WEBP", lossless=lossless, quality=88)
    return _as_url(buffer.getvalue())


def _reduced(image: Image.Image, side: int) -> Image.Image:
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def _as_url(content: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(content).decode()}"

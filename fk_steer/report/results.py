"""What `fk-steer generate` left in a folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence

from ..evaluation.geneval.rules import evaluate
from ..evaluation.statistics import clustered_mean, plus_minus
from ..shapes import BUNDLED
from ..shapes.captions import parse
from ..shapes.detector import detect
from .trace import Trace


VIDEO = ".webp"
"""Of files with a video, an animation that keeps every pixel."""

UNSTEERED = "unsteered-"
"""Before the names of files of the run without steering; those of the steered run have nothing before them."""


@dataclass(frozen=True)
class Picture:
    """An image, or the first frame of a video, its reward, and whether it is correct where that can be told (the
    bundled world).

    Attributes:
        frames: of a video, all of them; else none.
        file: where it lies, relative to the page.
    """

    image: Image.Image
    reward: float
    correct: bool | None = None
    frames: tuple[Image.Image, ...] = ()
    file: str = ""


@dataclass(frozen=True)
class Result:
    """One prompt of a run, read back from its folder.

    Attributes:
        steered: best first.
        unsteered: as many images from the same noise without steering, best first; empty if not made.
    """

    prompt: str
    steered: list[Picture]
    unsteered: list[Picture]
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
                steered=pictures_in(here, "", prompt, judged),
                unsteered=pictures_in(here, UNSTEERED, prompt, judged) if settings["compare"] else [],
                trace=Trace.load(here / "trace.json"),
            )
        )
    return results


def pictures_in(folder: Path, prefix: str, prompt: str, judged: bool) -> list[Picture]:
    """The pictures of a prompt in its folder, best first.

    Args:
        prefix: of the files: nothing, or 'unsteered-'.
        judged: whether the model is one whose pictures can be checked.
    """
    pictures = []
    for rank, reward in enumerate(Trace.load(folder / f"{prefix}trace.json").rewards[0]):
        path = picture_path(folder, f"{prefix}{rank:02d}")
        with Image.open(path) as image:
            frames = tuple(frame.convert("RGB") for frame in ImageSequence.Iterator(image))
        correct = _is_correct(frames[0], prompt) if judged else None
        file = f"{folder.name}/{path.name}"
        pictures.append(Picture(frames[0], reward, correct, frames if path.suffix == VIDEO else (), file))
    return pictures


def picture_path(folder: Path, name: str) -> Path:
    """The file of an image or video, or where that of an image would be."""
    video = folder / f"{name}{VIDEO}"
    return video if video.exists() else folder / f"{name}.png"


def _is_correct(image: Image.Image, prompt: str) -> bool | None:
    """The exact detector's verdict; None for a prompt that is not one of the bundled world's captions."""
    try:
        metadata = parse(prompt)
    except ValueError:
        return None
    return evaluate(metadata, detect(image)).correct


def summarize(results: Sequence[Result]) -> list[tuple[str, str, str]]:
    """(what, mean reward, share correct) over the prompts, with standard errors: an unsteered image, the best
    unsteered, the best steered, and what the last gains on each of the others, paired by prompt."""
    kind = "video" if any(picture.frames for result in results for picture in result.steered) else "image"
    groups: dict[str, list[list[Picture]]] = {}
    if all(result.unsteered for result in results):
        groups[f"one {kind} without steering (mean over all)"] = [result.unsteered for result in results]
        groups[f"best {kind} without steering"] = [result.unsteered[:1] for result in results]
    steered = f"best steered {kind}"
    groups[steered] = [result.steered[:1] for result in results]
    rewards = {name: [_mean(picture.reward for picture in some) for some in each] for name, each in groups.items()}
    correct = {
        name: [_mean(100 * p.correct for p in some if p.correct is not None) for some in each]
        for name, each in groups.items()
    }

    lines = [(name, _over_prompts(rewards[name], ".3f"), _over_prompts(correct[name], ".0f", "%")) for name in groups]
    for other in groups:
        if other != steered:
            reward, share = (
                [None if a is None or b is None else a - b for a, b in zip(values[steered], values[other])]
                for values in (rewards, correct)
            )
            gains = _over_prompts(reward, "+.3f"), _over_prompts(share, "+.0f", " points")
            lines.append((f"{steered} less {other}", *gains))
    return lines


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return sum(known) / len(known) if known else None


def _over_prompts(values: Iterable[float | None], form: str, unit: str = "") -> str:
    known = [[value] for value in values if value is not None]
    return f"{plus_minus(clustered_mean(known), form)}{unit}" if known else ""

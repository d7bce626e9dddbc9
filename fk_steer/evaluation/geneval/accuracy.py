"""GenEval's evaluation of folders, from settings to the files it leaves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...console import console, progress_bar
from ...files import check_settings, record_settings, write_atomically, write_json
from ...records import read_record
from .evaluator import Summary, evaluate_folder, lines, samples, summarize


if TYPE_CHECKING:
    from .detector import Detector


def detector_settings(
    detector: str, detector_path: str | None = None, clip_path: str | None = None, **selection: Any
) -> dict[str, Any]:
    """What verdicts depend on.

    Args:
        detector: 'mask2former' or 'shapes'.
        detector_path, clip_path: of Mask2Former and the CLIP that tells colours; None for the official ones.
        **selection: of Mask2Former's detections, see `Selection`.

    Raises:
        ValueError: for another detector.
    """
    from .colours import CLIP
    from .detector import MASK2FORMER, Selection

    if detector == "shapes":
        return {"detector": detector}
    if detector != "mask2former":
        raise ValueError(f"Unknown detector {detector!r}. Known: mask2former, shapes.")
    chosen = asdict(Selection(**selection))
    return {"detector": detector, "path": detector_path or MASK2FORMER, "clip": clip_path or CLIP, **chosen}


def make_detector(settings: dict[str, Any], device: str | None) -> Detector:
    """The detector of `detector_settings`."""
    from .detector import Mask2FormerDetector, Selection, ShapesDetector

    if settings["detector"] == "shapes":
        return ShapesDetector()
    options = {name: value for name, value in settings.items() if name not in ("detector", "path", "clip")}
    return Mask2FormerDetector(settings["path"], settings["clip"], device, Selection(**options))


def evaluate_folders(
    folders: Sequence[tuple[Path, Path]], settings: dict[str, Any], device: str | None
) -> list[Summary]:
    """Judge what has not been judged yet in folders of GenEval's layout, by one detector, loaded if there is anything
    to do.

    Args:
        folders: images, and where results and summary go.
        settings: `detector_settings`.

    Raises:
        ValueError: if results were made with other settings, naming the first that differs.
    """
    images = [samples(folder) for folder, _ in folders]
    for _, out in folders:
        check_settings(out, settings)
    made: list[Detector] = []
    summaries = []
    with progress_bar() as bar:
        task = bar.add_task("images", total=sum(map(len, images)))
        for (_, out), some in zip(folders, images):

            def load(out: Path = out) -> Detector:
                if not made:
                    made.append(make_detector(settings, device))
                record_settings(out, settings)
                return made[0]

            results, unreadable = evaluate_folder(
                some, load, out / "results.jsonl", progress=lambda done: bar.advance(task, done)
            )
            for name, problem in unreadable.items():
                console.print(f"[yellow]skipped[/yellow] {name}: {problem}", highlight=False, soft_wrap=True)
            summary = summarize(results)
            plain = json.loads(json.dumps({**asdict(summary), "unreadable": unreadable}))
            # A finished evaluation is left as it is.
            if not (out / "summary.json").exists() or read_record(out / "summary.json", dict) != plain:
                write_atomically(out / "summary.txt", ("\n".join(lines(summary)) + "\n").encode())
                write_json(out / "summary.json", plain)
            summaries.append(summary)
    return summaries

"""`fk-steer eval ...`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fk_steer.console import console, one_line_errors


if TYPE_CHECKING:
    from .geneval_detector import Detector

app = typer.Typer(no_args_is_help=True)


class DetectorKind(str, Enum):
    mask2former = "mask2former"
    shapes = "shapes"


# Typer makes a lone command the whole app unless there is a callback.
@app.callback()
def evaluation() -> None:
    """Evaluation of generated images."""


@app.command()
def geneval(
    folder: Annotated[
        Path, typer.Argument(help="Images in GenEval's layout: 00000/metadata.jsonl, 00000/samples/00000.png, ...")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for results and summary. [default: 'evaluation' in FOLDER]")
    ] = None,
    detector: Annotated[
        DetectorKind, typer.Option(help="'shapes' is the exact one, for images of the bundled world.")
    ] = DetectorKind.mask2former,
    detector_path: Annotated[
        str | None,
        typer.Option(
            help="Hub id or folder of a Mask2Former. [default: facebook/mask2former-swin-small-coco-instance]"
        ),
    ] = None,
    clip_path: Annotated[
        str | None,
        typer.Option(help="Hub id or folder of the CLIP that tells colours. [default: OpenAI's ViT-L/14]"),
    ] = None,
    threshold: Annotated[float, typer.Option(help="A detection must be more confident than this.")] = 0.3,
    counting_threshold: Annotated[float, typer.Option(help="The same for counting.")] = 0.9,
    max_objects: Annotated[int, typer.Option(min=1, help="Detections per class.")] = 16,
    max_overlap: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Drop detections that overlap a better one this much; 1 keeps all.")
    ] = 1.0,
    device: Annotated[str | None, typer.Option(help="[default: cuda if there is one, else cpu]")] = None,
) -> None:
    """GenEval by its official rules: is what the prompt says in the image, in number, colour and place?

    Run again it judges what is new and prints the summary.
    """
    with one_line_errors():
        from fk_steer.files import check_settings, record_settings, write_atomically, write_json
        from fk_steer.loading import quiet_libraries

        quiet_libraries()
        from dataclasses import asdict

        from .geneval import evaluate_folder, lines, samples, summarize
        from .geneval_colours import CLIP
        from .geneval_detector import MASK2FORMER

        out = out or folder / "evaluation"
        images = samples(folder)
        settings: dict[str, Any] = {"detector": detector.value}
        if detector is DetectorKind.mask2former:
            selection = {
                "threshold": threshold,
                "counting_threshold": counting_threshold,
                "max_objects": max_objects,
                "max_overlap": max_overlap,
            }
            settings |= {"path": detector_path or MASK2FORMER, "clip": clip_path or CLIP, **selection}
        check_settings(out, settings)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("images", total=len(images))

            def load() -> Detector:
                made = _detector(settings, device)
                record_settings(out, settings)
                return made

            results, unreadable = evaluate_folder(
                images, load, out / "results.jsonl", progress=lambda done: bar.advance(task, done)
            )
        for name, problem in unreadable.items():
            console.print(f"[yellow]skipped[/yellow] {name}: {problem}", highlight=False, soft_wrap=True)
        summary = summarize(results)
        write_json(out / "summary.json", {**asdict(summary), "unreadable": unreadable})
        text = "\n".join(lines(summary))
        write_atomically(out / "summary.txt", f"{text}\n".encode())
        console.print(text, highlight=False)


def _detector(settings: dict[str, Any], device: str | None) -> Detector:
    from .geneval_detector import Mask2FormerDetector, Selection, ShapesDetector

    if settings["detector"] == "shapes":
        return ShapesDetector()
    options = {name: value for name, value in settings.items() if name not in ("detector", "path", "clip")}
    return Mask2FormerDetector(settings["path"], settings["clip"], device, Selection(**options))

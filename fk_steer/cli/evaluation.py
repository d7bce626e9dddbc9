"""`fk-steer eval ...`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..console import console
from .options import Device, one_line_errors


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
    device: Device = None,
) -> None:
    """GenEval by its official rules: is what the prompt says in the image, in number, colour and place?

    Run again it judges what is new and prints the summary.
    """
    with one_line_errors():
        from ..loading import quiet_libraries

        quiet_libraries()
        from ..evaluation.geneval.accuracy import detector_settings, evaluate_folders
        from ..evaluation.geneval.evaluator import lines

        settings = detector_settings(
            detector.value,
            detector_path,
            clip_path,
            threshold=threshold,
            counting_threshold=counting_threshold,
            max_objects=max_objects,
            max_overlap=max_overlap,
        )
        (summary,) = evaluate_folders([(folder, out or folder / "evaluation")], settings, device)
        console.print("\n".join(lines(summary)), highlight=False)


@app.command()
def panel(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Images in GenEval's layout (00000/metadata.jsonl, 00000/samples/00000.png, ...), or a CSV or JSONL "
            "file with the fields path and prompt."
        ),
    ],
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:VARIANT][=PATH],...",
            help="Rewards, and 'diversity'. [default: those of the LLaVA-Reward paper and diversity; with --detector "
            "shapes the bundled world's]",
        ),
    ] = None,
    metric_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME:]KEY=VALUE",
            help="Option of a metric, for example clip-score:variant=hessel; without NAME of all of them.",
        ),
    ] = None,
    metrics: Annotated[
        Path | None, typer.Option(help="YAML file of metrics, label: {metric: NAME, KEY: VALUE, ...}.")
    ] = None,
    detector: Annotated[
        DetectorKind | None,
        typer.Option(help="Add GenEval's accuracy by this detector. With 'shapes' metrics are the bundled world's."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the scores. [default: 'panel' in FOLDER]")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images scored at a time.")] = 8,
    device: Device = None,
) -> None:
    """Mean scores of images by a panel of metrics, each loaded once and one at a time.

    Run again it scores what is missing and prints the means. A metric that fails is reported and the others go on; the
    exit status is then 1.
    """
    with one_line_errors():
        from ..loading import quiet_libraries

        quiet_libraries()
        from ..evaluation.panel.panel import run

        if not run(folder, metric, metric_option, metrics, detector and detector.value, out, batch_size, device):
            raise typer.Exit(1)

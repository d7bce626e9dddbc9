"""`fk-steer eval ...`."""

from __future__ import annotations

import functools
import inspect
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..console import console
from .options import Device, one_line_errors, start


app = typer.Typer(no_args_is_help=True)


class DetectorKind(str, Enum):
    mask2former = "mask2former"
    shapes = "shapes"


# Typer makes a lone command the whole app unless there is a callback.
@app.callback()
def evaluation() -> None:
    """Judge folders of images: by GenEval's rules, a panel of metrics, or answers to questions about them."""


@app.command()
def geneval(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="Judge the images in this folder, in GenEval's layout: 00000/metadata.jsonl, 00000/samples/00000.png, "
            "and so on.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Write results and summary to this folder.", show_default="'evaluation' in FOLDER"),
    ] = None,
    detector: Annotated[
        DetectorKind,
        typer.Option(help="Find objects with this detector; shapes is the exact one, for images of the bundled world."),
    ] = DetectorKind.mask2former,
    detector_path: Annotated[
        str | None,
        typer.Option(
            help="Load the Mask2Former from this hub id or folder.",
            show_default="its small one for COCO",
        ),
    ] = None,
    clip_path: Annotated[
        str | None,
        typer.Option(
            help="Load the CLIP that tells colours from this hub id or folder.", show_default="OpenAI's ViT-L/14"
        ),
    ] = None,
    threshold: Annotated[float, typer.Option(help="Count a detection if its confidence is above this.")] = 0.3,
    counting_threshold: Annotated[
        float, typer.Option(help="Count a detection if its confidence is above this, in prompts about numbers.")
    ] = 0.9,
    max_objects: Annotated[int, typer.Option(min=1, help="Keep at most this many detections of a class.")] = 16,
    max_overlap: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="Drop a detection that overlaps a better one by more than this share; 1 keeps all."
        ),
    ] = 1.0,
    device: Device = None,
) -> None:
    """Judge images by GenEval's official rules: are things there in the number, colour and place the prompt says?

    Run again it judges what is new and prints the summary.
    """
    with one_line_errors():
        start()
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
            metavar="FOLDER",
            help="Score the images in this folder, in GenEval's layout (00000/metadata.jsonl, 00000/samples/00000.png, "
            "...), or those in a CSV or JSONL file with the fields path and prompt.",
        ),
    ],
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:VARIANT][=PATH]",
            help="Score by these rewards, and by 'diversity', how unlike a prompt's images are.",
            show_default="those of the LLaVA-Reward paper and diversity; with --detector shapes the bundled world's",
        ),
    ] = None,
    metric_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME:]KEY=VALUE",
            help="Set an option of a metric, for example hps:variant=v2; without NAME of all of them.",
            show_default="the metrics' own",
        ),
    ] = None,
    metrics: Annotated[
        Path | None,
        typer.Option(
            help="Read the metrics from this YAML file, label: {metric: NAME, KEY: VALUE, ...}, in place of --metric.",
            show_default="none",
        ),
    ] = None,
    detector: Annotated[
        DetectorKind | None,
        typer.Option(
            help="Add GenEval's accuracy by this detector. With shapes the metrics are the bundled world's.",
            show_default="none",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the scores to this folder.", show_default="'panel' in FOLDER")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Score this many images at a time.")] = 8,
    device: Device = None,
) -> None:
    """Score images by a panel of metrics, and print their means with standard errors.

    Each metric is loaded once, one at a time. Run again it scores what is missing and prints the means. A metric that
    fails is reported and the others go on; the exit status is then 1.
    """
    with one_line_errors():
        start()
        from ..evaluation.panel.panel import run

        if not run(folder, metric, metric_option, metrics, detector and detector.value, out, batch_size, device):
            raise typer.Exit(1)


JudgeName = Annotated[
    str,
    typer.Option(
        metavar="NAME[:VARIANT][=PATH]",
        help="Let this reward answer the questions: checklist, a model in this process, or checklist-chat, one on a "
        "server, with --judge-option model=NAME.",
    ),
]
JudgeOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="Set an option of the judge, for example model=NAME for the one that a server serves.",
        show_default="the reward's own",
    ),
]
Questions = Annotated[
    Path | None,
    typer.Option(
        help="Read the questions from this file: DPG-Bench's dpg_bench.csv, or JSON lines with a prompt and its checks "
        "each.",
        show_default="DPG-Bench's are fetched once, others made from the wording",
    ),
]


def answers(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="Judge the images in this folder, in GenEval's layout: 00000/metadata.jsonl, 00000/samples/00000.png, "
            "and so on.",
        ),
    ],
    name: str,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write answers and summary to this folder.", show_default="one of the command's name in FOLDER"
        ),
    ] = None,
    judge: JudgeName = "checklist",
    judge_option: JudgeOption = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            help="Look prompts up in this copy of the list, where the images' metadata hold the text alone.",
            show_default="the list that ships",
        ),
    ] = None,
    questions: Questions = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Judge this many images at a time.")] = 8,
    device: Device = None,
) -> None:
    """Judge images by answers to questions about them."""
    with one_line_errors():
        start()
        from ..evaluation.checklists.run import run

        run(name, folder, out, judge, judge_option or [], prompts_file, questions, batch_size, device)


def _of(name: str, doc: str, *without: str) -> None:
    """Add `answers` with its benchmark chosen, without some of its options."""

    @functools.wraps(answers)
    def command(**options: Any) -> None:
        answers(name=name, **options)

    whole = inspect.signature(answers, eval_str=True)
    parameters = [value for key, value in whole.parameters.items() if key not in ("name", *without)]
    command.__signature__ = whole.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__doc__ = f"{doc}\n\n    Run again it judges what is new and prints the table, with standard errors.\n"
    app.command(name)(command)


_of(
    "checklist",
    "Judge images by questions of your own, or made from the wording of their prompts: Soft-TIFA.",
    "prompts_file",
)
_of("geneval2", "Judge images by GenEval 2: Soft-TIFA of all prompts, skills and atomicities.", "questions")
_of("dpg", "Judge images by DPG-Bench: questions that fall with their parents, and categories of them.")
_of("t2i-compbench", "Judge images by T2I-CompBench++, as far as questions about images go.", "questions")
_of("unigenbench", "Judge images by UniGenBench++: test points met, by dimension.", "questions")
_of("oneig", "Judge images by the alignment questions of OneIG-Bench.", "questions")
_of("tiif", "Judge images by TIIF-Bench: questions answered right, by attribute and group.", "questions")
_of("wise", "Judge images by WISE: do they show what the prompt means?", "questions")

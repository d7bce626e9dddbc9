"""The command line, `llava-reward` or `python -m llava_reward_guide`."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .attention import ATTENTION
from .terminal import errors_as_lines, flowing, print_version, taking, usable_device


if TYPE_CHECKING:
    from .model import LlavaReward

app = typer.Typer(
    help="LLaVA-Reward: how good an image is for a prompt.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


@app.callback()
def main(
    show: Annotated[
        bool,
        typer.Option(
            "--version", callback=print_version("llava-reward"), is_eager=True, help="Print the version and end."
        ),
    ] = False,
) -> None:
    """LLaVA-Reward: how good an image is for a prompt."""


class Objective(str, Enum):
    bradley_terry = "bradley-terry"
    general_preference = "general-preference"
    classification = "classification"


class DType(str, Enum):
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


Checkpoint = Annotated[
    str,
    typer.Option("--checkpoint", "-c", help="Load this checkpoint: a folder, or OWNER/REPO/PATH of the hub."),
]
BackboneOption = Annotated[
    str | None,
    typer.Option(help="Load the multimodal LLM from this folder or hub id.", show_default="the checkpoint's"),
]
ObjectiveOption = Annotated[
    Objective | None,
    typer.Option(help="Read the head as trained by this loss.", show_default="what the checkpoint says"),
]
NumCrops = Annotated[
    int | None,
    typer.Option(
        min=1, help="Cut an image into at most this many crops on Phi-3.5-vision; fewer cost less.", show_default="16"
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Put this many images into a pass of the model.")]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        callback=usable_device,
        help="Run on this device: cpu, cuda, cuda:1 or mps.",
        show_default="cuda if there is one, else cpu",
    ),
]
DTypeOption = Annotated[
    DType | None,
    typer.Option(help="Compute in this precision.", show_default="bfloat16 on CUDA devices, else float32"),
]
Attention = Annotated[str, typer.Option("--attention", help=f"Compute attention by one of {', '.join(ATTENTION)}.")]
Quantize = Annotated[
    str | None, typer.Option(help="Keep the backbone's weights in 8bit or 4bit.", show_default="not quantized")
]
AsCoded = Annotated[
    bool | None,
    typer.Option(
        help="Treat padding as the released code does.",
        show_default="where a checkpoint needs it",
        rich_help_panel="Other layouts",
    ),
]
FullFinetune = Annotated[
    bool,
    typer.Option(
        help="Expect a checkpoint whose backbone itself was trained, without a folder lora/.",
        rich_help_panel="Other layouts",
    ),
]


@dataclass
class Loading:
    """How a checkpoint is loaded."""

    checkpoint: Checkpoint
    backbone: BackboneOption = None
    objective: ObjectiveOption = None
    num_crops: NumCrops = None
    device: DeviceOption = None
    dtype: DTypeOption = None
    attn_implementation: Attention = "sdpa"
    quantize: Quantize = None
    as_coded: AsCoded = None
    full_finetune: FullFinetune = False


def one_line_errors() -> AbstractContextManager[None]:
    """Turn errors into one line and exit status 1."""
    return errors_as_lines("Error:")


def _load(checkpoint: str, objective: Objective | None, dtype: DType | None, **options: Any) -> LlavaReward:
    import torch
    import transformers

    from .model import LlavaReward

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return LlavaReward.from_pretrained(
        checkpoint,
        objective=None if objective is None else objective.value,
        dtype=None if dtype is None else getattr(torch, dtype.value),
        **options,
    )


@app.command()
@taking(Loading)
def score(
    loading: Loading,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Score these image files.")],
    prompt: Annotated[
        list[str],
        typer.Option("--prompt", "-p", help="Say what the images are of: once for all of them, or once for each."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Write JSON to this file.", show_default="a table on the terminal")
    ] = None,
    batch_size: BatchSize = 4,
) -> None:
    """Score images for a prompt. Those that cannot be read are reported, and the others scored."""
    from .scoring import failed, pair_files, score_files

    with one_line_errors():
        files = pair_files(images, prompt)
        reward = _load(**vars(loading), batch_size=batch_size)
        results = score_files(reward, files)
    if out is not None:
        _write(out, [asdict(result) for result in results])
    else:
        for result in results:
            if result.reward is not None:
                typer.echo(f"{' '.join(f'{value:.4f}' for value in result.reward)}\t{result.path}")
    _report(failed(results))


@app.command()
@taking(Loading)
def compare(
    loading: Loading,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Compare this image file with the other.")],
    other: Annotated[Path, typer.Argument(metavar="OTHER", help="Compare the first image file with this one.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="Say what the images are of.")],
    other_prompt: Annotated[
        str | None, typer.Option(help="Say what the other image is of.", show_default="the same")
    ] = None,
) -> None:
    """Print the probability that an image is preferred to another, as JSON."""
    from .images import load_image
    from .preference import preference_probability

    with one_line_errors():
        pictures = [load_image(path) for path in (image, other)]
        reward = _load(**vars(loading))
        rewards = reward.embed(pictures, [prompt, prompt if other_prompt is None else other_prompt]).cpu()
        probability = preference_probability(rewards[0], rewards[1], reward.config.tau)
    result = {"probability": probability.item(), "reward": rewards[0].tolist(), "other_reward": rewards[1].tolist()}
    typer.echo(json.dumps(result))


@app.command()
@taking(Loading)
def evaluate_json(
    loading: Loading,
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Read pairs or labelled images from this JSON file, as published.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Write items with their scores, and the summary, to this file.", show_default="none"),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Draw a reliability diagram and the distribution of rewards per prompt into this folder.",
            show_default="none",
        ),
    ] = None,
    image_folder: Annotated[
        Path | None,
        typer.Option(
            help="Look for the images in this folder, under their paths or the ends of these.",
            show_default="the folder of the file, which paths are relative to",
        ),
    ] = None,
    batch_size: BatchSize = 4,
) -> None:
    """Measure accuracy on pairs ({prompt, chosen_path, reject_path}) or labelled images ({prompt, path, label})."""
    from rich.console import Console
    from rich.progress import Progress

    from .attention import check_attention_name
    from .data import read_items
    from .data.places import find_images
    from .report import finite
    from .scoring import evaluate, report_evaluation

    with one_line_errors():
        check_attention_name(loading.attn_implementation)
        items = read_items(data, image_folder)
        if paths := items.paths():
            # Before the model is loaded.
            typer.echo(items.places or find_images(paths, items.folder, by_end=False), err=True)
        reward = _load(**vars(loading), batch_size=batch_size)
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("images", total=None)
            result = evaluate(reward, items, progress=lambda count: bar.advance(task, count))
    if out is not None:
        _write(out, asdict(result))
    if report is not None:
        report_evaluation(report, result)
    typer.echo(json.dumps(finite(result.summary), indent=2))
    _report([item["error"] for item in result.items if "error" in item])


@app.command()
def crops(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Rank these image files, two or more.")],
    checkpoint: Checkpoint,
    prompt: Annotated[
        list[str],
        typer.Option("--prompt", "-p", help="Say what the images are of: once for all of them, or once for each."),
    ],
    num_crops: Annotated[list[int], typer.Option(help="Compare these numbers of crops.")] = [16, 9, 4, 1],  # noqa: B006
    backbone: BackboneOption = None,
    device: DeviceOption = None,
    dtype: DTypeOption = None,
) -> None:
    """Measure what fewer crops cost, and how their ranking of images agrees with that of the most; as JSON."""
    from .cost import crops_agreement
    from .images import load_image
    from .scoring import pair_files

    with one_line_errors():
        files = pair_files(images, prompt)
        pictures = [load_image(path) for path, _ in files]
        reward = _load(checkpoint, None, dtype, backbone=backbone, device=device)
        rows = crops_agreement(reward, pictures, [text for _, text in files], num_crops)
    typer.echo(json.dumps([asdict(row) for row in rows], indent=2))


@app.command()
def bench(
    backbone: Annotated[
        str, typer.Option(help="Build this kind of multimodal LLM: phi3_v, qwen2_5_vl or llava_next.")
    ] = "phi3_v",
    size: Annotated[str, typer.Option(help="Build it at full size, or tiny for a toy.")] = "full",
    num_crops: Annotated[
        list[int], typer.Option(help="Cut an image into at most this many crops; may be repeated.")
    ] = [16, 9, 4, 1],  # noqa: B006
    batch_size: Annotated[list[int], typer.Option(help="Put this many images into a pass; may be repeated.")] = [1, 4],  # noqa: B006
    side: Annotated[int, typer.Option(help="Score square images of this side in pixels.")] = 1024,
    device: Annotated[
        str, typer.Option(callback=usable_device, help="Run on this device: cpu, cuda, cuda:1 or mps.")
    ] = "cpu",
    dtype: Annotated[DType, typer.Option(help="Compute in this precision.")] = DType.float32,
    attn_implementation: Attention = "sdpa",
) -> None:
    """Measure TFLOP per image and images per second with random weights, which needs no download; as JSON."""
    import torch

    from .cost import measure, weight_bytes
    from .untrained import random_reward

    with one_line_errors():
        reward = random_reward(
            backbone, size, device=device, dtype=getattr(torch, dtype.value), attn_implementation=attn_implementation
        )
        rows = measure(reward, num_crops, batch_size, side, side)
    result: dict[str, Any] = {"weights_gib": weight_bytes(reward) / 2**30, "rows": [asdict(row) for row in rows]}
    if device.startswith("cuda"):
        result["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    typer.echo(json.dumps(result, indent=2))


flowing(app)


def _write(path: Path, content: Any) -> None:
    from .report import finite

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(finite(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _report(errors: list[str]) -> None:
    """Say what could not be scored; then the exit code is 2."""
    for error in errors:
        typer.secho(error, err=True, fg=typer.colors.RED)
    if errors:
        raise typer.Exit(2)

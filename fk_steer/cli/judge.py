"""`fk-steer judge ...`."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..console import console
from .options import Device, one_line_errors, reward_options


def judge(
    data: Annotated[
        Path,
        typer.Argument(help="Human judgements: LLaVA-Reward's, MJ-Bench's, GenAI-Bench's, ImageReward's or TIFA160's."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for scores and tables; one for all rewards on the same data.")],
    reward: Annotated[str, typer.Option(help="Reward to test; see `fk-steer rewards`.")] = "clip-score",
    reward_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Option of the reward, for example path=FOLDER.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Name in the table. [default: the reward's]")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the images. [default: that of DATA]")] = None,
    human: Annotated[Path | None, typer.Option(help="TIFA160's human answers (CSV).")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Judgements (pairs, for instance) scored at a time.")] = 16,
    tie_threshold: Annotated[float, typer.Option(min=0.0, help="Rewards that differ by no more are a tie.")] = 0.0,
    temperature: Annotated[float, typer.Option(help="Of the probabilities rounded to bfloat16.")] = 0.1,
    label_threshold: Annotated[float, typer.Option(help="Rewards from here on mean the label 1.")] = 0.0,
    device: Device = None,
) -> None:
    """How well a reward agrees with human judgements.

    Run again it scores what is missing. Rewards tested in the same folder share a table.
    """
    with one_line_errors():
        from ..files import check_settings, is_file_name, record_settings, write_json
        from ..loading import load_guide, quiet_libraries

        quiet_libraries()
        from ..evaluation.judge.agreement import statistics
        from ..evaluation.judge.data import read
        from ..evaluation.judge.scores import check_images, digest, score
        from ..rewards.chat import check_recordable
        from ..rewards.loading import default_device

        if not temperature > 0.0:
            raise ValueError(f"Expected --temperature to be above 0.0, but got {temperature}.")
        label = label or reward
        if not is_file_name(label):
            raise ValueError(f"Expected --label to be usable as the name of a folder, but got {label!r}.")
        options = reward_options(reward_option or [], reward, [reward])
        check_recordable(options)
        content = read(data, human)
        root = images or data.parent
        check_images(content, root)
        shared = {"format": content.format, "sha256": digest(data, human)}
        own = {"reward": reward, "reward_options": options, "images": str(root), "batch_size": batch_size}
        check_settings(out, shared)
        check_settings(out / label, own)

        def load() -> Any:
            made = load_guide(reward, default_device(device), **options)
            record_settings(out, shared)
            record_settings(out / label, own)
            return made

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("judgements", total=len(content.judgements))
            scored = score(content, root, load, out / label, batch_size, lambda done: bar.advance(task, done))
        for path, problem in scored.problems.items():
            console.print(f"[yellow]skipped[/yellow] {path}: {problem}", highlight=False, soft_wrap=True)
        if not scored.judgements:
            raise ValueError("No judgement is left whose images could all be read and scored.")
        values = statistics(
            content.kind,
            scored.judgements,
            scored.scores,
            tie_threshold=tie_threshold,
            temperature=temperature,
            label_threshold=label_threshold,
            relative=scored.relative,
        )
        result = {
            "judgements": len(scored.judgements),
            "skipped": len(content.judgements) - len(scored.judgements),
            "problems": scored.problems,
            "seconds per image": scored.seconds_per_image,
            "tie threshold": tie_threshold,
            "temperature": temperature,
            "label threshold": label_threshold,
            "statistics": {name: {"value": value, "standard error": error} for name, (value, error) in values.items()},
        }
        write_json(out / label / "results.json", result)
        _table(out)


def _table(out: Path) -> None:
    """Write the results of all rewards in a folder as table.csv and table.json, and show them."""
    from ..files import write_atomically, write_json

    results = {path.parent.name: json.loads(path.read_text()) for path in sorted(out.glob("*/results.json"))}
    counts = ("judgements", "skipped")
    names = list(dict.fromkeys(name for result in results.values() for name in result["statistics"]))
    lines = [["reward", *names, *counts, "seconds per image"]]
    for label, result in results.items():
        cells = [_cell(name, result["statistics"].get(name)) for name in names]
        lines.append([label, *cells, *(str(result[name]) for name in counts), f"{result['seconds per image']:.4g}"])
    buffer = io.StringIO()
    csv.writer(buffer).writerows(lines)
    write_atomically(out / "table.csv", buffer.getvalue().encode())
    write_json(out / "table.json", results)
    # On its side: there are more columns than fit a terminal.
    header, *body = zip(*lines)
    shown = Table(*header, box=None)
    for line in body:
        shown.add_row(*line)
    console.print(shown)


def _cell(name: str, statistic: dict[str, float | None] | None) -> str:
    if statistic is None:
        return ""
    value, error = statistic["value"], statistic["standard error"]
    # Thresholds are on the reward's own scale; everything else is in per cent.
    if "threshold" in name:
        return f"{value:.4g}"
    return f"{value:.1f}" if error is None else f"{value:.1f} ± {error:.1f}"

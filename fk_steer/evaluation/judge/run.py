"""A reward as a judge of a data set: what `fk-steer judge` does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava_reward_guide.data.items import HUB_PREFIX, parquet_files

from ...console import console, progress_bar
from ...files import check_settings, is_file_name, record_settings, write_json
from ...loading import load_guide
from ...rewards.chat import check_recordable
from ...rewards.loading import default_device
from ..asked import asked_by, record_asked
from .agreement import of_benchmark, statistics
from .data import read
from .hub import export
from .judgements import JudgeData
from .scores import check_images, check_subject, digest, score
from .table import write_table


def run(
    data: Path,
    out: Path,
    reward: str,
    options: Mapping[str, Any],
    *,
    label: str | None = None,
    images: Path | None = None,
    human: Path | None = None,
    batch_size: int = 16,
    tie_threshold: float = 0.0,
    temperature: float = 0.1,
    label_threshold: float = 0.0,
    device: str | None = None,
) -> None:
    """Score what is missing, write the reward's results and the table of all rewards in the folder, and show it.

    Args:
        data: a file that `read` takes, or 'hf:NAME[/CONFIG][:SPLIT]' or a Parquet file (or a folder of them) with such
            rows, which are written to the folder once, with the images in them.
        out: folder for all rewards on the same data.
        reward, options: see `load_reward`.
        label: name in the table; None for the reward's.
        images: folder of the images; None for that of the data.
        human: TIFA160's human answers.
        batch_size: judgements at a time.
        tie_threshold, temperature, label_threshold: see `statistics`.
        device: None for CUDA if there is a device, else the CPU.

    Raises:
        ValueError: for values out of range, other data or settings than before, or if nothing could be scored.
    """
    if not temperature > 0.0:
        raise ValueError(f"Expected `temperature` to be above 0.0, but got {temperature}.")
    label = label or reward
    if not is_file_name(label):
        raise ValueError(f"Expected `label` to be usable as the name of a folder, but got {label!r}.")
    options = dict(options)
    check_recordable(options)
    if str(data).startswith(HUB_PREFIX) or parquet_files(data):
        source = data if data.is_dir() else data.parent
        data = export(str(data).removeprefix(HUB_PREFIX), out / "data")
        # What rows name, and do not hold, lies beside their file.
        images = images or (source if _lies_in(source, read(data, human)) else None)
    content = read(data, human)
    root = images or data.parent
    check_images(content, root)
    shared = {"format": content.format, "sha256": digest(data, human)}
    own = {"reward": reward, "reward_options": options, "images": str(root), "batch_size": batch_size}
    check_settings(out, shared)
    check_settings(out / label, own)

    def load() -> Any:
        made = load_guide(reward, default_device(device), **options)
        check_subject(made, content.subject)
        record_asked(out / label, asked_by(made))
        record_settings(out, shared)
        record_settings(out / label, own)
        return made

    with progress_bar() as bar:
        task = bar.add_task("judgements", total=len(content.judgements))
        scored = score(content, root, load, out / label, batch_size, lambda done: bar.advance(task, done))
    for path, problem in scored.problems.items():
        console.print(f"[yellow]skipped[/yellow] {path}: {problem}", highlight=False, soft_wrap=True)
    for reason, number in content.left_out.items():
        console.print(f"[yellow]left out[/yellow] {number} that {reason}", highlight=False, soft_wrap=True)
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
    values |= of_benchmark(content, scored.judgements, scored.scores, tie_threshold)
    result = {
        "judgements": len(scored.judgements),
        "skipped": len(content.judgements) - len(scored.judgements),
        "left out": dict(content.left_out),
        "problems": scored.problems,
        "seconds per image": scored.seconds_per_image,
        "tie threshold": tie_threshold,
        "temperature": temperature,
        "label threshold": label_threshold,
        "statistics": {name: {"value": value, "standard error": error} for name, (value, error) in values.items()},
    }
    write_json(out / label / "results.json", result)
    write_table(out)


def _lies_in(folder: Path, content: JudgeData) -> bool:
    return any((folder / path).exists() for judgement in content.judgements for path in judgement.paths)

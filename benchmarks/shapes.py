"""GenEval's six tasks on the bundled world: held-out prompts, exact detection, standard errors.

A folder is the record of a run: a JSON file of records per batch of prompts, written when the batch is done. Running
again does what is missing.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fk_steer.config import FKSteering
from fk_steer.diffusion import steer
from fk_steer.diffusion.steering import SteeredOutput
from fk_steer.files import png, write_atomically, write_json
from fk_steer.rewards.base import RewardFunction
from fk_steer.rewards.images import to_uint8
from fk_steer.shapes.captions import TASKS, evaluation_prompts
from fk_steer.shapes.oracle import judge, score


@dataclass(frozen=True)
class Record:
    """What one prompt with one noise gave.

    Attributes:
        index: of the prompt in `evaluation_prompts`.
        tag: its task.
        prompt: its text.
        seed: of the repeat.
        correct: whether the best image by reward is correct, by GenEval's rules on exact detections.
        share_correct: share of the final particles that are.
        reward: of the best image.
        mean_reward: over the final particles.
        oracle: the exact detector's graded score of the best image.
        nfe: denoiser rows of this prompt.
        reward_calls: images scored for it.
        seconds: wall time, an equal share of its batch.
    """

    index: int
    tag: str
    prompt: str
    seed: int
    correct: bool
    share_correct: float
    reward: float
    mean_reward: float
    oracle: float
    nfe: float
    reward_calls: float
    seconds: float


def run(
    pipe: Any,
    reward: RewardFunction,
    steering: FKSteering,
    *,
    out: Path,
    seeds: Sequence[int],
    per_task: int = 40,
    batch_size: int = 8,
    num_inference_steps: int,
    guidance_scale: float,
    progress: Any = None,
) -> list[Record]:
    """Generate for the held-out prompts, judge, and keep the best images and the records under `out`.

    The noise of a prompt depends on its index and the seed alone: runs with other settings start from the same noise.

    Args:
        per_task: prompts per task, see `evaluation_prompts`.
        batch_size: prompts per call.
        progress: called with the number of prompts done after each batch.
    """
    prompts = evaluation_prompts(per_task)
    records: list[Record] = []
    steered = steer(pipe, reward, steering)
    for seed in seeds:
        for start in range(0, len(prompts), batch_size):
            path = out / "records" / f"{seed:03d}-{start:05d}.json"
            chunk = list(enumerate(prompts))[start : start + batch_size]
            if path.exists():
                done = [Record(**record) for record in json.loads(path.read_text())]
            else:
                generators = [torch.Generator().manual_seed(1_000_003 * seed + index) for index, _ in chunk]
                output = steered(
                    [line["prompt"] for _, line in chunk],
                    generator=generators,
                    num_inference_steps=num_inference_steps,
                    guidance_scale=guidance_scale,
                    output_type="pt",
                )
                done = _judge(output, chunk, seed, out / "images" / f"{seed:03d}")
                write_json(path, [dataclasses.asdict(record) for record in done])
            records += done
            if progress is not None:
                progress(len(done))
    return records


def _judge(output: SteeredOutput, chunk: list[tuple[int, dict[str, Any]]], seed: int, images: Path) -> list[Record]:
    assert output.rewards is not None
    assert output.trace is not None
    pixels = to_uint8(output.images, "cpu")
    assert isinstance(pixels, Tensor)
    pixels = pixels.unflatten(0, output.rewards.shape)
    trace, records = output.trace, []
    for (index, line), particles, rewards in zip(chunk, pixels, output.rewards.tolist()):
        correct = [judge(particle, line["prompt"]).correct for particle in particles]
        write_atomically(images / f"{index:05d}.png", png(Image.fromarray(particles[0].permute(1, 2, 0).numpy())))
        records.append(
            Record(
                index=index,
                tag=line["tag"],
                prompt=line["prompt"],
                seed=seed,
                correct=correct[0],
                share_correct=sum(correct) / len(correct),
                reward=rewards[0],
                mean_reward=sum(rewards) / len(rewards),
                oracle=score(particles[0], line["prompt"]),
                nfe=trace.nfe / len(chunk),
                reward_calls=trace.reward_calls / len(chunk),
                seconds=trace.seconds["total"] / len(chunk),
            )
        )
    return records


def summarize(
    records: Sequence[Record], against: Sequence[Record] | None = None
) -> dict[str, tuple[float, float | None]]:
    """Column -> (mean, standard error) of one run.

    Columns: the tasks' accuracies in %, 'overall' (their unweighted mean, as GenEval has it), 'any' (mean share of
    correct final particles, in %), 'reward', 'oracle', 'nfe', 'reward calls', 'seconds'; with `against`, a run on the
    same prompts and noises, 'gain': the difference in 'overall', standard error of the paired differences.
    """
    columns: dict[str, tuple[float, float | None]] = {}
    for task in TASKS:
        columns[task] = _mean([100.0 * record.correct for record in records if record.tag == task])
    columns["overall"] = _mean_of_means([columns[task] for task in TASKS])
    columns["any"] = _mean([100.0 * record.share_correct for record in records])
    for name in ("reward", "oracle"):
        columns[name] = _mean([getattr(record, name) for record in records])
    for name in ("nfe", "reward_calls", "seconds"):
        columns[name.replace("_", " ")] = (_mean([getattr(record, name) for record in records])[0], None)
    if against is not None:
        other = {(record.index, record.seed): record for record in against}
        pairs = [
            (record, other[record.index, record.seed]) for record in records if (record.index, record.seed) in other
        ]
        columns["gain"] = _mean_of_means(
            [_mean([100.0 * (a.correct - b.correct) for a, b in pairs if a.tag == task]) for task in TASKS]
        )
    return columns


def table(rows: dict[str, dict[str, tuple[float, float | None]]]) -> list[list[str]]:
    """Header and rows of text, 'mean ± standard error' per cell."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [["run", *columns]]
    for name, row in rows.items():
        cells = []
        for column in columns:
            mean, error = row.get(column, (math.nan, None))
            digits = 3 if column in ("reward", "oracle") else 2 if column == "seconds" else 1
            text = "" if math.isnan(mean) else f"{mean:.{digits}f}"
            cells.append(text if error is None or not text else f"{text} ± {error:.{digits}f}")
        lines.append([name, *cells])
    return lines


def markdown(lines: list[list[str]]) -> str:
    """A table as markdown."""
    header, *body = lines
    rule = ["---", *(["---:"] * (len(header) - 1))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *body]) + "\n"


def _mean(values: Sequence[float]) -> tuple[float, float]:
    array = np.asarray(values, dtype=float)
    if not len(array):
        return math.nan, math.nan
    return float(array.mean()), float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else math.nan


def _mean_of_means(means: Sequence[tuple[float, float | None]]) -> tuple[float, float]:
    errors = [error or 0.0 for _, error in means]
    return float(np.mean([mean for mean, _ in means])), math.sqrt(sum(error**2 for error in errors)) / len(means)

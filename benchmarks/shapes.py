"""GenEval's six tasks on the bundled world: held-out prompts, exact detection, standard errors.

A folder is the record of a run: a JSON file of records per batch of prompts, written when the batch is done. Running
again does what is missing.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fk_steer.bundled import bundled_options
from fk_steer.config import FKSteering
from fk_steer.diffusion import steer
from fk_steer.diffusion.steering import SteeredOutput
from fk_steer.files import png, write_atomically, write_json
from fk_steer.loading import load_guide, load_pipeline, quiet_libraries, set_scheduler
from fk_steer.rewards.base import RewardFunction
from fk_steer.rewards.images import to_uint8
from fk_steer.shapes.captions import TASKS, evaluation_prompts
from fk_steer.shapes.oracle import judge, score


SCORES = ("reward", "held_out", "oracle")
"""Fields of `Record` on a reward's own scale."""


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
        held_out: reward of the best image by a judge that never guides.
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
    held_out: float
    oracle: float
    nfe: float
    reward_calls: float
    seconds: float


@dataclass(frozen=True)
class Job:
    """All held-out prompts once.

    Attributes:
        model: name of a bundled pipeline.
        reward: name of the guide; 'clip-score' is the world's CLIP and 'llava-reward' its LLaVA-Reward.
        steering: the settings.
        seed: number of the repeat. The noise of a prompt depends on its index and this seed alone, so that runs with
            other settings start from the same noise.
        out: the best images and the records go here.
        per_task: prompts per task, see `evaluation_prompts`.
        batch_size: prompts per call.
        steps: of the denoising loop.
        guidance: guidance scale.
    """

    model: str
    reward: str
    steering: FKSteering
    seed: int
    out: Path
    per_task: int
    batch_size: int
    steps: int
    guidance: float


def run(job: Job) -> list[Record]:
    """Generate and judge what is missing; what is there is read."""
    prompts = list(enumerate(evaluation_prompts(job.per_task)))
    records: list[Record] = []
    for start in range(0, len(prompts), job.batch_size):
        path = job.out / "records" / f"{job.seed:03d}-{start:05d}.json"
        if path.exists():
            done = [Record(**record) for record in json.loads(path.read_text())]
        else:
            done = _generate(job, prompts[start : start + job.batch_size])
            write_json(path, [dataclasses.asdict(record) for record in done])
        records += done
    return records


def read_records(folder: Path) -> list[Record]:
    """All records of a run's folder.

    Raises:
        ValueError: if there are none.
    """
    paths = sorted((folder / "records").glob("*.json"))
    if not paths:
        raise ValueError(f"Expected the records of a run in '{folder}', but there are none.")
    return [Record(**record) for path in paths for record in json.loads(path.read_text())]


def run_all(jobs: Sequence[Job], processes: int, progress: Callable[[int], None]) -> list[list[Record]]:
    """The records of each job.

    Args:
        processes: jobs at a time; with more than one, each is on one thread.
        progress: called with the number of prompts done after each job.
    """
    results: list[list[Record]] = [[] for _ in jobs]
    if processes == 1:
        for index, job in enumerate(jobs):
            results[index] = run(job)
            progress(len(results[index]))
        return results
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=_start_worker) as executor:
        futures = {executor.submit(run, job): index for index, job in enumerate(jobs)}
        try:
            for future in as_completed(futures):
                results[futures[future]] = future.result()
                progress(len(future.result()))
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise
    return results


def _start_worker() -> None:
    quiet_libraries()
    torch.set_num_threads(1)


@cache
def _loaded(model: str) -> Any:
    pipe = load_pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@cache
def _guide(reward: str, model: str) -> RewardFunction:
    return load_guide(reward, "cpu", **bundled_options(model, reward))


def _generate(job: Job, chunk: list[tuple[int, dict[str, Any]]]) -> list[Record]:
    pipe = _loaded(job.model)
    stock_scheduler = pipe.scheduler
    set_scheduler(pipe, None, job.steering, job.steps)
    try:
        output = steer(pipe, _guide(job.reward, job.model), job.steering)(
            [line["prompt"] for _, line in chunk],
            generator=[torch.Generator().manual_seed(1_000_003 * job.seed + index) for index, _ in chunk],
            num_inference_steps=job.steps,
            guidance_scale=job.guidance,
            output_type="pt",
        )
    finally:
        pipe.scheduler = stock_scheduler
    held_out = _guide("clip-score", "shapes-held-out")
    return _judge(output, chunk, job.seed, held_out, job.out / "images" / f"{job.seed:03d}")


def _judge(
    output: SteeredOutput, chunk: list[tuple[int, dict[str, Any]]], seed: int, held_out: RewardFunction, images: Path
) -> list[Record]:
    assert output.rewards is not None
    assert output.trace is not None
    pixels = to_uint8(output.images, "cpu")
    assert isinstance(pixels, Tensor)
    pixels = pixels.unflatten(0, output.rewards.shape)
    best = output.images.unflatten(0, output.rewards.shape)[:, 0]
    second_opinion = torch.as_tensor(held_out(best, [line["prompt"] for _, line in chunk])).tolist()
    trace, records = output.trace, []
    for (index, line), particles, rewards, opinion in zip(chunk, pixels, output.rewards.tolist(), second_opinion):
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
                held_out=opinion,
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

    Columns: the tasks' accuracies in %, 'overall' (their unweighted mean, as GenEval has it), 'particles' (mean share
    of correct final particles, in %), 'reward', 'held out', 'oracle', 'nfe', 'reward calls', 'seconds'; with `against`,
    a run on the same prompts and noises, 'gain': the difference in 'overall', from the paired differences.

    Standard errors are over prompts, each with its mean over the seeds.
    """
    columns: dict[str, tuple[float, float | None]] = {}
    for task in TASKS:
        columns[task] = mean_over_prompts((r.index, 100.0 * r.correct) for r in records if r.tag == task)
    columns["overall"] = mean_of_means([columns[task] for task in TASKS])
    columns["particles"] = mean_over_prompts((r.index, 100.0 * r.share_correct) for r in records)
    for name in SCORES:
        columns[name.replace("_", " ")] = mean_over_prompts((r.index, getattr(r, name)) for r in records)
    for name in ("nfe", "reward_calls", "seconds"):
        columns[name.replace("_", " ")] = (mean_over_prompts((r.index, getattr(r, name)) for r in records)[0], None)
    if against is not None:
        columns["gain"] = differences(records, against)["overall"]
    return columns


def differences(records: Sequence[Record], others: Sequence[Record]) -> dict[str, tuple[float, float | None]]:
    """Mean and standard error of how a run differs from another on the same prompts and noises, paired.

    Measures: 'overall' in percentage points, 'reward', 'held out' and 'oracle'.
    """
    by_noise = {(r.index, r.seed): r for r in others}
    pairs = [(r, by_noise[r.index, r.seed]) for r in records]
    overall = mean_of_means(
        [
            mean_over_prompts((a.index, 100.0 * (a.correct - b.correct)) for a, b in pairs if a.tag == task)
            for task in TASKS
        ]
    )
    scores = {
        name.replace("_", " "): mean_over_prompts((a.index, getattr(a, name) - getattr(b, name)) for a, b in pairs)
        for name in SCORES
    }
    return {"overall": overall, **scores}


def table(rows: dict[str, dict[str, tuple[float, float | None]]]) -> list[list[str]]:
    """Header and rows of text, 'mean ± standard error' per cell."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [["run", *columns]]
    for name, row in rows.items():
        cells = []
        for column in columns:
            mean, error = row.get(column, (math.nan, None))
            digits = 3 if column.split(" - ")[0].replace(" ", "_") in SCORES else 2 if column == "seconds" else 1
            text = "" if math.isnan(mean) else f"{mean:.{digits}f}"
            cells.append(text if error is None or not text else f"{text} ± {error:.{digits}f}")
        lines.append([name, *cells])
    return lines


def markdown(lines: list[list[str]]) -> str:
    """A table as markdown."""
    header, *body = lines
    rule = ["---", *(["---:"] * (len(header) - 1))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *body]) + "\n"


def mean_over_prompts(values: Iterable[tuple[int, float]]) -> tuple[float, float | None]:
    """Mean of the prompts' means and its standard error, from pairs of a prompt's index and a value. No standard error
    for a single prompt."""
    by_prompt: dict[int, list[float]] = {}
    for index, value in values:
        by_prompt.setdefault(index, []).append(value)
    means = np.array([np.mean(some) for some in by_prompt.values()])
    return float(means.mean()), float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else None


def mean_of_means(means: Sequence[tuple[float, float | None]]) -> tuple[float, float | None]:
    errors = [error for _, error in means if error is not None]
    error = math.hypot(*errors) / len(means) if len(errors) == len(means) else None
    return float(np.mean([mean for mean, _ in means])), error

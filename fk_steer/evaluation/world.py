"""GenEval's six tasks on the bundled world: prompts, exact detection, standard errors.

A folder is the record of a run: a JSON file of records per batch of prompts, written when the batch is done. Running
again does what is missing.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..bundled import BUNDLED, fitted_options
from ..console import progress_bar, show_on_its_side
from ..diffusion import SteeredOutput, steer
from ..files import check_settings, png, record_settings, write_atomically, write_json
from ..loading import load_guide, load_pipeline, quiet_libraries, set_scheduler
from ..rewards.base import RewardFunction
from ..rewards.images import to_uint8
from ..search import FKSteering, Strategy
from ..shapes import GUIDANCE_SCALE, NUM_INFERENCE_STEPS
from ..shapes.captions import TASKS, evaluation_prompts, tuning_prompts
from ..shapes.oracle import judge, score
from ..smc import unknown
from .half import in_half
from .statistics import Estimate, mean_by, mean_of_means, plus_minus


Row = dict[str, Estimate]
"""Column of a table -> mean and standard error."""

SPLITS = {"held-out": evaluation_prompts, "tuning": tuning_prompts}
"""Name of a list of prompts -> what draws so many for each task."""

SCORES = ("reward", "held_out", "oracle")
"""Fields of `Record` on a reward's own scale."""


@dataclass(frozen=True)
class Record:
    """What one prompt with one noise gave.

    Attributes:
        index: of the prompt in its list, see `SPLITS`.
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
    """All prompts once.

    Attributes:
        model: name of a bundled pipeline.
        reward: name of the guide, or of several combined, see `load_guide`; 'clip-score' is the world's CLIP and
            'llava-reward' its LLaVA-Reward.
        steering: the settings.
        seed: number of the repeat. The noise of a prompt depends on its index and this seed alone, so that runs with
            other settings start from the same noise.
        out: the best images and the records go here.
        per_task: prompts per task.
        batch_size: prompts per call.
        steps: of the denoising loop; None leaves them to the settings.
        guidance: guidance scale.
        split: which prompts, see `SPLITS`.
        half: whether denoiser and decoder compute in bfloat16, see `in_half`.
        lora: folder of LoRA weights for the pipeline; None for none.
    """

    model: str
    reward: str
    steering: Strategy
    seed: int
    out: Path
    per_task: int
    batch_size: int
    steps: int | None
    guidance: float
    split: str = "held-out"
    half: bool = False
    lora: str | None = None


def run(job: Job) -> list[Record]:
    """Generate and judge what is missing; what is there is read."""
    prompts = list(enumerate(SPLITS[job.split](job.per_task)))
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
def _loaded(model: str, half: bool, lora: str | None) -> Any:
    pipe = load_pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    if lora is not None:
        pipe.load_lora_weights(lora)
        pipe.fuse_lora()
        pipe.unload_lora_weights()
    return in_half(pipe) if half else pipe


@cache
def _guide(reward: str, model: str) -> RewardFunction:
    return load_guide(reward, "cpu", **fitted_options(model, reward, {}))


@cache
def _held_out() -> RewardFunction:
    """A CLIP that never guides."""
    return load_guide("clip-score", "cpu", path="shapes-held-out")


def _generate(job: Job, chunk: list[tuple[int, dict[str, Any]]]) -> list[Record]:
    pipe = _loaded(job.model, job.half, job.lora)
    own, stock_scheduler = job.steering, pipe.scheduler
    steps: dict[str, Any] = {} if job.steps is None else {"num_inference_steps": job.steps}
    if own.sampler is None:
        set_scheduler(pipe, None, own, job.steps)
    try:
        output = steer(pipe, _guide(job.reward, job.model), own)(
            [line["prompt"] for _, line in chunk],
            generator=[torch.Generator().manual_seed(1_000_003 * job.seed + index) for index, _ in chunk],
            guidance_scale=job.guidance,
            output_type="pt",
            **steps,
        )
    finally:
        pipe.scheduler = stock_scheduler
    return _judge(output, chunk, job.seed, _held_out(), job.out / "images" / f"{job.seed:03d}")


def _judge(
    output: SteeredOutput, chunk: list[tuple[int, dict[str, Any]]], seed: int, held_out: RewardFunction, images: Path
) -> list[Record]:
    assert output.rewards is not None
    assert output.trace is not None
    pixels = to_uint8(output.particles.flatten(0, 1), "cpu")
    assert isinstance(pixels, Tensor)
    pixels = pixels.unflatten(0, output.rewards.shape)
    second_opinion = torch.as_tensor(held_out(output.images, [line["prompt"] for _, line in chunk])).tolist()
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


def summarize(records: Sequence[Record], against: Sequence[Record] | None = None) -> Row:
    """Column -> (mean, standard error) of one run.

    Columns: the tasks' accuracies in %, 'overall' (their unweighted mean, as GenEval has it), 'particles' (mean share
    of correct final particles, in %), 'any particle' (as 'overall', if the exact detector chose among the final
    particles), 'reward', 'held out', 'oracle', 'nfe', 'reward calls', 'seconds'; with `against`,
    a run on the same prompts and noises, 'gain': the difference in 'overall', from the paired differences.

    Standard errors are over prompts, each with its mean over the seeds.
    """
    columns: Row = {}
    for task in TASKS:
        columns[task] = mean_by((r.index, 100.0 * r.correct) for r in records if r.tag == task)
    columns["overall"] = mean_of_means([columns[task] for task in TASKS])
    columns["particles"] = mean_by((r.index, 100.0 * r.share_correct) for r in records)
    columns["any particle"] = mean_of_means(
        [mean_by((r.index, 100.0 * (r.share_correct > 0)) for r in records if r.tag == task) for task in TASKS]
    )
    for name in SCORES:
        columns[name.replace("_", " ")] = mean_by((r.index, getattr(r, name)) for r in records)
    for name in ("nfe", "reward_calls", "seconds"):
        columns[name.replace("_", " ")] = (mean_by((r.index, getattr(r, name)) for r in records)[0], None)
    if against is not None:
        columns["gain"] = differences(records, against)["overall"]
    return columns


def differences(records: Sequence[Record], others: Sequence[Record]) -> Row:
    """Mean and standard error of how a run differs from another on the same prompts and noises, paired.

    Measures: 'overall' in percentage points, 'reward', 'held out' and 'oracle'.
    """
    by_noise = {(r.index, r.seed): r for r in others}
    pairs = [(r, by_noise[r.index, r.seed]) for r in records]
    overall = mean_of_means(
        [mean_by((a.index, 100.0 * (a.correct - b.correct)) for a, b in pairs if a.tag == task) for task in TASKS]
    )
    scores = {
        name.replace("_", " "): mean_by((a.index, getattr(a, name) - getattr(b, name)) for a, b in pairs)
        for name in SCORES
    }
    return {"overall": overall, **scores}


def table(rows: Mapping[str, Row], scores: Collection[str] = SCORES) -> list[list[str]]:
    """Header and rows of text, 'mean ± standard error' per cell.

    Args:
        scores: columns on a reward's own scale.
    """
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [["run", *columns]]
    for name, row in rows.items():
        cells = []
        for column in columns:
            digits = 3 if column.split(" - ")[0].replace(" ", "_") in scores else 2 if column == "seconds" else 1
            cells.append(plus_minus(row[column], f".{digits}f") if column in row else "")
        lines.append([name, *cells])
    return lines


def markdown(lines: list[list[str]]) -> str:
    """A table as markdown."""
    header, *body = ([cell.replace("|", r"\|") for cell in line] for line in lines)
    rule = ["---", *(["---:"] * (len(header) - 1))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *body]) + "\n"


def setup_of(
    model: str,
    reward: str,
    per_task: int,
    steps: int | None,
    guidance: float | None,
    split: str = "held-out",
    half: bool = False,
) -> dict[str, Any]:
    """What all runs of a benchmark share."""
    if model not in BUNDLED:
        raise unknown("bundled model", model, BUNDLED)
    return {
        "model": model,
        "reward": reward,
        "per_task": per_task,
        "steps": steps or NUM_INFERENCE_STEPS,
        "guidance": GUIDANCE_SCALE if guidance is None else guidance,
        "split": split,
        "half": half,
    }


def measure_all(
    steerings: Mapping[str, Strategy], setup: dict[str, Any], out: Path, seeds: int, batch_size: int, processes: int
) -> dict[str, list[Record]]:
    """Records of each run, over all seeds; folders in `out` keep them, see `folder_of`."""
    folders = {name: folder_of(out, name, steering) for name, steering in steerings.items()}
    # Names may share a folder.
    jobs: dict[tuple[Path, int], Job] = {}
    for name, folder in folders.items():
        settings = {**setup, "steering": steerings[name].to_dict()}
        check_settings(folder, settings)
        record_settings(folder, settings)
        for seed in range(seeds):
            jobs[folder, seed] = Job(steering=steerings[name], seed=seed, out=folder, batch_size=batch_size, **setup)
    with progress_bar() as bar:
        task = bar.add_task("prompts", total=len(jobs) * 6 * setup["per_task"])
        results = dict(zip(jobs, run_all(list(jobs.values()), processes, lambda done: bar.advance(task, done))))
    return {
        name: [record for seed in range(seeds) for record in results[folder, seed]] for name, folder in folders.items()
    }


def folder_of(out: Path, name: str, steering: Strategy) -> Path:
    """Where the records of a run are kept, by preset and number of particles, or by preset, budget and what fixes how
    it is spent."""
    if steering.calls is None:
        return out / f"{preset_name(name)}-{steering.num_particles}"
    fixed = [str(value) for value in (steering.steps, steering.sampler) if value is not None]
    return out / "-".join([preset_name(name), f"{steering.calls}calls", *fixed])


def write_table(path: Path, rows: Mapping[str, Row], scores: Collection[str] = SCORES) -> None:
    """Write the rows as PATH.json and PATH.md, and show them.

    Args:
        scores: see `table`.
    """
    lines = table(rows, scores)
    write_json(path.with_suffix(".json"), rows)
    write_atomically(path.with_suffix(".md"), markdown(lines).encode())
    show_on_its_side(lines)


def preset_name(name: str) -> str:
    """'fk' of 'fk', 'fk:8' and 'fk@4'."""
    return re.split("[:@,]", name)[0]


def sized(name: str, num_steps: int, **overrides: Any) -> FKSteering:
    """A preset by name, with its particles or its budget in whole loops: 'fk', 'fk:8', 'psp@4'."""
    count, budget = (re.search(f"{mark}([^:@]+)", name) for mark in ":@")
    if count:
        overrides["num_particles"] = int(count[1])
    overrides = {field: value for field, value in overrides.items() if value is not None}
    steering = FKSteering.preset(preset_name(name), **overrides)
    return steering.within(int(float(budget[1]) * num_steps + 1e-9)).resolved(num_steps) if budget else steering

"""Which reward should choose among the images of a prompt: a stored tensor of rewards, on which selectors are compared.

For every prompt a pool of images from as many seeds is generated once and scored by every bundled reward, by the exact
detector and by a judge that never guides. Best-of-n by any selector is then its mean over all subsets of n of the pool,
without running a model again.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from fk_steer.bundled import bundled_options
from fk_steer.cli.options import Model, PerTask, one_line_errors
from fk_steer.console import progress_bar
from fk_steer.diffusion import steer
from fk_steer.evaluation.statistics import Estimate, clustered_mean, mean_of_means
from fk_steer.evaluation.world import Row, write_table
from fk_steer.files import check_settings, record_settings, write_json
from fk_steer.loading import load_guide, load_pipeline, quiet_libraries, set_scheduler
from fk_steer.rewards import Ensemble, Finalists, GeneralPreferenceReward, Majority, Reward
from fk_steer.rewards.base import RewardFunction
from fk_steer.rewards.general_preference import preference_scores
from fk_steer.rewards.images import to_uint8
from fk_steer.search import preset
from fk_steer.shapes import GUIDANCE_SCALE
from fk_steer.shapes.captions import TASKS, evaluation_prompts, parse, sample_pair
from fk_steer.shapes.oracle import judge, score


PERSPECTIVES = ("alignment", "fidelity", "overall")
GUIDE = "clip"
SCHEDULER = "DPMSolverMultistepScheduler"


class Split(str, Enum):
    tuning = "tuning"
    held_out = "held-out"


def tuning_prompts(per_task: int) -> list[dict[str, Any]]:
    """Captions of the training sampler as GenEval metadata, `per_task` for each task in the order of `TASKS`; none of
    their combinations is held out. A task with fewer captions repeats them. The list is always the same."""
    rng = np.random.default_rng(20)
    found: dict[str, dict[str, dict[str, Any]]] = {task: {} for task in TASKS}
    for _ in range(400 * per_task):
        line = parse(sample_pair(rng)[1])
        found[line["tag"]].setdefault(line["prompt"], line)
    lines = {task: list(some.values()) for task, some in found.items()}
    return [lines[task][index % len(lines[task])] for task in TASKS for index in range(per_task)]


def rewards_of(model: str) -> dict[str, RewardFunction]:
    """The bundled rewards that may choose, by the names that selectors use."""
    found = {
        GUIDE: load_guide("clip-score", "cpu", **bundled_options(model, "clip-score")),
        "image-reward": load_guide("image-reward", "cpu", **bundled_options(model, "image-reward")),
    }
    for perspective in PERSPECTIVES:
        for objective, ending in ((None, ""), ("general-preference", "-gpm")):
            options = {"perspective": perspective, "batch_size": 64} | ({"objective": objective} if objective else {})
            found[f"llava-{perspective}{ending}"] = load_guide(
                "llava-reward", "cpu", **bundled_options(model, "llava-reward"), **options
            )
    return found


def generate(
    model: str, lines: Sequence[dict[str, Any]], out: Path, seeds: int, steps: int, per_call: int
) -> dict[str, Tensor]:
    """The stored tensor: what is missing is generated and scored, what is there is read.

    Returns:
        Of P prompts with pools of N images: (P, N) of each reward, 'correct', 'oracle' and 'held out'; of rewards that
        compare, (P, N, N) log-odds of an image against another.
    """
    missing = [path for path, _ in _chunks(lines, out, per_call) if not path.exists()]
    if missing:
        quiet_libraries()
        pipe, rewards = load_pipeline(model), rewards_of(model)
        pipe.set_progress_bar_config(disable=True)
        held_out = load_guide("clip-score", "cpu", path="shapes-held-out")
        steering = preset("best-of-n", num_particles=seeds)
        set_scheduler(pipe, SCHEDULER, steering)
        with progress_bar() as bar:
            task = bar.add_task("prompts", total=len(missing) * per_call)
            for path, start in _chunks(lines, out, per_call):
                if path in missing:
                    texts = [line["prompt"] for line in lines[start : start + per_call]]
                    images = steer(pipe, rewards[GUIDE], steering)(
                        texts,
                        generator=[torch.Generator().manual_seed(start + index) for index in range(len(texts))],
                        num_inference_steps=steps,
                        guidance_scale=GUIDANCE_SCALE,
                        output_type="pt",
                    ).particles
                    write_json(path, {n: v.tolist() for n, v in measured(images, texts, rewards, held_out).items()})
                    bar.advance(task, per_call)
    parts = [json.loads(path.read_text()) for path, _ in _chunks(lines, out, per_call)]
    return {name: torch.cat([torch.tensor(part[name], dtype=torch.float64) for part in parts]) for name in parts[0]}


def _chunks(lines: Sequence[Any], out: Path, per_call: int) -> list[tuple[Path, int]]:
    return [(out / "rewards" / f"{start:05d}.json", start) for start in range(0, len(lines), per_call)]


@torch.no_grad()
def measured(
    images: Tensor, texts: Sequence[str], rewards: Mapping[str, RewardFunction], held_out: RewardFunction
) -> dict[str, Tensor]:
    """What `generate` returns, of images (P, N, 3, H, W)."""
    P, N = images.shape[:2]
    flat, prompts = images.flatten(0, 1), [text for text in texts for _ in range(N)]
    found: dict[str, Tensor] = {}
    for name, reward in {**rewards, "held out": held_out}.items():
        if isinstance(reward, GeneralPreferenceReward):
            embeddings = torch.stack(list(reward.encode(flat, prompts))).view(P, N, -1)
            found[name] = torch.stack([preference_scores(some, some) / reward.temperature for some in embeddings])
        else:
            found[name] = torch.as_tensor(reward(flat, prompts)).double().view(P, N)
    pixels = to_uint8(flat, "cpu")
    found["correct"] = torch.tensor([float(judge(one, text).correct) for one, text in zip(pixels, prompts)]).view(P, N)
    found["oracle"] = torch.tensor([score(one, text) for one, text in zip(pixels, prompts)]).view(P, N)
    return found


# Selectors, on the stored tensor.


class Stored(Reward):
    """A reward whose scores are there already."""

    def __init__(self, name: str) -> None:
        self.name = name


Make = Callable[[Mapping[str, Reward]], Reward]
"""A selector of the stored rewards by name."""

SETS: dict[str, tuple[str, ...]] = {
    "clip, image-reward": (GUIDE, "image-reward"),
    "clip, alignment": (GUIDE, "llava-alignment"),
    "clip, alignment-gpm": (GUIDE, "llava-alignment-gpm"),
    "clip, overall": (GUIDE, "llava-overall"),
    "image-reward, alignment": ("image-reward", "llava-alignment"),
    "clip, image-reward, alignment": (GUIDE, "image-reward", "llava-alignment"),
    "clip, image-reward, alignment-gpm": (GUIDE, "image-reward", "llava-alignment-gpm"),
    "clip, image-reward, alignment, alignment-gpm": (
        GUIDE, "image-reward", "llava-alignment", "llava-alignment-gpm",
    ),
    "clip, image-reward, alignment, overall": (GUIDE, "image-reward", "llava-alignment", "llava-overall"),
    "all but fidelity": (
        GUIDE, "image-reward", "llava-alignment", "llava-alignment-gpm", "llava-overall", "llava-overall-gpm",
    ),
    "all": (
        GUIDE, "image-reward", *(f"llava-{name}{end}" for name in PERSPECTIVES for end in ("", "-gpm")),
    ),
}  # fmt: skip
"""Rewards that are averaged."""
KAPPAS = (0.0, 0.5, 1.0)
BEST = "clip, image-reward, alignment"
"""The set that finalists are judged by."""


def selectors(names: Sequence[str]) -> dict[str, Make]:
    """All that are compared, by what a table calls them."""

    def of(parts: Sequence[str], kappa: float) -> Make:
        return lambda stored: Ensemble([stored[part] for part in parts], kappa)

    def majority(parts: Sequence[str]) -> Make:
        return lambda stored: Majority([stored[part] for part in parts])

    def finalists(parts: Sequence[str], keep: int) -> Make:
        return lambda stored: Finalists(stored[GUIDE], Ensemble([stored[part] for part in parts]), keep)

    def alone(name: str) -> Make:
        return lambda stored: stored[name]

    found = {name: alone(name) for name in names}
    for title, parts in SETS.items():
        for kappa in KAPPAS:
            found[f"mean of {title}" + (f" - {kappa:g} sd" if kappa else "")] = of(parts, kappa)
        found[f"majority of {title}"] = majority(parts)
    for keep in (2, 3):
        found[f"best {keep} of clip by alignment"] = finalists(["llava-alignment"], keep)
        found[f"best {keep} of clip by mean of {BEST}"] = finalists(SETS[BEST], keep)
    return found


def scores_of_subsets(stored: Mapping[str, Tensor], n: int) -> dict[str, Tensor]:
    """Everything stored (P, N) as (P, S, n), for the S subsets of n of the N images of a prompt; of rewards
    that compare, the mean probability of winning against the others of the subset."""
    N = stored["correct"].shape[1]
    subsets = torch.tensor(list(itertools.combinations(range(N), n)))
    found = {}
    for name, values in stored.items():
        if values.ndim == 3:
            outcomes = values[:, subsets[:, :, None], subsets[:, None, :]].sigmoid()
            found[name] = (outcomes.sum(3) - 0.5) / max(n - 1, 1)
        else:
            found[name] = values[:, subsets]
    return found


def compare(stored: Mapping[str, Tensor], lines: Sequence[Mapping[str, Any]], n: int) -> dict[str, Row]:
    """Best-of-n by every selector, each prompt with its mean over all subsets of n of its pool.

    Columns: the tasks' accuracies in %, 'overall' (their unweighted mean), 'gain': the difference to the guide's in
    percentage points, paired by prompt; 'of the way': the gain over that of the oracle, in %; 'reward' (the guide's),
    'held out' and 'oracle' of the images chosen.
    """
    subsets = scores_of_subsets(stored, n)
    P, S, _ = subsets["correct"].shape
    names = [name for name in stored if name not in ("correct", "oracle", "held out")]
    leaves: dict[str, Reward] = {name: Stored(name) for name in names}
    scores = {leaves[name]: subsets[name].flatten(0, 1) for name in names}
    makers = selectors(names)
    ways = {name: make(leaves).combine(scores).argmax(1).view(P, S, 1) for name, make in makers.items()}
    ways["oracle"] = subsets["oracle"].argmax(2, keepdim=True)

    chosen = {
        way: {name: subsets[name].gather(2, best).mean((1, 2)) for name in ("correct", "oracle", "held out", GUIDE)}
        for way, best in ways.items()
    }
    chosen["any"] = {name: subsets[name].mean((1, 2)) for name in ("correct", "oracle", "held out", GUIDE)}
    full = _overall(100 * (chosen["oracle"]["correct"] - chosen[GUIDE]["correct"]), lines)[0]
    rows: dict[str, Row] = {}
    for way, values in chosen.items():
        correct = 100 * values["correct"]
        row: Row = {task: clustered_mean([[v] for v in some]) for task, some in _by_task(correct, lines).items()}
        row["overall"] = _overall(correct, lines)
        row["gain"] = gain = _overall(correct - 100 * chosen[GUIDE]["correct"], lines)
        row["of the way"] = (100 * gain[0] / full if full else 0.0, None)
        for column, name in (("reward", GUIDE), ("held out", "held out"), ("oracle", "oracle")):
            row[column] = clustered_mean([[value] for value in values[name].tolist()])
        rows[way] = row
    return dict(sorted(rows.items(), key=lambda item: -item[1]["overall"][0]))


def _by_task(values: Tensor, lines: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {task: [] for task in TASKS}
    for value, line in zip(values.tolist(), lines):
        found[line["tag"]].append(value)
    return {task: some for task, some in found.items() if some}


def _overall(values: Tensor, lines: Sequence[Mapping[str, Any]]) -> Estimate:
    return mean_of_means([clustered_mean([[v] for v in some]) for some in _by_task(values, lines).values()])


app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Write rewards and tables to this folder.")],
    split: Annotated[
        Split, typer.Option(help="Take prompts for choosing a selector, or those that confirm it.")
    ] = Split.tuning,
    model: Model = "shapes",
    per_task: PerTask = 20,
    seeds: Annotated[int, typer.Option(min=2, help="Make this many images of each prompt to choose from.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Take this many steps of DPM-Solver++.")] = 10,
    number: Annotated[
        list[int] | None, typer.Option(help="Choose the best of this many images.", show_default="4 and 8")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Put this many prompts into one call of the pipeline.")] = 10,
) -> None:
    """Choose the best of n by every selector, beside the guide's own choice and the oracle's."""
    with one_line_errors():
        lines = tuning_prompts(per_task) if split is Split.tuning else evaluation_prompts(per_task)
        folder = out / split.value
        setup = {"model": model, "per_task": per_task, "seeds": seeds, "steps": steps, "batch_size": batch_size}
        check_settings(folder, setup)
        record_settings(folder, setup)
        stored = generate(model, lines, folder, seeds, steps, batch_size)
        for n in number or [4, 8]:
            if n > seeds:
                raise ValueError(f"Expected --number of at most the {seeds} images of a pool, but got {n}.")
            write_table(out / f"{split.value}-{n}", compare(stored, lines, n))


if __name__ == "__main__":
    app()

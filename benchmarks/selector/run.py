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
from fk_steer.console import progress_bar, show_on_its_side
from fk_steer.diffusion import steer
from fk_steer.evaluation.statistics import Estimate, clustered_mean, mean_of_means
from fk_steer.evaluation.world import Row, markdown, table
from fk_steer.files import check_settings, record_settings, write_atomically, write_json
from fk_steer.loading import load_guide, load_pipeline, quiet_libraries, set_scheduler
from fk_steer.rewards import Ensemble, Finalists, GeneralPreferenceReward, Reward, WeightedSum, ZScoreSum
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

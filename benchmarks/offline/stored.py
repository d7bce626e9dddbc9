"""Rewards along full loops and of few-step images, every seed of every prompt run once and stored.

Notation: P prompts with pools of S seeds, a loop of T steps, L loops of which the first is the full one; R times a rule
is given the seeds of each pool in another order, of which it takes the first.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from fk_steer.bundled import bundled_options
from fk_steer.console import progress_bar
from fk_steer.diffusion import SteeredOutput, steer
from fk_steer.diffusion.interception import intercept
from fk_steer.evaluation.half import in_half
from fk_steer.files import write_atomically
from fk_steer.loading import load_guide, load_pipeline
from fk_steer.rewards.base import RewardFunction
from fk_steer.rewards.images import to_uint8
from fk_steer.search import FKSteering, Look, Noise, Plan, Strategy
from fk_steer.shapes.captions import TASKS
from fk_steer.shapes.oracle import judge, score
from fk_steer.smc import Schedule


MEASURES = ("reward", "held out", "oracle", "correct")
"""Of a final image: the guide's reward, that of a judge that never guides, the exact detector's graded score, and
whether it is correct."""

FULL = 0
"""The loop of all steps among those stored."""

SAMPLERS = {"full": "ddim", "few": "dpmsolver++"}


@dataclass(frozen=True)
class Watching(Strategy):
    """Looks at every step, and lets everyone go on."""

    def events(self, num_steps: int) -> Collection[int]:
        return range(num_steps)

    def copying(self, num_steps: int) -> list[int]:
        return []

    def step(self, look: Look) -> Plan:
        return Plan(look.everyone)


@dataclass(frozen=True)
class Stored:
    """The rewards of S seeds for each of P prompts.

    Attributes:
        tags: P tasks.
        predictions: (P, S, T) float64, the guide's rewards of the full loop's x0 predictions.
        finals: measure -> (L, P, S) float64, of the final images of each loop.
        steps: L numbers of steps, those of the full loop first.
        rows: L denoiser rows that an image takes.
    """

    tags: Sequence[str]
    predictions: Tensor
    finals: Mapping[str, Tensor]
    steps: Sequence[int]
    rows: Sequence[int]

    @property
    def num_seeds(self) -> int:
        return self.predictions.shape[1]

    @property
    def rewards(self) -> Tensor:
        """(L, P, S), by which images are chosen."""
        return self.finals["reward"]


def looked_at(
    pipe: Any,
    guide: RewardFunction,
    held_out: RewardFunction,
    texts: Sequence[str],
    numbers: Sequence[int],
    seeds: int,
    steps: int,
    few_steps: Sequence[int],
    guidance: float,
) -> dict[str, Any]:
    """The entries of `Stored` for some prompts.

    Args:
        texts: the prompts.
        numbers: of the prompts, which decide their noise.

    Raises:
        ValueError: if the pipeline does not begin all loops with the same noise.
    """
    full = Watching(seeds, noise=Noise(eta=0.0), steps=steps, sampler=SAMPLERS["full"])
    few = FKSteering(seeds, schedule=Schedule(), noise=Noise(eta=0.0), sampler=SAMPLERS["few"])
    loops: list[Strategy] = [full, *(few.replace(steps=number) for number in few_steps)]
    finals, rows, predictions, first = [], [], torch.empty(0), None
    for loop in loops:
        with noise_of(pipe) as noises:
            output = steer(pipe, guide, loop)(
                list(texts),
                generator=[torch.Generator().manual_seed(number) for number in numbers],
                guidance_scale=guidance,
                output_type="pt",
            )
        noise = noises[-1]
        if first is None:
            first, predictions = noise, predictions_of(output)
        elif not torch.equal(first, noise):
            raise ValueError(f"A loop of {loop.steps} steps begins with other noise than that of {steps}.")
        finals.append(measured(output, texts, held_out))
        rows.append(rows_per_image(output))
    return {
        "predictions": predictions,
        "finals": {name: torch.stack([one[name] for one in finals]) for name in MEASURES},
        "rows": rows,
    }


@contextmanager
def noise_of(pipe: Any) -> Iterator[list[Tensor]]:
    """While the context lasts, the initial latents of the pipeline's calls are collected."""
    found: list[Tensor] = []

    def collect(inner: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def prepare(*args: Any, **kwargs: Any) -> Tensor:
            found.append(inner(*args, **kwargs))
            return found[-1]

        return prepare

    with intercept(pipe, "prepare_latents", collect):
        yield found


def predictions_of(output: SteeredOutput) -> Tensor:
    """(P, S, T): rewards at all events but the last, which is of the final images, by seed."""
    assert output.trace is not None
    found = []
    for event in output.trace.events[:-1]:
        rewards, slots = torch.tensor(event.rewards, dtype=torch.float64), torch.tensor(event.slots_before)
        found.append(torch.empty_like(rewards).scatter_(1, slots, rewards))
    return torch.stack(found, dim=2)


def measured(output: SteeredOutput, texts: Sequence[str], held_out: RewardFunction) -> dict[str, Tensor]:
    """Measure -> (P, S) float64 of the final images, by seed."""
    assert output.trace is not None
    last = output.trace.events[-1]
    rewards, slots = torch.tensor(last.rewards, dtype=torch.float64), torch.tensor(last.slots_before)
    P, S = rewards.shape
    # Images come best first.
    seeds = slots.gather(1, rewards.argsort(dim=1, descending=True, stable=True))
    images = output.particles[torch.arange(P)[:, None], seeds.argsort(dim=1)].flatten(0, 1)
    prompts = [text for text in texts for _ in range(S)]
    pixels = to_uint8(images, "cpu")
    assert isinstance(pixels, Tensor)
    found = {
        "held out": torch.as_tensor(held_out(images, prompts)),
        "oracle": torch.tensor([score(one, text) for one, text in zip(pixels, prompts)]),
        "correct": torch.tensor([judge(one, text).correct for one, text in zip(pixels, prompts)]),
    }
    return {
        "reward": torch.empty_like(rewards).scatter_(1, slots, rewards),
        **{name: values.double().view(P, S) for name, values in found.items()},
    }


def rows_per_image(output: SteeredOutput) -> int:
    """Denoiser rows of one image where all were made alike."""
    assert output.trace is not None and output.rewards is not None
    rows, rest = divmod(output.trace.nfe, output.rewards.numel())
    assert rest == 0
    return rows


def generate(setup: Mapping[str, Any], lines: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write a file of rewards for each batch of prompts that has none."""
    batches = [(path, start) for path, start in parts_of(setup, folder) if not path.exists()]
    if not batches:
        return
    pipe = load_pipeline(setup["model"])
    pipe.set_progress_bar_config(disable=True)
    if setup["half"]:
        pipe = in_half(pipe)
    guide = load_guide(setup["reward"], "cpu", **bundled_options(setup["model"], setup["reward"]))
    held_out = load_guide("clip-score", "cpu", path="shapes-held-out")
    with progress_bar() as bar:
        task = bar.add_task("prompts", total=len(batches) * setup["batch_size"])
        for path, start in batches:
            some = lines[start : start + setup["batch_size"]]
            found = looked_at(
                pipe,
                guide,
                held_out,
                [line["prompt"] for line in some],
                range(start, start + len(some)),
                setup["seeds"],
                setup["steps"],
                setup["few_steps"],
                setup["guidance"],
            )
            buffer = io.BytesIO()
            torch.save({"tags": [line["tag"] for line in some], **found}, buffer)
            write_atomically(path, buffer.getvalue())
            bar.advance(task, len(some))


def parts_of(setup: Mapping[str, Any], folder: Path) -> list[tuple[Path, int]]:
    """The file of each batch of prompts, and the number of its first."""
    total = len(TASKS) * setup["per_task"]
    return [(folder / "rewards" / f"{start:05d}.pt", start) for start in range(0, total, setup["batch_size"])]


def read_stored(folder: Path) -> Stored:
    """What `store` has written.

    Raises:
        ValueError: if something is missing or cannot be read.
    """
    record = folder / "settings.json"
    if not record.exists():
        raise ValueError(f"Expected stored rewards in '{folder}', but there are none. Run `store` first.")
    setup = json.loads(record.read_text())
    paths = [path for path, _ in parts_of(setup, folder)]
    if missing := [path for path in paths if not path.exists()]:
        raise ValueError(
            f"{len(missing)} of {len(paths)} files of rewards are missing in '{folder}', such as {missing[0].name}. "
            "Run `store` again with the same options, which makes what is missing."
        )
    parts = []
    for path in paths:
        try:
            parts.append(torch.load(path, map_location="cpu", weights_only=True))
        except (RuntimeError, EOFError, UnpicklingError) as error:
            raise ValueError(f"'{path}' cannot be read. Delete it and run `store` again. ({error})") from error
    return Stored(
        tags=[tag for part in parts for tag in part["tags"]],
        predictions=torch.cat([part["predictions"] for part in parts]),
        finals={name: torch.cat([part["finals"][name] for part in parts], dim=1) for name in MEASURES},
        steps=[setup["steps"], *setup["few_steps"]],
        rows=parts[0]["rows"],
    )

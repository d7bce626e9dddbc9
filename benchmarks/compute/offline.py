"""Search rules tried on stored rewards, before any of them is run.

`store` runs every seed of every prompt once: a full deterministic loop with the guide's reward of the x0 prediction at
each step, and whole solves of few steps from the same noise. `simulate` is then told by rules, which are functions on
these tensors, what they would have chosen and what that would have cost; it runs no model.

Notation: P prompts with pools of S seeds, a loop of T steps, L loops of which the first is the full one; R times a rule
is given the seeds of each pool in another order, of which it takes the first.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, Any

import torch
import typer
from scipy.stats import rankdata
from torch import Tensor

from fk_steer.bundled import bundled_options
from fk_steer.cli.options import BatchSize, Guidance, Guide, Model, PerTask, one_line_errors
from fk_steer.console import progress_bar
from fk_steer.diffusion import SteeredOutput, steer
from fk_steer.diffusion.interception import intercept
from fk_steer.evaluation.half import in_half
from fk_steer.evaluation.statistics import mean_by, mean_of_means
from fk_steer.evaluation.world import SPLITS, Row, setup_of, write_table
from fk_steer.files import check_settings, record_settings, write_atomically
from fk_steer.loading import load_guide, load_pipeline, quiet_libraries
from fk_steer.rewards.base import RewardFunction
from fk_steer.rewards.images import to_uint8
from fk_steer.search import FKSteering, Look, Noise, Pass, Plan, Strategy
from fk_steer.search.improvement import Seen, allocate
from fk_steer.shapes.captions import TASKS
from fk_steer.shapes.oracle import judge, score
from fk_steer.smc import Schedule


MEASURES = ("reward", "held out", "oracle", "correct")
"""Of a final image: the guide's reward, that of a judge that never guides, the exact detector's graded score, and
whether it is correct."""

FULL = 0
"""The loop of all steps among those stored."""

SAMPLERS = {"full": "ddim", "few": "dpmsolver++"}


# What is stored.


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


# Rules.


@dataclass(frozen=True)
class Chosen:
    """What a rule takes, R times for each prompt.

    Attributes:
        loop: (P, R) which loop made the image.
        seed: (P, R) of which seed.
        rows: (P, R) float64, denoiser rows spent.
    """

    loop: Tensor
    seed: Tensor
    rows: Tensor

    @classmethod
    def of(cls, loop: int, seed: Tensor, rows: float | Tensor) -> Chosen:
        """Images of one loop; seeds (P, R)."""
        return cls(torch.full_like(seed, loop), seed, torch.as_tensor(rows, dtype=torch.float64).expand(seed.shape))


Rule = Callable[[Stored, Tensor], Chosen]
"""What a rule chooses, given (P, R, S) the seeds of each pool in the order in which it may take them."""


def at(values: Tensor, seeds: Tensor) -> Tensor:
    """(P, R, n): of values (P, S) those of seeds (P, R, n)."""
    return values[:, None].expand(-1, seeds.shape[1], -1).gather(2, seeds)


def best_among(values: Tensor, seeds: Tensor, number: int) -> Tensor:
    """(P, R, number): the seeds of highest value, best first; ties go to the earlier one.

    Args:
        values: (P, S).
        seeds: (P, R, n).
    """
    order = at(values, seeds).argsort(dim=2, descending=True, stable=True)
    return seeds.gather(2, order[:, :, :number])


def best_of(stored: Stored, pools: Tensor, number: int, loop: int = FULL) -> Chosen:
    """The best of `number` images of one loop."""
    seeds = best_among(stored.rewards[loop], pools[:, :, :number], 1)[:, :, 0]
    return Chosen.of(loop, seeds, number * stored.rows[loop])


def prune(stored: Stored, pools: Tensor, number: int, schedule: Schedule) -> Chosen:
    """Of `number` seeds the full loop keeps those of the best x0 predictions, as the schedule says (PSP, arXiv
    2607.21591)."""
    T = stored.steps[FULL]
    seeds, rows, done = pools[:, :, :number], 0.0, 0
    for step, alive in schedule.events(T, number).items():
        rows += seeds.shape[2] * (step + 1 - done)
        done = step + 1
        seeds = best_among(stored.predictions[:, :, step], seeds, alive)
    rows += seeds.shape[2] * (T - done)
    best = best_among(stored.rewards[FULL], seeds, 1)[:, :, 0]
    return Chosen.of(FULL, best, rows * stored.rows[FULL] / T)


def screen(stored: Stored, pools: Tensor, number: int, loop: int, keep: int) -> Chosen:
    """Few steps for `number` seeds, all steps for the best `keep` of them; the best of all these images, the full one
    where they are equal (see `fk_steer.search.Screen`)."""
    seeds = best_among(stored.rewards[loop], pools[:, :, :number], max(keep, 1))
    few = Chosen.of(loop, seeds[:, :, 0], number * stored.rows[loop])
    if not keep:
        return few
    best = best_among(stored.rewards[FULL], seeds, 1)
    fewer = at(stored.rewards[loop], seeds[:, :, :1]) > at(stored.rewards[FULL], best)
    full, is_few = best[:, :, 0], fewer[:, :, 0]
    return Chosen(
        torch.where(is_few, few.loop, torch.full_like(few.loop, FULL)),
        torch.where(is_few, few.seed, full),
        few.rows + keep * stored.rows[FULL],
    )


def stop(stored: Stored, pools: Tensor, number: int, target: float, loop: int = FULL) -> Chosen:
    """One image after another until one has the reward `target`, at most `number`; the best of those made."""
    seeds = pools[:, :, :number]
    rewards = at(stored.rewards[loop], seeds)
    reached = rewards >= target
    reached[:, :, -1] = True
    made = reached.int().argmax(dim=2) + 1
    unmade = torch.arange(number) >= made[:, :, None]
    best = rewards.masked_fill(unmade, -torch.inf).argmax(dim=2, keepdim=True)
    return Chosen.of(loop, seeds.gather(2, best)[:, :, 0], made.double() * stored.rows[loop])


class SeenOfPools(Seen):
    """Rewards seen of prompts whose pools can run out.

    Args:
        sizes: images in the pool of each prompt.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__(len(sizes))
        self.sizes = sizes

    def index(self) -> Tensor:
        """That of a prompt with no image left is -inf."""
        empty = torch.tensor([len(rewards) >= size for rewards, size in zip(self.rewards, self.sizes)])
        return super().index().masked_fill(empty, -torch.inf)


def improvement(stored: Stored, pools: Tensor, number: int, first: int, loop: int = FULL) -> Chosen:
    """`number` images per prompt on average: `first` for each, then one at a time for the prompt of highest expected
    improvement (see `fk_steer.search.Allocation`), until its pool is empty."""
    P, R, S = pools.shape
    rewards, cost = at(stored.rewards[loop], pools), stored.rows[loop]
    best, rows = torch.empty(P, R, dtype=torch.long), torch.empty(P, R, dtype=torch.float64)
    for r in range(R):
        own = rewards[:, r].tolist()
        seen = SeenOfPools([S] * P)
        begun, slots = [some[:first] for some in own], [range(first)] * P
        seen.add(Pass(range(P), begun, slots, rows=P * first * cost, saved=0))

        def again(populations: Sequence[int], own: list[list[float]] = own, seen: SeenOfPools = seen) -> Pass:
            (p,) = populations
            position = len(seen.rewards[p])
            return Pass(populations, [[own[p][position]]], [[position]], rows=cost, saved=0)

        allocate(seen, P * (number - first) * cost, cost, again)
        for p, some in enumerate(seen.rewards):
            best[p, r] = pools[p, r, some.index(max(some))]
            rows[p, r] = len(some) * cost
    return Chosen.of(loop, best, rows)


PRUNINGS = (
    (8, Schedule(at=(0.25, 0.5), alive=(4, 2))),
    (16, Schedule(at=(0.12, 0.4), alive=(4, 1))),
    (8, Schedule(at=(0.33,), alive=(2,))),
    (6, Schedule(at=(0.5,), alive=(2,))),
    (5, Schedule(at=(0.75,), alive=(1,))),
)
"""Seeds, and when how many go on; the full loops of four or fewer."""

KEPT = (1, 2, 3)
SHARES = (0.5, 0.75, 0.9)
"""Of full images with less than the reward at which to stop."""

REFERENCE = 4
"""Full images: the budget that rules are compared at, and with."""


def rules_of(stored: Stored) -> dict[str, Rule]:
    """All that are compared, by what a table calls them: those that the pools have seeds for."""
    S, T = stored.num_seeds, stored.steps[FULL]
    found: dict[str, Rule] = {}

    def best_ofs(numbers: Sequence[int], loop: int, ending: str = "") -> None:
        for number in sorted({number for number in numbers if 1 <= number <= S}):
            found[f"best-of-{number}{ending}"] = partial(best_of, number=number, loop=loop)

    few = [(loop, steps) for loop, steps in enumerate(stored.steps) if loop != FULL]
    best_ofs((1, 2, reference_of(stored), 8, 16), FULL)
    for loop, steps in few:
        best_ofs((REFERENCE, 8, min(REFERENCE * T // steps, S)), loop, f" in {steps} steps")
    for number, schedule in PRUNINGS:
        if number <= S:
            sizes = "-".join(str(size) for size in (number, *(schedule.alive or ())))
            shares = ", ".join(f"{100 * share:g}" for share in schedule.at)
            found[f"prune {sizes} at {shares}%"] = partial(prune, number=number, schedule=schedule)
    for (loop, steps), keep in itertools.product(few, KEPT):
        number = min((REFERENCE - keep) * T // steps, S)
        if number > keep:
            found[f"screen {number} in {steps} steps, keep {keep}"] = partial(
                screen, number=number, loop=loop, keep=keep
            )
    most = min(2 * REFERENCE, S)
    for share in SHARES:
        target = stored.rewards[FULL].quantile(share).item()
        found[f"stop at {target:.3f}, at most {most}"] = partial(stop, number=most, target=target)
    if S > REFERENCE:
        found[f"expected improvement, {REFERENCE} on average"] = partial(
            improvement, number=REFERENCE, first=REFERENCE // 2
        )
    return found


def reference_of(stored: Stored) -> int:
    """Images of the best-of-n that all are compared with."""
    return min(REFERENCE, stored.num_seeds)


def pools_of(stored: Stored, repeats: int, seed: int) -> Tensor:
    """(P, repeats, S): the seeds of each pool in random orders."""
    P, S = stored.predictions.shape[:2]
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(P, repeats, S, generator=generator, dtype=torch.float64).argsort(dim=2)


# Tables.


def outcome(stored: Stored, chosen: Chosen) -> dict[str, Tensor]:
    """Measure, or 'rows' -> (P,): its mean over the repeats."""
    P = len(stored.tags)
    prompts = torch.arange(P)[:, None]
    found = {name: values[chosen.loop, prompts, chosen.seed].mean(1) for name, values in stored.finals.items()}
    return {**found, "rows": chosen.rows.mean(1)}


def row_of(values: Mapping[str, Tensor], tags: Sequence[str], ending: str = "") -> Row:
    """Mean and standard error over prompts: 'overall' accuracy in %, the unweighted mean of the tasks', and the guide's
    reward, the judge's and the oracle's."""
    by_task = [
        mean_by((p, 100 * value) for p, (value, tag) in enumerate(zip(values["correct"].tolist(), tags)) if tag == task)
        for task in TASKS
        if task in tags
    ]
    scores = {f"{name}{ending}": mean_by(enumerate(values[name].tolist())) for name in MEASURES if name != "correct"}
    return {f"overall{ending}": mean_of_means(by_task), **scores}


def compare(stored: Stored, rules: Mapping[str, Rule], pools: Tensor) -> dict[str, Row]:
    """Each rule's images and rows per image, and what it gains over best-of-n, paired.

    Columns: those of `row_of`, 'rows', and again those of `row_of` for the differences.
    """
    number = reference_of(stored)
    reference = outcome(stored, best_of(stored, pools, number))
    rows: dict[str, Row] = {}
    for name, rule in rules.items():
        values = outcome(stored, rule(stored, pools))
        gains = {measure: values[measure] - reference[measure] for measure in MEASURES}
        rows[name] = {
            **row_of(values, stored.tags),
            "rows": (values["rows"].mean().item(), None),
            **row_of(gains, stored.tags, f" - best-of-{number}"),
        }
    return rows


def predictors(stored: Stored) -> dict[str, Row]:
    """What says how good the full image of a seed will be: x0 predictions by step, and few-step images.

    Columns: 'rows' it takes to know; 'rank correlation', Spearman's, with the full image's reward among the seeds of a
    prompt, averaged over prompts; 'best in top quarter', in how many prompts, in %, the seed of the best full image is
    among the quarter that it puts first.
    """
    T = stored.steps[FULL]
    known = {
        f"x0 after step {step + 1} of {T}": (stored.predictions[:, :, step], (step + 1) * stored.rows[FULL] / T)
        for step in range(T)
    }
    for loop, steps in enumerate(stored.steps):
        if loop != FULL:
            known[f"image in {steps} steps"] = (stored.rewards[loop], stored.rows[loop])
    return {
        name: {
            "rows": (float(rows), None),
            "rank correlation": mean_by(enumerate(rank_correlation(values, stored.rewards[FULL]).tolist())),
            "best in top quarter": mean_by(enumerate((100 * finds_best(values, stored.rewards[FULL])).tolist())),
        }
        for name, (values, rows) in known.items()
    }


def rank_correlation(values: Tensor, others: Tensor) -> Tensor:
    """(P,) Spearman's, of (P, S) with (P, S); 0 where one of them is constant."""
    ranks = [torch.from_numpy(rankdata(some.numpy(), axis=1)) for some in (values, others)]
    a, b = (some - some.mean(1, keepdim=True) for some in ranks)
    scale = (a.square().sum(1) * b.square().sum(1)).sqrt()
    return torch.where(scale > 0, (a * b).sum(1) / scale.clamp(min=1e-12), torch.zeros_like(scale))


def finds_best(values: Tensor, others: Tensor) -> Tensor:
    """(P,) float64: whether the highest of `others` (P, S) is in the top quarter of `values` (P, S), rounded down but
    one at least."""
    best = others.argmax(1, keepdim=True)
    above = (values > values.gather(1, best)).sum(1)
    return (above < max(values.shape[1] // 4, 1)).double()


# The command line.


class Split(str, Enum):
    tuning = "tuning"
    held_out = "held-out"


app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)
Out = Annotated[Path, typer.Option(help="Write rewards and tables to this folder.")]
Prompts = Annotated[Split, typer.Option(help="Take these prompts of the bundled world.")]


@app.command()
def store(
    out: Out,
    split: Prompts = Split.tuning,
    model: Model = "shapes",
    reward: Guide = "clip-score",
    per_task: PerTask = 20,
    seeds: Annotated[int, typer.Option(min=2, help="Run this many seeds of each prompt.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Take this many steps of DDIM in the full loop.")] = 25,
    few_steps: Annotated[
        list[int] | None,
        typer.Option(
            min=1, help="Solve the whole loop in this many steps of DPM-Solver++ too.", show_default="4, 6, 8 and 10"
        ),
    ] = None,
    guidance: Guidance = None,
    batch_size: BatchSize = 6,
    half: Annotated[
        bool,
        typer.Option("--half", help="Compute denoiser and decoder in bfloat16, compiled: a third of the time on CPUs."),
    ] = False,
) -> None:
    """Run every seed of every prompt once, and keep the rewards along the way."""
    quiet_libraries()
    with one_line_errors():
        setup = {
            **setup_of(model, reward, per_task, steps, guidance, split.value, half),
            "seeds": seeds,
            "few_steps": sorted(set(few_steps or (4, 6, 8, 10))),
            "batch_size": batch_size,
        }
        folder = out / split.value
        check_settings(folder, setup)
        record_settings(folder, setup)
        generate(setup, SPLITS[split.value](per_task), folder)


@app.command()
def simulate(
    out: Out,
    split: Prompts = Split.tuning,
    subsets: Annotated[int, typer.Option(min=1, help="Draw this many random orders of each prompt's seeds.")] = 200,
    seed: Annotated[int, typer.Option(help="Draw these orders from this seed.")] = 0,
) -> None:
    """Tell what search rules would have chosen, and what says early how good an image will be."""
    with one_line_errors():
        stored = read_stored(out / split.value)
        write_table(out / f"{split.value}-predictors", predictors(stored), scores=["rank_correlation"])
        write_table(out / f"{split.value}-rules", compare(stored, rules_of(stored), pools_of(stored, subsets, seed)))


if __name__ == "__main__":
    app()

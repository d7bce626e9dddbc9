"""What solving for lambda costs of a steered call, beside fifty rounds of bisection, taken in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from fk_steer.cli.options import Model, Repeats, one_line_errors
from fk_steer.console import console
from fk_steer.diffusion import steer
from fk_steer.evaluation.costs import machine
from fk_steer.files import write_json
from fk_steer.loading import quiet_libraries, set_scheduler
from fk_steer.search import FKSteering
from fk_steer.shapes.captions import evaluation_prompts
from fk_steer.smc import TargetESS, effective_sample_size
from fk_steer.testing.full_size import bundled_or_full_size


Solve = Callable[[TargetESS, Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]


def bisection(tempering: TargetESS, log_weights_at: Callable[[Tensor], Tensor], lowest: Tensor, highest: Tensor) -> Any:
    """Fifty halvings, as `TargetESS.solve` is called."""

    def keeps_target(lmbda: Tensor) -> Tensor:
        lw = log_weights_at(lmbda)
        return effective_sample_size(lw) >= 1 + tempering.ess * ((lw > -torch.inf).sum(1).double() - 1)

    low, high = lowest.clone(), highest.clone()
    reached = keeps_target(highest)
    for _ in range(50):
        middle = (low + high) / 2
        keeps = keeps_target(middle)
        low, high = torch.where(keeps, middle, low), torch.where(keeps, high, middle)
    return torch.where(reached, highest, low)


@contextmanager
def watched(solve: Solve, counts: dict[str, float]) -> Any:
    """Solve for lambda by `solve` while the context lasts; looks at the weights and seconds are added to `counts`."""

    def run(self: TargetESS, log_weights_at: Callable[[Tensor], Tensor], lowest: Tensor, highest: Tensor) -> Tensor:
        def counted(lmbda: Tensor) -> Tensor:
            counts["looks"] += 1
            return log_weights_at(lmbda)

        started = time.perf_counter()
        found = solve(self, counted, lowest, highest)
        counts["seconds"] += time.perf_counter() - started
        return found

    own = TargetESS.solve
    TargetESS.solve = run  # type: ignore[method-assign]
    try:
        yield
    finally:
        TargetESS.solve = own  # type: ignore[method-assign]


def measure(pipe: Any, reward: Any, particles: int, repeats: int, **call: Any) -> dict[str, dict[str, float]]:
    """Way -> looks at the weights in a call of one prompt, milliseconds in solving, and their share of the call in %.

    Medians over `repeats` calls of each way, in turn, after one of each.
    """
    steering = FKSteering(particles)
    set_scheduler(pipe, None, steering, call["num_inference_steps"])
    steered = steer(pipe, reward, steering)
    ways: dict[str, Solve] = {"solver": TargetESS.solve, "bisection": bisection}
    measured: dict[str, list[tuple[float, float, float]]] = {way: [] for way in ways}
    prompts = [line["prompt"] for line in evaluation_prompts(1)]
    for repeat in range(repeats + 1):
        for way, solve in ways.items():
            counts = {"looks": 0.0, "seconds": 0.0}
            with watched(solve, counts):
                started = time.perf_counter()
                steered(
                    prompts[repeat % len(prompts)],
                    generator=torch.Generator().manual_seed(repeat),
                    output_type="pt",
                    **call,
                )
                total = time.perf_counter() - started
            if repeat:
                measured[way].append((counts["looks"], 1e3 * counts["seconds"], 100 * counts["seconds"] / total))
    names = ("looks", "milliseconds", "share in %")
    return {
        way: dict(zip(names, (statistics.median(column) for column in zip(*some)))) for way, some in measured.items()
    }


app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Write seconds and shares to this JSON file.")],
    model: Model = "shapes",
    particles: Annotated[int, typer.Option(min=2, help="Steer this many particles per prompt.")] = 4,
    repeats: Repeats = 9,
) -> None:
    """Count the looks at weights, and the time of a steered call, that solving for lambda takes, beside bisection."""
    with one_line_errors():
        quiet_libraries()
        pipe, guide, call = bundled_or_full_size(model, None, "cpu", None, None)
        measured = measure(pipe, guide, particles, repeats, **call)
        write_json(out, {"model": model, "particles": particles, **call, "machine": machine("cpu"), **measured})
        for way, values in measured.items():
            console.print(f"{way}: " + ", ".join(f"{v:.3g} {name}" for name, v in values.items()), highlight=False)


if __name__ == "__main__":
    app()

"""Options that several benchmarks share, and what they stand for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer


if TYPE_CHECKING:
    from fk_steer.config import FKSteering


Model = Annotated[str, typer.Option(help="'shapes' or 'shapes-xl'.")]
Guide = Annotated[str, typer.Option(help="Guide.")]
Seeds = Annotated[int, typer.Option(min=1, help="Repeats with other noise.")]
PerTask = Annotated[int, typer.Option(min=1, help="Held-out prompts per task.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Denoising steps. [default: the model's]")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale. [default: the model's]")]
BatchSize = Annotated[int, typer.Option(min=1, help="Prompts per call.")]
Processes = Annotated[int, typer.Option(min=1, help="Repeats at a time, one thread each.")]
FullSize = Annotated[
    str | None, typer.Option(help="'sd21' or 'sdxl': an architecture of published size instead of a bundled model.")
]
RandomWeights = Annotated[
    bool, typer.Option("--random-weights", help="What --full-size runs on; costs do not depend on the weights.")
]
Repeats = Annotated[int, typer.Option(min=1, help="Measurements, after a warm-up.")]
Size = Annotated[int | None, typer.Option(min=64, help="Height and width in pixels. [default: the model's]")]


def preset_name(name: str) -> str:
    """'fk' of 'fk', 'fk:8' and 'fk@4'."""
    return re.split("[:@,]", name)[0]


def sized(name: str, num_steps: int, **overrides: Any) -> FKSteering:
    """A preset by name, with its particles or its budget: 'fk', 'fk:8', 'psp@4'."""
    from fk_steer.config import FKSteering

    count, budget = (re.search(f"{mark}([^:@]+)", name) for mark in ":@")
    if count:
        overrides["num_particles"] = int(count[1])
    overrides = {field: value for field, value in overrides.items() if value is not None}
    steering = FKSteering.preset(preset_name(name), **overrides)
    return steering.within(float(budget[1]), num_steps) if budget else steering

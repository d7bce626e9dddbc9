"""Options that several commands share, and errors as one line."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Annotated

import typer

from llava_reward_guide.terminal import errors_as_lines, usable_device


Device = Annotated[str | None, typer.Option(callback=usable_device, help="[default: cuda if there is one, else cpu]")]
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
Repair = Annotated[
    bool,
    typer.Option("--repair", help="Set aside what of an earlier run cannot be read, in .unreadable, and remake it."),
]
Repeats = Annotated[int, typer.Option(min=1, help="Measurements, after a warm-up.")]
Size = Annotated[int | None, typer.Option(min=64, help="Height and width in pixels. [default: the model's]")]


def one_line_errors() -> AbstractContextManager[None]:
    """Turn errors into one line and exit status 1."""
    return errors_as_lines("error:")

"""Options that several commands share, and errors as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape


def _usable(device: str | None) -> str | None:
    """A device that PyTorch has here.

    Raises:
        typer.BadParameter: saying which it has.
    """
    if device is None:
        return None
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    usable = ["cpu", *(["cuda"] if count else []), *[f"cuda:{index}" for index in range(count)]]
    if torch.backends.mps.is_available():
        usable.append("mps")
    if device not in usable:
        raise typer.BadParameter(f"{device!r} cannot be used here. There is: {', '.join(usable)}.")
    return device


Device = Annotated[str | None, typer.Option(callback=_usable, help="[default: cuda if there is one, else cpu]")]
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


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn the errors a user can act on into one line and exit status 1."""
    import yaml

    try:
        yield
    except (ValueError, OSError, ImportError, yaml.YAMLError) as error:
        text = str(error)
        if isinstance(error, yaml.YAMLError):
            text = f"This is no YAML: {' '.join(text.split())}"
        Console(stderr=True).print(f"[red]error:[/red] {escape(text)}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error

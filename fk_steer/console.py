"""What the commands share: the console, and errors as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console


console = Console()


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn the errors a user can act on into one line and exit status 1."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error

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


def key_values(pairs: list[str] | None) -> dict[str, str]:
    """The options of a reward from the values of --reward-option.

    Raises:
        ValueError: for one that is not KEY=VALUE.
    """
    for pair in pairs or []:
        if "=" not in pair:
            raise ValueError(f"Expected --reward-option as KEY=VALUE, but got {pair!r}.")
    return dict(pair.split("=", 1) for pair in pairs or [])

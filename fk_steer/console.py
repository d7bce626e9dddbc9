"""What the commands share: the console, and errors as one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


console = Console()

Device = Annotated[str | None, typer.Option(help="[default: cuda if there is one, else cpu]")]
"""An option of many commands."""


def progress_bar() -> Progress:
    """A bar that goes when the work is done; nothing where there is no terminal to draw it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def report_failure(what: str, error: Exception) -> str:
    """Say that one of several things has failed, where the others go on.

    Returns:
        Kind and message of the error.
    """
    problem = f"{type(error).__name__}: {error}"
    console.print(f"[red]failed[/red] {escape(what)}: {escape(problem)}", highlight=False, soft_wrap=True)
    return problem


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn the errors a user can act on into one line and exit status 1."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


def reward_options(pairs: list[str], name: str, names: list[str]) -> dict[str, Any]:
    """The options of one reward among [NAME:]KEY=VALUE; true, false, null and numbers are what JSON makes of them.

    Args:
        pairs: as given.
        name: of the reward whose options are wanted.
        names: of all rewards.

    Raises:
        ValueError: for a pair of another form, or of a reward that is not asked for.
    """
    options = {}
    for pair in pairs:
        given, equals, text = pair.partition("=")
        owner, colon, key = given.rpartition(":")
        if not equals or not key:
            raise ValueError(f"Expected --reward-option as KEY=VALUE, but got {pair!r}.")
        if colon and owner not in names:
            raise ValueError(f"--reward-option {pair!r} is for a reward that is not scored by: {', '.join(names)}.")
        if not colon or owner == name:
            try:
                options[key] = json.loads(text)
            except ValueError:
                options[key] = text
    return options

"""Where progress, failures and tables are shown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


console = Console()


def progress_bar(shown: bool = True) -> Progress:
    """A bar that goes when the work is done; nothing where it is not to be shown, or no terminal is there."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal))


def report_failure(what: str, error: Exception) -> str:
    """Say that one of several things has failed, where the others go on.

    Returns:
        Kind and message of the error.
    """
    problem = f"{type(error).__name__}: {error}"
    console.print(f"[red]failed[/red] {escape(what)}: {escape(problem)}", highlight=False, soft_wrap=True)
    return problem


def show_on_its_side(lines: Sequence[Sequence[str]]) -> None:
    """A table with more columns than fit a terminal, a column a line: header first, then the rows."""
    header, *body = zip(*lines)
    shown = Table(*header, box=None)
    for line in body:
        shown.add_row(*line)
    console.print(shown)

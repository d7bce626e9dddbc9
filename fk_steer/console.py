"""Where progress, failures and tables are shown."""

from __future__ import annotations

import copy
import dataclasses
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from llava_reward_guide.packages import missing


try:
    from rich.console import Console
    from rich.markup import escape
    from rich.panel import Panel as Panel
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
    from rich.table import Column, Table
except ImportError as error:
    raise missing("rich") from error


console = Console()


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM and SIGINT end a command that keeps what is finished alike: what it was writing is cleaned up, a line
    says so, and the exit status is 128 and the signal's number (143 and 130)."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    # Signals can be handled by the main thread alone. A SIGINT that whoever started this has it ignore stays ignored;
    # else it is no KeyboardInterrupt, of which Python may remember that it came and end by the signal itself.
    here = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in _STOPPING if here}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    except KeyboardInterrupt as error:  # a worker's
        _say_stopped(signal.SIGINT)
        raise SystemExit(128 + signal.SIGINT) from error
    except SystemExit as error:
        for number in _STOPPING:
            if error.code == 128 + number:
                _say_stopped(number)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_STOPPING = (signal.SIGTERM, signal.SIGINT)


def _say_stopped(number: signal.Signals) -> None:
    Console(stderr=True).print(
        f"stopped by {number.name}: what is finished is kept; run the same again to go on", highlight=False
    )


class Bar(Progress):
    """A bar that goes when the work is done. Where there is no terminal it prints a line now and then instead.

    Args:
        shown: whether there is to be anything.
    """

    EVERY = 10.0
    """Seconds between lines."""

    def __init__(self, shown: bool = True) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        super().__init__(*columns, console=console, transient=True, disable=not (shown and console.is_terminal))
        self._lines = shown and not console.is_terminal
        self._said: dict[TaskID, float] = {}

    def add_task(self, description: str, *arguments: Any, note: str = "", **options: Any) -> TaskID:
        """See `Progress.add_task`.

        Args:
            note: what stands behind the bar; `update` takes it too.
        """
        return super().add_task(description, *arguments, note=note, **options)

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """See `Progress.update`."""
        super().update(task_id, **changes)
        self._print_line(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """See `Progress.advance`."""
        super().advance(task_id, advance)
        self._print_line(task_id)

    def _print_line(self, task_id: TaskID) -> None:
        task, now = self._tasks[task_id], self.get_time()
        if self._lines and task.total and now - self._said.setdefault(task_id, now) >= self.EVERY:
            self._said[task_id] = now
            note = f", {task.fields['note']}" if task.fields["note"] else ""
            if task.time_remaining:
                note += f", about {duration(task.time_remaining)} to go"
            text = f"{task.description}: {task.completed:g} of {task.total:g}{note}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """'8 s', '3 min' or '2.5 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def progress_bar(shown: bool = True) -> Bar:
    """A bar over things that are counted; nothing where it is not to be shown."""
    return Bar(shown)


def say(text: str) -> None:
    """A line about what is being done, such as what is loaded."""
    console.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)


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
    show(shown)


def show(table: Table, fixed: int = 1) -> None:
    """Print a table. One that is wider than the terminal is folded into several, one under the other, whose first
    columns are those of the whole.

    Args:
        table: what is shown.
        fixed: how many columns are repeated.
    """
    head, rest = table.columns[:fixed], table.columns[fixed:]
    while rest:
        number = len(rest)
        while number > 1 and _width(_with_columns(table, [*head, *rest[:number]])) > console.width:
            number -= 1
        console.print(_with_columns(table, [*head, *rest[:number]]))
        rest = rest[number:]
        if rest:
            console.print()
    if not table.columns[fixed:]:
        console.print(table)


def _width(table: Table) -> int:
    return console.measure(table, options=console.options.update(width=10_000)).maximum


def _with_columns(table: Table, columns: Sequence[Column]) -> Table:
    other = copy.copy(table)
    # Rows know their cells' columns by number.
    other.columns = [dataclasses.replace(column, _index=index) for index, column in enumerate(columns)]
    return other

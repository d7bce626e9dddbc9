"""Where progress, failures and tables are shown."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from llava_reward_guide.packages import missing


try:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table
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

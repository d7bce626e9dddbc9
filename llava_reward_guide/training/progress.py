"""What a run shows and writes down: a bar, log.jsonl, trackers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..files import write_whole
from ..packages import missing
from ..report import finite


try:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
except ImportError as error:
    raise missing("rich", "Training", "train") from error


class Monitor:
    """Of one run; only the main process shows and logs, every process reports what it skips.

    Args:
        folder: of log.jsonl and skipped.jsonl.
    """

    def __init__(self, accelerator: Accelerator, folder: Path) -> None:
        self.accelerator, self.folder = accelerator, folder
        self.console = Console(stderr=True, quiet=not accelerator.is_main_process)
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[figures]}"), console=self.console,
        )  # fmt: skip

    def __enter__(self) -> Monitor:
        self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()

    def start(self, total: int, done: int) -> None:
        """Begin at a step; lines of steps that a crash undid are removed from the log."""
        self.task = self.bar.add_task("steps", total=total, completed=done, figures="")
        path = self.folder / "log.jsonl"
        if self.accelerator.is_main_process and path.is_file():
            # What a crash cut short has no end of line.
            lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            write_whole(path, "".join(line for line in lines if json.loads(line)["step"] <= done))

    def advance(self, step: int, figures: Mapping[str, float], log: bool) -> None:
        text = "  ".join(f"{name} {figures[name]:.4f}" for name in ("loss", "accuracy") if name in figures)
        self.bar.update(self.task, completed=step, figures=text)
        if log:
            self.log(step, figures)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        if self.accelerator.is_main_process:
            self._append("log.jsonl", [{"step": step, **figures}])
            self.accelerator.log(dict(figures), step=step)

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def skip(self, messages: Iterable[str]) -> None:
        """Report items that are left out, on the terminal and in skipped.jsonl."""
        found = list(messages)
        if found:
            self._append("skipped.jsonl", [{"skipped": message} for message in found])
        for message in found:
            self.say(f"Skipped: {message}")

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        with self.bar:
            task = self.bar.add_task(what, total=total, figures="")
            yield lambda count: self.bar.advance(task, count)
        self.bar.remove_task(task)

    def _append(self, name: str, lines: Iterable[Mapping[str, Any]]) -> None:
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(finite(line), ensure_ascii=False) + "\n" for line in lines)

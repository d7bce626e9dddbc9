"""A run that is looked at: in a thread of its own, told of step by step, and stopped when asked to."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..diffusion import Execution, steer
from ..diffusion.events import ScoringEvent
from ..generate import Generation
from ..loading import find_model
from ..preparation import prepare
from ..report.results import UNSTEERED
from ..report.trace import Trace
from ..steps import steps_told
from .models import Models
from .results import keep


EVERY = 0.25
"""Seconds between two pieces of news of steps; events are told of at once."""


class Stopped(Exception):
    """The run was asked to stop, and has."""


@dataclass(frozen=True)
class News:
    """How a run stands.

    Attributes:
        stage: 'waiting' for another run, 'loading', 'unsteered', 'steered' or 'done'.
        done, steps: of the loop at hand; 0 before the first.
        trace: of the steered run so far; None before its first event.
        notes: what was chosen, in sentences.
        best: the highest reward that was seen so far, steered and unsteered.
    """

    stage: str
    done: int = 0
    steps: int = 0
    trace: Trace | None = None
    notes: tuple[str, ...] = ()
    best: Mapping[str, float] = field(default_factory=dict)


class Run:
    """A run of one prompt, unsteered first if that was asked for; what it makes goes to a folder.

    Iterating starts it and gives `News` until it is done. Whoever stops iterating stops the run.

    Args:
        models: where pipeline and rewards are.
        settings: see `Generation`; its first prompt is what is made.
        weights: of the rewards that it names.
        folder: an empty one.
        batch_size: denoiser rows, latents decoded and images scored at a time; None for all.

    Attributes:
        stopped: whether it ended before its time.
    """

    def __init__(
        self,
        models: Models,
        settings: Generation,
        weights: Mapping[str, float],
        folder: Path,
        batch_size: int | None = None,
    ) -> None:
        self.models, self.settings, self.weights, self.folder = models, settings, weights, folder
        self.batch_size = batch_size
        self.stopped = False
        self._asked, self._at_once = threading.Event(), threading.Event()
        self._told: queue.SimpleQueue[News | BaseException | None] = queue.SimpleQueue()
        self._news = News("waiting")
        self._seen = 0.0

    def stop(self) -> None:
        """End the run: at its next scoring event, whose x0 predictions become its pictures, or at its next step if it
        has not come to one. Asked again, it ends at its next step in any case, and leaves no steered picture."""
        if self._asked.is_set():
            self._at_once.set()
        self._asked.set()

    def abandon(self) -> None:
        """End the run at its next step: nobody looks at it any more."""
        self._asked.set()
        self._at_once.set()

    def __iter__(self) -> Iterator[News]:
        """
        Raises:
            ValueError, OSError, ...: what the run raised.
        """
        thread = threading.Thread(target=self._thread, name="fk-steer-run", daemon=True)
        thread.start()
        try:
            while True:
                latest, last = self._told.get(), None
                # Of several pieces of news only the latest is worth showing.
                while isinstance(latest, News):
                    last = latest
                    if self._told.empty():
                        break
                    latest = self._told.get()
                if last is not None:
                    yield last
                if isinstance(latest, BaseException):
                    raise latest
                if latest is None:
                    return
        finally:
            self.abandon()

    def _thread(self) -> None:
        try:
            self._tell()
            while not self.models.lock.acquire(timeout=0.2):
                self._check()
            try:
                self.models.here()
                self._work()
            finally:
                self.models.lock.release()
        except Stopped:
            self.stopped = True
        # Whoever iterates raises it.
        except BaseException as error:
            self._told.put(error)
            return
        self._tell(stage="done")
        self._told.put(None)

    def _tell(self, **changes: Any) -> None:
        self._news = replace(self._news, **changes)
        self._told.put(self._news)

    def _check(self) -> None:
        if self._asked.is_set():
            raise Stopped

    def _work(self) -> None:
        """Both runs, as `fk-steer generate --compare` makes them."""
        self._tell(stage="loading")
        settings = self.settings
        # In seconds, before anything is loaded.
        find_model(settings.model)
        options = settings.reward_options
        of_each = {next(iter(self.weights)): options} if len(self.weights) == 1 else options
        reward = self.models.guide(self.weights, of_each)
        pipe = self.models.pipeline(settings.model, settings.dtype)
        self._check()
        prepared = prepare(pipe, reward, settings)
        notes = (prepared.scheduler_note, prepared.choice_note)
        self._tell(notes=tuple(note for note in notes if note))
        with steps_told(pipe, self._step):
            for prefix, (strategy, pipe.scheduler) in prepared.runs.items():
                stage = "unsteered" if prefix == UNSTEERED else "steered"
                self._tell(stage=stage, done=0, steps=0)
                steered = steer(pipe, prepared.reward, strategy, Execution.in_batches(self.batch_size))
                output = steered(
                    settings.prompts[0],
                    generator=torch.Generator().manual_seed(settings.seed),
                    on_event=self._see,
                    keep_predictions=stage == "steered",
                    **prepared.call,
                )
                keep(self.folder, output, prefix)
                best = output.rewards.max().item()
                final = {"trace": output.trace} if stage == "steered" else {}
                self._tell(best={**self._news.best, stage: best}, **final)

    def _see(self, event: ScoringEvent) -> None:
        """A scoring event of either run."""
        if self._asked.is_set():
            if self._news.stage != "steered":
                raise Stopped
            self.stopped = True
            event.stop()
        if self._news.stage == "steered":
            best = max(self._news.best.get("steered", float("-inf")), event.rewards.max().item())
            self._tell(trace=event.trace, best={**self._news.best, "steered": best})

    def _step(self, done: int, steps: int, seconds: float) -> None:
        # Before the first event there is nothing that a stop there would leave.
        if self._at_once.is_set() or self._asked.is_set() and self._news.trace is None:
            raise Stopped
        now = time.monotonic()
        if done < steps and now - self._seen < EVERY:
            self._news = replace(self._news, done=done, steps=steps)
            return
        self._seen = now
        self._tell(done=done, steps=steps)


class Runs:
    """Runs under way, by the browser's session."""

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}

    @contextmanager
    def holding(self, session: str, run: Run) -> Iterator[None]:
        """Know a run as long as it lasts; one of the same session before it is given up."""
        self.abandon(session)
        self._runs[session] = run
        try:
            yield
        finally:
            if self._runs.get(session) is run:
                del self._runs[session]

    def stop(self, session: str | None) -> bool:
        """Stop the run of a session, if there is one, and say whether there was; see `Run.stop`."""
        run = self._runs.get(session or "")
        if run is not None:
            run.stop()
        return run is not None

    def abandon(self, session: str | None) -> None:
        """Give up the run of a session, if there is one."""
        run = self._runs.get(session or "")
        if run is not None:
            run.abandon()

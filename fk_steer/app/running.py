"""A run that is looked at: in a thread of its own, told of step by step, and stopped when asked to."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..diffusion import Execution, steer
from ..diffusion.budgets import choose
from ..diffusion.components import makes_videos
from ..diffusion.events import ScoringEvent
from ..generate import Generation
from ..loading import find_model, set_scheduler
from ..report.trace import Trace, told
from ..rewards import FrameReward
from ..rewards.base import as_reward
from ..search import Strategy, preset
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
        loops: pipeline calls so far and in all, as far as is known.
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
        options: of each reward.
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
        steering = Strategy.from_dict(settings.steering)
        options = settings.reward_options
        of_each = {next(iter(self.weights)): options} if len(self.weights) == 1 else options
        reward = self.models.guide(self.weights, of_each)
        pipe = self.models.pipeline(settings.model, settings.dtype)
        self._check()
        if makes_videos(pipe) and not as_reward(reward).takes_videos:
            reward = FrameReward(reward)
        plain = pipe.scheduler
        note = set_scheduler(pipe, settings.scheduler, steering, settings.steps)
        if settings.scheduler:
            plain, steering = pipe.scheduler, steering.replace(sampler=settings.scheduler)
        call: dict[str, Any] = {
            "num_inference_steps": settings.steps,
            "guidance_scale": settings.guidance,
            "negative_prompt": settings.negative_prompt,
            "height": settings.height,
            "width": settings.width,
            "output_type": "pil",
        }
        call = {name: value for name, value in call.items() if value is not None}
        choice = choose(pipe, steering, call)
        notes = (note or "", f"{told(choice.chosen)}." if choice.chosen else "")
        self._tell(notes=tuple(text for text in notes if text))
        runs = {"steered": (steering, pipe.scheduler)}
        if settings.compare:
            alike = {name: getattr(choice.strategy, name) for name in ("num_particles", "seed", "steps", "sampler")}
            runs = {"unsteered": (preset("best-of-n", **alike), plain), **runs}
        with self._steps_of(pipe):
            for stage, (strategy, pipe.scheduler) in runs.items():
                self._tell(stage=stage, done=0, steps=0)
                steered = steer(pipe, reward, strategy, Execution.in_batches(self.batch_size))
                output = steered(
                    settings.prompts[0],
                    generator=torch.Generator().manual_seed(settings.seed),
                    on_event=self._see,
                    keep_predictions=stage == "steered",
                    **call,
                )
                keep(self.folder, output, "" if stage == "steered" else "unsteered-")
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

    def _step(self, done: int, steps: int) -> None:
        # Before the first event there is nothing that a stop there would leave.
        if self._at_once.is_set() or self._asked.is_set() and self._news.trace is None:
            raise Stopped
        now = time.monotonic()
        if done < steps and now - self._seen < EVERY:
            self._news = replace(self._news, done=done, steps=steps)
            return
        self._seen = now
        self._tell(done=done, steps=steps)

    @contextmanager
    def _steps_of(self, pipe: Any) -> Iterator[None]:
        """Take the place of a pipeline's own bar, if it has one."""
        if not callable(getattr(pipe, "progress_bar", None)):
            yield
            return
        pipe.progress_bar = lambda iterable=None, total=None: _Bar(iterable, total, self._step)
        try:
            yield
        finally:
            del pipe.progress_bar


class _Bar:
    """What pipelines do with a bar, which tells somebody instead of drawing.

    One of tqdm's would keep its lock for ever when a run is stopped from within it.
    """

    def __init__(self, iterable: Iterable[Any] | None, total: int | None, told: Callable[[int, int], None]) -> None:
        self._iterable, self._done, self._told_to = iterable, 0, told
        self._total = len(iterable) if total is None and isinstance(iterable, Sized) else total or 0

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        for item in self._iterable or ():
            yield item
            self.update()

    def update(self, n: int = 1) -> None:
        """So many steps are done."""
        self._done += n
        self._told_to(self._done, self._total)

    def close(self) -> None:
        """Nothing is left behind."""

    def set_description(self, *_: object, **__: object) -> None:
        """Nothing is drawn."""

    set_postfix = refresh = set_description


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

"""The folder of a generation run: what is in it, what is missing, and who is at work on what."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from PIL import Image

from ...files import check_settings, png, record_settings, write_atomically, write_json
from ...report.trace import Trace
from .plan import Plan, Prompt, Sample, SampleRecord


class RunFolder:
    """The folder of a run.

    Whoever writes about a prompt holds the lock of its share. The operating system frees the locks of a process that
    ends, however it ends.

    Args:
        path: of the folder.
        plan: of the run.
    """

    def __init__(self, path: str | Path, plan: Plan) -> None:
        self.path, self.plan = Path(path), plan
        self._locks = self.path / ".locks"

    def check(self) -> None:
        """
        Raises:
            ValueError: if the folder was made with other settings, naming the first that differs, or holds images of
                which that is not known.
        """
        check_settings(self.path, self.plan.to_dict())
        if not (self.path / "settings.json").exists() and next(self.path.glob("*/samples/*"), None) is not None:
            raise ValueError(
                f"{self.path} holds images, but not the settings they were made with. Choose another folder."
            )

    def open(self) -> None:
        """Leave the settings, unless they are there; what `check` raises."""
        self._locks.mkdir(parents=True, exist_ok=True)
        with FileLock(self._locks / "settings"):
            self.check()
            if not (self.path / "settings.json").exists():
                _remove_unfinished(self.path.glob(".settings.json.*.tmp"))
                record_settings(self.path, self.plan.to_dict())

    def close(self) -> None:
        """Leave nothing but the results, once the run is complete."""
        shutil.rmtree(self._locks, ignore_errors=True)

    @contextmanager
    def share(self, number: int) -> Iterator[bool]:
        """Take a share of `Plan.shares`, if nobody else is at it; whether that is so."""
        lock = FileLock(self._locks / f"{number:05d}")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            for prompt in self.plan.shares[number]:
                _remove_unfinished(self.folder(prompt).rglob(".*.tmp"))
            yield True
        finally:
            lock.release()

    def folder(self, prompt: Prompt) -> Path:
        return self.path / f"{prompt.index:05d}"

    def image(self, sample: Sample) -> Path:
        return self.folder(sample.prompt) / "samples" / f"{sample.number:05d}.png"

    def record(self, sample: Sample) -> Path:
        return self.folder(sample.prompt) / "records" / f"{sample.number:05d}.json"

    def trace(self, sample: Sample) -> Path:
        return self.folder(sample.prompt) / "traces" / f"{sample.number:05d}.json"

    def metadata(self, prompt: Prompt) -> Path:
        return self.folder(prompt) / "metadata.jsonl"

    def grid(self, prompt: Prompt) -> Path:
        return self.folder(prompt) / "grid.png"

    def has(self, samples: Sequence[Sample]) -> bool:
        """Whether all of these are there."""
        # The record is written last.
        return all(self.record(sample).exists() and self.image(sample).exists() for sample in samples)

    def has_prompt(self, prompt: Prompt) -> bool:
        """Whether everything about a prompt is there."""
        files = (self.grid(prompt), self.metadata(prompt))
        return all(file.exists() for file in files) and self.has(self.plan.samples(prompt))

    def missing_shares(self) -> list[int]:
        """Numbers of the shares of which something is missing."""
        shares = enumerate(self.plan.shares)
        return [number for number, share in shares if not all(self.has_prompt(prompt) for prompt in share)]

    def write(self, sample: Sample, image: Image.Image, record: SampleRecord, trace: Trace | None = None) -> None:
        """Add a sample that is not there yet."""
        # First: evaluators expect every prompt's folder to have it.
        self._describe(sample.prompt)
        if not self.has([sample]):
            write_atomically(self.image(sample), png(image))
            if trace is not None:
                trace.save(self.trace(sample))
            write_json(self.record(sample), record.to_dict())

    def finish(self, prompt: Prompt) -> None:
        """Put the samples of a prompt side by side, if all are there."""
        self._describe(prompt)
        samples = self.plan.samples(prompt)
        if self.grid(prompt).exists() or not self.has(samples):
            return
        images = [Image.open(self.image(sample)) for sample in samples]
        columns = math.ceil(math.sqrt(len(images)))
        width, height = images[0].size
        grid = Image.new("RGB", (columns * width, math.ceil(len(images) / columns) * height))
        for number, image in enumerate(images):
            grid.paste(image, (number % columns * width, number // columns * height))
        write_atomically(self.grid(prompt), png(grid))

    def _describe(self, prompt: Prompt) -> None:
        if not self.metadata(prompt).exists():
            write_atomically(self.metadata(prompt), f"{json.dumps(prompt.entry)}\n".encode())


class Progress:
    """Counts what is there, looking only for what was not there before.

    Args:
        folder: of the run.
        report: called by `update` with the numbers of samples there and of all, if they have changed.
    """

    def __init__(self, folder: RunFolder, report: Callable[[int, int], None]) -> None:
        self._folder, self._report = folder, report
        self._missing = [sample for prompt in folder.plan.prompts for sample in folder.plan.samples(prompt)]
        self._total = len(self._missing)
        self._reported: int | None = None

    def update(self) -> None:
        self._missing = [sample for sample in self._missing if not self._folder.has([sample])]
        done = self._total - len(self._missing)
        if done != self._reported:
            self._report(done, self._total)
            self._reported = done


def _remove_unfinished(files: Iterator[Path]) -> None:
    """Remove what `write_atomically` was at when its process was killed."""
    for file in files:
        file.unlink(missing_ok=True)

"""The folder of a generation run: what is in it, what is missing, and who is at work on what."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout
from PIL import Image

from ...files import check_settings, png, record_settings, write_atomically, write_json
from ...records import (
    Misplaced,
    UnreadableFile,
    check_folder,
    check_png,
    read_lines,
    read_record,
    set_aside,
    unreadable,
)
from ...report.trace import Trace
from .plan import Plan, Prompt, Sample, SampleRecord


PARTS = ("samples", "records", "traces")
"""Folders of a prompt."""


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
                f"{self.path} holds images, but not the settings they were made with ({self.path / 'settings.json'}). "
                "Choose another folder, or, if they are of this command, take them over with --repair."
            )

    def check_files(self) -> None:
        """
        Raises:
            UnreadableFile: for the first file of the run that cannot be read or is of another sample or prompt.
        """
        if found := self._unreadable():
            raise UnreadableFile(found[0].path, found[0].problem, len(found) - 1)

    def repair(self) -> list[UnreadableFile]:
        """Set aside what `check_files` would find, to be made anew. Without readable settings those of the plan are
        written, if no record speaks against them.

        Returns:
            What was set aside.

        Raises:
            ValueError: if the folder was made with other settings, or its records are of another run.
        """
        if not self.path.is_dir():
            return []
        found: list[UnreadableFile] = []

        def aside(problem: UnreadableFile) -> None:
            found.append(problem)
            # Unless something above it has been set aside already.
            with suppress(FileNotFoundError, NotADirectoryError):
                set_aside(problem.path, self.path)

        if self._locks.exists() and not self._locks.is_dir():
            aside(UnreadableFile(self._locks, "a file in the place of a folder"))
        self._locks.mkdir(parents=True, exist_ok=True)
        # Nobody sets aside what another has just made anew.
        with FileLock(self._locks / "settings"):
            try:
                check_settings(self.path, self.plan.to_dict())
            except UnreadableFile as error:
                aside(error)
            problems = self._unreadable()
            if not (self.path / "settings.json").exists():
                if strange := [one for one in problems if isinstance(one, Misplaced)]:
                    raise ValueError(
                        f"{self.path / 'settings.json'} cannot be read, and {strange[0].path} is not of this run: "
                        "give the settings that the folder was made with, or choose another."
                    )
                record_settings(self.path, self.plan.to_dict())
            for problem in problems:
                aside(problem)
        return found

    def _unreadable(self) -> list[UnreadableFile]:
        """What is wrong with the files that are there."""
        looks: list[tuple[Path, Callable[[Path], object]]] = []
        for prompt in self.plan.prompts:
            folder = self.folder(prompt)
            looks += [(path, check_folder) for path in (folder, *(folder / name for name in PARTS))]
            looks += [(self.metadata(prompt), partial(_check_metadata, prompt=prompt)), (self.grid(prompt), check_png)]
            for sample in self.plan.samples(prompt):
                looks += [
                    (self.record(sample), partial(self._check_record, sample=sample)),
                    (self.image(sample), partial(self._check_image, sample=sample)),
                ]
                if self._steered:
                    looks.append((self.trace(sample), partial(_check_trace, sample=sample)))
        return unreadable(looks)

    @property
    def _steered(self) -> bool:
        return self.plan.settings.reward is not None

    def _check_record(self, path: Path, sample: Sample) -> None:
        record = read_record(path, SampleRecord.from_dict)
        preset = self.plan.settings.preset if self._steered else None
        expected = (sample.prompt.index, sample.number, sample.seed, sample.prompt.text, preset)
        if (record.prompt_index, record.sample, record.seed, record.prompt, record.preset) != expected:
            raise Misplaced(path, "the record of another sample")

    def _check_image(self, path: Path, sample: Sample) -> None:
        check_png(path)
        try:
            digest = read_record(self.record(sample), SampleRecord.from_dict).sha256
        except (OSError, UnreadableFile):
            return
        if digest and digest != _digest(path.read_bytes()):
            raise UnreadableFile(path, "not the image that its record is of")

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
        kinds = (self.record, self.image, self.trace) if self._steered else (self.record, self.image)
        return all(kind(sample).exists() for sample in samples for kind in kinds)

    def has_prompt(self, prompt: Prompt) -> bool:
        """Whether everything about a prompt is there."""
        files = (self.grid(prompt), self.metadata(prompt))
        return all(file.exists() for file in files) and self.has(self.plan.samples(prompt))

    def missing_shares(self) -> list[int]:
        """Numbers of the shares of which something is missing."""
        shares = enumerate(self.plan.shares)
        return [number for number, share in shares if not all(self.has_prompt(prompt) for prompt in share)]

    def write(self, sample: Sample, image: Image.Image, record: SampleRecord, trace: Trace | None = None) -> None:
        """Add what of a sample is not there yet."""
        # First: evaluators expect every prompt's folder to have it.
        self._describe(sample.prompt)
        if self.has([sample]):
            return
        if not self.image(sample).exists():
            write_atomically(self.image(sample), png(image))
        if trace is not None and not self.trace(sample).exists():
            trace.save(self.trace(sample))
        digest = _digest(self.image(sample).read_bytes())
        before = self.record(sample)
        if not before.exists() or read_record(before, SampleRecord.from_dict).sha256 not in ("", digest):
            write_json(before, replace(record, sha256=digest).to_dict())

    def finish(self, prompt: Prompt) -> None:
        """Put the samples of a prompt side by side, if all are there."""
        self._describe(prompt)
        samples = self.plan.samples(prompt)
        if self.grid(prompt).exists() or not self.has(samples):
            return
        images = []
        for sample in samples:
            with Image.open(self.image(sample)) as image:
                images.append(image.convert("RGB"))
        columns = math.ceil(math.sqrt(len(images)))
        width, height = images[0].size
        grid = Image.new("RGB", (columns * width, math.ceil(len(images) / columns) * height))
        for number, sample_image in enumerate(images):
            grid.paste(sample_image, (number % columns * width, number // columns * height))
        write_atomically(self.grid(prompt), png(grid))

    def _describe(self, prompt: Prompt) -> None:
        if not self.metadata(prompt).exists():
            write_atomically(self.metadata(prompt), f"{json.dumps(prompt.entry)}\n".encode())


def _check_metadata(path: Path, prompt: Prompt) -> None:
    if read_lines(path, dict) != [json.loads(json.dumps(prompt.entry))]:
        raise Misplaced(path, "not the entry of this prompt")


def _check_trace(path: Path, sample: Sample) -> None:
    trace = Trace.load(path)
    if not trace.events:
        raise UnreadableFile(path, "a trace without events")
    if trace.prompts != [sample.prompt.text]:
        raise Misplaced(path, "the trace of another prompt")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


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

"""Files that a long run leaves behind: whole or absent, and never mixed up with another run's."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from .records import read_record


if TYPE_CHECKING:
    from PIL.Image import Image


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file so that it exists whole or not at all, whatever happens meanwhile. What a killed process was at may
    stay behind as a hidden file, `.NAME.PID.tmp`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            # Otherwise the name could reach the disk before the content does, and the power fail between them.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        # A full disk is reported without a name.
        raise type(error)(
            error.errno,
            f"Cannot write ({error.strerror or error}); what was finished before is kept. The file",
            str(path),
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keep others from writing to a folder. The operating system frees the lock of a process that ends, however it
    ends. A folder in which nothing came about does not stay.

    Raises:
        ValueError: if another command is at work in it.
    """
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ValueError(
            f"Another command is at work in {out}. Wait until it is done, or choose another --out."
        ) from error
    try:
        yield
    finally:
        lock.release()
        if made and [path.name for path in out.iterdir()] == [".lock"]:
            (out / ".lock").unlink()
            out.rmdir()


def write_json(path: str | Path, value: Any) -> None:
    """`value` as indented standard JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False).encode())


def is_file_name(text: str) -> bool:
    """Whether a text can name a file or folder within another folder, without leading out of it."""
    return text not in ("", "..") and Path(text).name == text


def png(image: Image) -> bytes:
    """An image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


FPS = 8
"""Frames a second of videos."""


def webp(frames: Sequence[Image], fps: float, lossless: bool = True) -> bytes:
    """Frames as the bytes of an animated WebP file, which browsers play.

    Args:
        frames: RGB images of one size, at least one.
        fps: frames a second.
        lossless: whether every pixel is kept; else of a tenth of the size.
    """
    buffer = io.BytesIO()
    options: dict[str, Any] = {"lossless": True, "quality": 50} if lossless else {"quality": 80}
    duration = max(1, round(1000 / fps))
    first, *others = frames
    first.save(buffer, "WEBP", save_all=True, append_images=others, duration=duration, loop=0, **options)
    return buffer.getvalue()


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Make sure that a folder, if it holds results, was made with these settings.

    Raises:
        ValueError: naming the settings that differ, and of each what was before and what is now.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"Expected '{folder}' to be a folder for the results, but it is a file.")
    record = folder / "settings.json"
    if not record.exists():
        return
    before = read_record(record, dict)
    if others := [name for name in settings if before.get(name) != settings[name]]:
        changes = differences({name: before.get(name) for name in others}, {name: settings[name] for name in others})
        shown = ", ".join(changes[:_SHOWN]) + (f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else "")
        raise ValueError(
            f"{folder} was made with another {', '.join(f'`{name}`' for name in others)} ({shown}). Choose another "
            "folder."
        )


_SHOWN = 8
"""Differences in a message."""


def differences(before: Any, now: Any, path: str = "") -> list[str]:
    """Where two plain values differ: 'steering.noise.eta: 1.0 -> 0.5'. A list is compared entry by entry if it is as
    long as the other."""
    if before == now:
        return []
    if isinstance(before, dict) and isinstance(now, dict):
        names = dict.fromkeys((*before, *now))
        inner = [
            (f"{path}.{name}" if path else str(name), before.get(name, _NOT), now.get(name, _NOT)) for name in names
        ]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        inner = [(f"{path}[{index}]", one, other) for index, (one, other) in enumerate(zip(before, now))]
    else:
        return [f"{path}: {_short(before)} -> {_short(now)}"]
    return [line for where, one, other in inner for line in differences(one, other, where)]


class _Absent:
    def __repr__(self) -> str:
        return "not set"


_NOT = _Absent()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def record_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings that `check_settings` compares with."""
    write_json(folder / "settings.json", settings)

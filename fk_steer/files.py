"""Files that a long run leaves behind: whole or absent, and never mixed up with another run's."""

from __future__ import annotations

import io
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
            error.errno, f"Cannot write ({error.strerror}); what was finished before is kept. The file", str(path)
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


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


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Make sure that a folder, if it holds results, was made with these settings.

    Raises:
        ValueError: naming the first setting that differs.
    """
    record = folder / "settings.json"
    if not record.exists():
        return
    before = read_record(record, dict)
    for name in settings:
        if before.get(name) != settings[name]:
            raise ValueError(
                f"{folder} was made with another `{name}` ({before.get(name)!r} instead of {settings[name]!r}). "
                "Choose another folder."
            )


def record_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings that `check_settings` compares with."""
    write_json(folder / "settings.json", settings)

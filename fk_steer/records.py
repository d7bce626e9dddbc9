"""Files that say what a run did: reading them, what is wrong with them, and setting aside what cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from llava_reward_guide.texts import read_text, text_lines


Kind = TypeVar("Kind")

ASIDE = ".unreadable"
"""Folder, in that of a run, that `set_aside` moves files to."""


class UnreadableFile(ValueError):
    """A file of a run that does not hold what it should.

    Args:
        path: of the file.
        problem: what is wrong with it.
        others: how many further ones there are.
    """

    def __init__(self, path: Path, problem: str, others: int = 0) -> None:
        self.path, self.problem, self.others = Path(path), problem, others
        more = f" So are {others} more files." if others else ""
        super().__init__(
            f"{path} is unreadable: {problem}.{more} Delete it to have it made anew, or choose another folder. "
            "`generate`, `bench` and `compare` set it aside and make it anew with --repair."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # From worker processes.
        return type(self), (self.path, self.problem, self.others)


class Misplaced(UnreadableFile):
    """A file that can be read and is of another prompt, sample or run."""


def read_record(path: Path, parse: Callable[[dict[str, Any]], Kind]) -> Kind:
    """What `parse` makes of the JSON object in a file.

    Raises:
        FileNotFoundError: if there is no such file.
        PermissionError: if it may not be read.
        UnreadableFile: if it is no file, holds no JSON object, or not what `parse` needs.
    """
    return _read(path, lambda text: parse(_object(json.loads(text))))


def read_lines(path: Path, parse: Callable[[dict[str, Any]], Kind]) -> list[Kind]:
    """The same for a file with a JSON object a line."""
    return _read(path, lambda text: [parse(_object(json.loads(line))) for _, line in text_lines(text)])


def check_webp(path: Path) -> None:
    """Make sure that all frames of a WebP can be read.

    Raises:
        FileNotFoundError, PermissionError, UnreadableFile: as `read_record`.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=["WEBP"]) as image:
            for number in range(getattr(image, "n_frames", 1)):
                image.seek(number)
                image.load()
    except (FileNotFoundError, PermissionError):
        raise
    # Pillow's errors for broken files are of many kinds.
    except Exception as error:
        raise UnreadableFile(path, _problem(path, "no whole WebP image")) from error


def check_png(path: Path) -> None:
    """Make sure that a file is a whole PNG, by its checksums, without decoding it.

    Raises:
        FileNotFoundError, PermissionError, UnreadableFile: as `read_record`.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()
    except (FileNotFoundError, PermissionError):
        raise
    # Pillow's errors for broken files are of many kinds.
    except Exception as error:
        raise UnreadableFile(path, _problem(path, "no whole PNG image")) from error


def set_aside(path: Path, folder: Path) -> None:
    """Move a file or folder within `folder` to `ASIDE` there, over what was set aside from its place before."""
    name = path.relative_to(folder)
    target = folder / ASIDE / name
    number = 0
    while target.exists():
        number += 1
        target = folder / ASIDE / f"{name}.{number}"
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)


def check_folder(path: Path) -> None:
    """Make sure that no file stands in the place of a folder."""
    if path.exists() and not path.is_dir():
        raise UnreadableFile(path, "a file in the place of a folder")


def unreadable(looks: Iterable[tuple[Path, Callable[[Path], object]]]) -> list[UnreadableFile]:
    """What is wrong with files, given with what looks at each; those that are not there are left out."""
    found = []
    for path, look in looks:
        try:
            look(path)
        except UnreadableFile as error:
            found.append(error)
        except (FileNotFoundError, NotADirectoryError):
            pass
    return found


def say_set_aside(problem: UnreadableFile) -> None:
    """Tell the user of a file that is made anew."""
    from .console import console  # of the command line, which is all that sets aside

    console.print(f"set aside {problem.path}: {problem.problem}", markup=False, highlight=False, soft_wrap=True)


def _read(path: Path, parse: Callable[[str], Kind]) -> Kind:
    try:
        text = read_text(path)
    except (FileNotFoundError, PermissionError):
        raise
    except OSError as error:
        raise UnreadableFile(path, _problem(path, error.strerror or str(error))) from error
    except ValueError as error:
        raise UnreadableFile(path, "not text in UTF-8") from error
    try:
        return parse(text)
    except RecursionError as error:
        raise UnreadableFile(path, "nested too deeply") from error
    except json.JSONDecodeError as error:
        raise UnreadableFile(path, _problem(path, f"no JSON ({error})")) from error
    except KeyError as error:
        raise UnreadableFile(path, f"{error} is missing") from error
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise UnreadableFile(path, f"not what it should hold ({error})") from error


def _problem(path: Path, otherwise: str) -> str:
    if path.is_dir():
        return "a folder in the place of a file"
    if path.is_file() and not path.stat().st_size:
        return "empty"
    return otherwise


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"expected a JSON object, got {type(value).__name__}")
    return value

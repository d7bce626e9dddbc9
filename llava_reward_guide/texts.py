"""Reading the text files that people have: any Unicode encoding that says which it is, any line ends."""

from __future__ import annotations

import codecs
import csv
import io
import json
from pathlib import Path
from typing import Any


_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    # Before those of UTF-16, with which they begin.
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
TABLES = (".csv", ".tsv")
"""How the names of files end that `read_table` reads."""


def read_text(path: str | Path) -> str:
    """A text file in UTF-8, or with a byte order mark in UTF-8, UTF-16 or UTF-32, as spreadsheets and editors on
    Windows write it; without the mark, every line end as a newline.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no such text, naming file and line.
    """
    data = Path(path).read_bytes()
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(
            f"Expected '{path}' to be text in UTF-8, but line {line} is not: {error.reason}. Save it as UTF-8."
        ) from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if (place := text.find("\0")) >= 0:
        line = text.count("\n", 0, place) + 1
        raise ValueError(
            f"Expected '{path}' to be text in UTF-8, but line {line} holds a NUL: it is damaged, no text, or UTF-16 "
            "without a byte order mark. Save it as UTF-8."
        )
    return text


def text_lines(text: str) -> list[tuple[int, str]]:
    """The lines of a text that are not blank and their numbers from 1. Unlike `str.splitlines` this leaves alone what
    may stand within a JSON text or a prompt, such as U+2028."""
    return [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def read_json(path: str | Path) -> Any:
    """A JSON file.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not JSON, naming the file.
    """
    return _parsed(read_text(path), str(path))


def read_json_lines(path: str | Path) -> list[tuple[int, Any]]:
    """A file of a JSON text a line, with the numbers of the lines from 1; blank ones are left out.

    Raises:
        OSError: if it cannot be read.
        ValueError: for a line that is not JSON, naming file and line.
    """
    return [(number, _parsed(line, f"line {number} of {path}")) for number, line in text_lines(read_text(path))]


def read_table(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a CSV file with a header, by their columns. Its columns are divided by tabs if there are any in the
    header, else by commas, else by semicolons, as spreadsheets write them in some languages. Blank lines are left out.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no such table, naming file and line.
    """
    text = read_text(path).lstrip("\n")
    header = text.partition("\n")[0]
    delimiter = next((sign for sign in "\t,;" if sign in header), ",")
    # A cell may be of any length.
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        return list(rows)
    except csv.Error as error:
        raise ValueError(f"Expected '{path}' to be CSV, but line {rows.line_num} is not: {error}.") from None


def read_yaml(path: str | Path) -> Any:
    """A YAML file.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not YAML, naming the file.
    """
    import yaml

    try:
        return yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"Expected '{path}' to be YAML, but it is not: {' '.join(str(error).split())}.") from None


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"Expected {where} to be JSON, but it is nested too deeply.") from None
    except ValueError as error:
        raise ValueError(f"Expected {where} to be JSON, but it is not: {error}.") from None

"""CSV that is safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any


_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
"""What a spreadsheet may take for a formula (OWASP, CSV injection), after any apostrophes of ours."""


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV. Texts that a spreadsheet would take for a formula get an apostrophe, see `unguarded`; numbers stay
    as they are, negative ones and those given as texts too."""
    return "".join(_line([guarded(cell) for cell in row]) for row in rows)


def guarded(cell: Any) -> Any:
    """A cell as `csv_text` writes it."""
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) and not _is_number(cell) else cell


def unguarded(text: str) -> str:
    """Inverse of `guarded`, for texts."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def _line(row: list[Any]) -> str:
    buffer = io.StringIO()
    # The writer quotes what its line end consists of, a lone carriage return too.
    csv.writer(buffer, lineterminator="\r\n").writerow(row)
    return buffer.getvalue().removesuffix("\r\n") + "\n"


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|nan)", text, re.I) is not None

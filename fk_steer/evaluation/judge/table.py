"""The table of the rewards that were tested in one folder."""

from __future__ import annotations

from pathlib import Path

from ...console import show_on_its_side
from ...csvs import csv_text
from ...files import write_atomically, write_json
from ...records import read_record
from ..statistics import plus_minus


def write_table(out: Path) -> None:
    """Write the results of all rewards in a folder as table.csv and table.json, and show them."""
    results = {path.parent.name: read_record(path, dict) for path in sorted(out.glob("*/results.json"))}
    counts = ("judgements", "skipped")
    names = list(dict.fromkeys(name for result in results.values() for name in result["statistics"]))
    lines = [["reward", *names, *counts, "seconds per image"]]
    for label, result in results.items():
        cells = [_cell(name, result["statistics"].get(name)) for name in names]
        lines.append([label, *cells, *(str(result[name]) for name in counts), f"{result['seconds per image']:.4g}"])
    write_atomically(out / "table.csv", csv_text(lines).encode())
    write_json(out / "table.json", results)
    show_on_its_side(lines)


def _cell(name: str, statistic: dict[str, float | None] | None) -> str:
    if statistic is None:
        return ""
    value, error = statistic["value"], statistic["standard error"]
    assert value is not None
    # Thresholds are on the reward's own scale; everything else is in per cent.
    if "threshold" in name:
        return f"{value:.4g}"
    return plus_minus((value, error), ".1f")

"""The tables of a study: for a terminal, LaTeX and CSV."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import rich.table
from rich.markup import escape

from ...csvs import csv_text
from ..statistics import Estimate, plus_minus
from .results import COSTS, OVERALL, TASKS, CellResults, Value


TASK_TITLES = {
    "color_attr": "attribute binding",
    "counting": "counting",
    "position": "position",
    "colors": "colors",
    "two_object": "two objects",
    "single_object": "single object",
    OVERALL: "overall",
}
PLACES = ("prompts", "model")
COST_TITLES = {"nfe": "denoiser rows", "reward_calls": "images scored", "seconds": "seconds"}


@dataclass(frozen=True)
class Row:
    """A guide.

    Attributes:
        block: prompts and model; rows of a block are compared with one another.
        guide: its label.
        cells: a value per column; None where there is none.
    """

    block: tuple[str, str]
    guide: str
    cells: tuple[Value | None, ...]


@dataclass(frozen=True)
class Table:
    """
    Attributes:
        name: for files.
        title: what it shows.
        columns: (name, title) each.
        rows: block by block.
        differences: whether the differences to the baseline are shown in place of the means.
        digits: of the numbers.
    """

    name: str
    title: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    differences: bool = False
    digits: int = 3

    @property
    def places(self) -> tuple[int, ...]:
        """Which of prompts (0) and model (1) tell rows apart."""
        return tuple(index for index in (0, 1) if len({row.block[index] for row in self.rows}) > 1)

    def shown(self, value: Value) -> Estimate | None:
        """What of a value is shown."""
        return value.difference if self.differences else (value.mean, value.error)

    def mark(self, row: Row, rank: int | None) -> int | None:
        """1 for the best of a block, 2 for the second best of more than two; None for others and in tables of
        differences."""
        if self.differences or rank not in (1, 2):
            return None
        return rank if rank == 1 or sum(other.block == row.block for other in self.rows) > 2 else None


def tables(results: Sequence[CellResults], baseline: str | None) -> list[Table]:
    """Accuracy by task, means by metric, their differences to the baseline, and costs; those that have rows."""
    accuracies = list(dict.fromkeys(task for one in results for task in one.accuracy))
    tasks = [task for task in TASKS if task in accuracies]
    tasks += [task for task in accuracies if task not in (*tasks, OVERALL)] + [OVERALL]
    metrics = list(dict.fromkeys(label for one in results for label in one.metrics))
    kinds = [
        ("accuracy", "GenEval accuracy by task", [(task, TASK_TITLES.get(task, task)) for task in tasks]),
        ("metrics", "Metric means by guide", [(label, label) for label in metrics]),
    ]
    made = []
    for name, title, columns in kinds:
        rows = [
            Row(
                (one.cell.prompts, one.cell.model), one.cell.guide, tuple(getattr(one, name).get(c) for c, _ in columns)
            )
            for one in results
            if getattr(one, name)
        ]
        made.append(Table(name, title, tuple(columns), tuple(rows)))
        steered = tuple(row for row in rows if any(value and value.difference for value in row.cells))
        title += f": difference to {baseline}"
        made.append(Table(f"{name}-differences", title, tuple(columns), steered, differences=True))
    costs = tuple(
        Row((one.cell.prompts, one.cell.model), one.cell.guide, tuple(one.costs[name] for name in COSTS))
        for one in results
        if one.costs
    )
    made.append(Table("costs", "Cost of an image", tuple(COST_TITLES.items()), costs, digits=1))
    return [table for table in made if table.rows]


def number(estimate: Estimate, digits: int, signed: bool = False) -> str:
    """'0.123 ± 0.004'."""
    return plus_minus(estimate, f"{'+' if signed else ''}.{digits}f")


def clear(estimate: Estimate) -> bool:
    """Whether a difference is more than two standard errors from zero. Few prompts that all differ alike have an error
    of 0, which says nothing of others."""
    mean, error = estimate
    return error is not None and error > 0 and abs(mean) > 2 * error


def for_terminal(table: Table) -> rich.table.Table:
    """The best of a block bold, the second best underlined, a metric that guided itself with a dagger; differences of
    more than two standard errors bold."""
    shown = rich.table.Table(title=table.title, title_justify="left", title_style="bold", box=None, padding=(0, 1))
    for place in table.places:
        shown.add_column(PLACES[place], no_wrap=True)
    shown.add_column("guide", no_wrap=True)
    for _, title in table.columns:
        shown.add_column(title.replace(" ", "\n"), justify="right", vertical="bottom", no_wrap=True)
    before = None
    for row in table.rows:
        if before not in (None, row.block):
            shown.add_section()
        cells = []
        for value in row.cells:
            estimate = None if value is None else table.shown(value)
            if value is None or estimate is None:
                cells.append("")
                continue
            text = re.sub(r"(?<!\d)0\.", ".", number(estimate, table.digits, table.differences)).replace(" ± ", "±")
            text += "†" if value.self_scored else ""
            style = {1: "bold", 2: "underline"}.get(table.mark(row, value.rank) or 0, "")
            if table.differences and clear(estimate):
                style = "bold"
            cells.append(f"[{style}]{text}[/{style}]" if style else text)
        shown.add_row(*(escape(row.block[place]) for place in table.places), escape(row.guide), *cells)
        before = row.block
    return shown


def latex(table: Table) -> str:
    """A booktabs table. The best of a block is bold, the second best underlined, a dagger marks a metric that guided
    itself; differences of more than two standard errors are bold."""
    header = [*(PLACES[place] for place in table.places), "guide", *(title for _, title in table.columns)]
    lines = [
        r"\begin{tabular}{" + "l" * (len(table.places) + 1) + "r" * len(table.columns) + "}",
        r"\toprule",
        " & ".join(map(_latex, header)) + r" \\",
    ]
    before = None
    for row in table.rows:
        if row.block != before:
            lines.append(r"\midrule")
        block = [row.block[place] if row.block != before else "" for place in table.places]
        cells = [_latex_cell(table, row, value) for value in row.cells]
        lines.append(" & ".join([*map(_latex, (*block, row.guide)), *cells]) + r" \\")
        before = row.block
    return "\n".join([f"% {table.title}", *lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex_cell(table: Table, row: Row, value: Value | None) -> str:
    estimate = None if value is None else table.shown(value)
    if value is None or estimate is None:
        return "--"
    mean, error = estimate
    text = f"{mean:{'+' if table.differences else ''}.{table.digits}f}".replace("-", "$-$").replace("+", "$+$")
    if table.differences:
        text = rf"\textbf{{{text}}}" if clear(estimate) else text
    elif mark := table.mark(row, value.rank):
        text = rf"\{'textbf' if mark == 1 else 'underline'}{{{text}}}"
    spread = "" if error is None else rf" {{\scriptsize $\pm$ {error:.{table.digits}f}}}"
    return text + (r"$^\dagger$" if value.self_scored else "") + spread


def _latex(text: str) -> str:
    for character in "&%$#_{}":
        text = text.replace(character, f"\\{character}")
    return text


def long_csv(results: Sequence[CellResults]) -> str:
    """All values, one a line; texts that a spreadsheet would take for formulas begin with an apostrophe."""
    columns = ("images", "prompts", "self_scored", "rank", "fair_rank", "file")
    rows: list[list[object]] = [
        [
            *("prompt_list", "model", "guide", "measure", "mean", "standard_error", "difference"),
            *("difference_standard_error", *columns),
        ]
    ]
    for one in results:
        for name, value in one.values().items():
            difference = value.difference or ("", "")
            row = [one.cell.prompts, one.cell.model, one.cell.guide, name, value.mean, value.error, *difference]
            rows.append([*row, *(getattr(value, column) for column in columns)])
    return csv_text(rows)

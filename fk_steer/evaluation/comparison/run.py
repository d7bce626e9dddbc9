"""A study from its configuration to its report: what `fk-steer compare` does."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ...console import console, say, show
from ...files import alone, write_atomically, write_json
from ..generation.run import is_first_process
from ..prompts import check_prompt_list
from .cells import run_study
from .report import digest, digest_of, page
from .results import CellResults, gather, to_dict
from .study import Study, read_study
from .tables import for_terminal, latex, long_csv, tables


LEGEND = (
    "± is one standard error, over prompts. Bold: the best of a column, or a difference of more than two standard "
    "errors; underlined: the second best; †: the metric is what guided, or a part of it, so it says little here."
)


def run(
    config: Mapping[str, Any],
    out: Path,
    *,
    device: str | None = None,
    processes: int = 1,
    metric_batch_size: int = 8,
    report_prompts: int = 24,
    repair: bool = False,
) -> dict[str, str]:
    """Run a study, write what it gave and print the tables.

    Args:
        config: see `read_study`.
        out: folder for everything.
        device: None for CUDA if there is a device, else the CPU.
        processes: workers that generate.
        metric_batch_size: images scored at a time by a metric.
        report_prompts: prompts of each list shown with images.
        repair: set aside what cannot be read, and make it anew.

    Returns:
        What failed -> why.

    Raises:
        FileNotFoundError: for an unknown list of prompts, before anything is made.
        ValueError: see `read_study`.
    """
    made = read_study(config)
    for given in made.prompts.values():
        check_prompt_list(str(given["prompts"]))
    with alone(out) if is_first_process() else nullcontext():
        failures = run_study(
            made, out, device=device, processes=processes, metric_batch_size=metric_batch_size, repair=repair
        )
        if not is_first_process():
            return failures
        results = _write(made, out, failures, report_prompts)
    if not results:
        say("No images were made, so there is nothing to compare.")
        return failures
    for table in tables(results, made.baseline):
        show(for_terminal(table), fixed=len(table.places) + 1)
        console.print()
    console.print(LEGEND, style="dim", highlight=False)
    console.print(f"Results in {out}: open {out / 'report.html'}", highlight=False, soft_wrap=True)
    return failures


def _write(study: Study, out: Path, failures: dict[str, str], images: int) -> list[CellResults]:
    """Write results, tables and report, unless they are there already."""
    results = gather(study, out, failures)
    if not results:
        return results
    plain = to_dict(results, study, failures)
    report = out / "report.html"
    made = [out / "results.json", out / "results.csv"]
    made += [out / "tables" / f"{table.name}.tex" for table in tables(results, study.baseline)]
    if digest_of(report) == digest(plain, images) and all(path.is_file() for path in made):
        return results
    write_json(out / "results.json", plain)
    write_atomically(out / "results.csv", long_csv(results).encode())
    for table in tables(results, study.baseline):
        write_atomically(out / "tables" / f"{table.name}.tex", latex(table).encode())
    title = "Rewards as guides"
    # Last: it says of what it was made.
    write_atomically(report, page(results, plain, out, images, title).encode())
    return results

"""Conformance of steering on the tiny components of Diffusers' own tests of its pipelines.

Every test runs in a process of its own; results are kept, and a test whose code has not changed is not run again.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from fk_steer.console import console

from .catalogue import Test, tests_of


HERE = Path(__file__).parent
TIMEOUT = 900.0
"""Seconds for a test."""
OUTCOMES = ("green", "refused", "crash", "wrong", "unbuilt")

app = typer.Typer(add_completion=False)


@app.command()
def run(
    checkout: Annotated[Path, typer.Argument(metavar="CHECKOUT", help="Take the tests of this checkout of Diffusers.")],
    only: Annotated[
        str, typer.Option(help="Run the tests that match this pattern, by path and class.", show_default="all")
    ] = "",
    jobs: Annotated[int, typer.Option(help="Run this many tests at a time.")] = 2,
    out: Annotated[Path, typer.Option(help="Keep results in this folder.")] = Path("out/pipelines"),
    again: Annotated[bool, typer.Option(help="Run tests too whose results are kept.")] = False,
    any_code: Annotated[
        bool, typer.Option(help="Take kept results of other code too, for a look at the table.")
    ] = False,
    docs: Annotated[
        Path | None, typer.Option(help="Print the table to this Markdown file.", show_default="none")
    ] = None,
) -> None:
    """Check steering on Diffusers' test components and print what was found."""
    found = tests_of(checkout)
    wanted = [test for test in found if test.left_out is None and re.search(only, test.id)]
    key = _key()
    cache = out / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    kept = {} if again else _kept(cache, wanted, None if any_code else key)
    started = time.perf_counter()
    todo = [test for test in wanted if test.id not in kept]
    for position, row in enumerate(_rows(todo, checkout, jobs), 1):
        row["key"] = key
        kept[row["test"]] = row
        _file(cache, row["test"]).write_text(json.dumps(row))
        line = f"{position}/{len(todo)} {row['outcome']:8} {row['seconds']:5.1f} s {row['test']} {_why(row)[:90]}"
        console.print(line, soft_wrap=True, markup=False)
    rows = [kept[test.id] for test in wanted if test.id in kept]
    (out / "pipelines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    console.print(f"\n{len(todo)} of {len(wanted)} tests run in {time.perf_counter() - started:.0f} s.")
    console.print(summary(rows), soft_wrap=True, markup=False)
    if docs is not None:
        docs.write_text(page(rows, found))


def _rows(tests: list[Test], checkout: Path, jobs: int) -> Iterator[dict[str, Any]]:
    """Results as they come, each from a process forked of this one, in which the libraries are loaded."""
    if not tests:
        return
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    import diffusers
    import transformers

    from . import checks  # noqa: F401
    from .cases import reach

    diffusers.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    reach(checkout)
    context = multiprocessing.get_context("fork")
    waiting, running = list(tests), dict[Any, tuple[Test, Any, float]]()
    while waiting or running:
        while waiting and len(running) < jobs:
            test = waiting.pop(0)
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(test, checkout, there))
            process.start()
            there.close()
            running[process] = (test, here, time.perf_counter())
        time.sleep(0.02)
        for process, (test, here, since) in list(running.items()):
            seconds = time.perf_counter() - since
            if here.poll():
                try:
                    row = here.recv()
                except EOFError:
                    row = _row(test, "crash", error="the process died")
            elif seconds > TIMEOUT:
                process.kill()
                row = _row(test, "crash", error=f"no end in {TIMEOUT:.0f} s")
            elif not process.is_alive():
                row = _row(test, "crash", error="the process died")
            else:
                continue
            process.join()
            del running[process]
            yield {**row, "seconds": round(seconds, 1)}


def _child(test: Test, checkout: Path, pipe: Any) -> None:
    from .cases import case_of
    from .checks import check
    from .rounding import in_double_precision

    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)
    try:
        case = case_of(test, checkout)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{'/'.join(Path(frame.filename).parts[-3:])}:{frame.lineno}"
        message = " ".join(str(error).split())[:300]
        pipe.send(_row(test, "unbuilt", error=f"{type(error).__name__}: {message} ({place})"))
        return
    try:
        found = in_double_precision(test, checkout, check(case))
        findings = {name: asdict(finding) for name, finding in found.items()}
    except Exception as error:
        pipe.send(_row(test, "crash", error="harness: " + "".join(traceback.format_exception(error))[-1500:]))
        return
    pipe.send(_row(test, outcome(findings), findings=findings, steps=case.num_steps, kind=case.kind))


def outcome(findings: dict[str, dict[str, Any]]) -> str:
    """'wrong' is what runs and is not what it should be; 'refused' is a test whose default settings are refused, before
    the loop and by a message of ours; any other error is a crash."""
    status = {name: finding["status"] for name, finding in findings.items()}
    failures = {"crash", "late"}
    if status.get("preset") in failures:
        return "crash"
    if any(found == "wrong" for name, found in status.items() if name != "x0" or status.get("preset") == "ok"):
        return "wrong"
    if failures & set(status.values()):
        return "crash"
    return "refused" if status.get("preset") == "refused" else "green"


def _row(test: Test, result: str, **more: Any) -> dict[str, Any]:
    return {"test": test.id, "pipeline": test.pipeline, "outcome": result, **more}


def _why(row: dict[str, Any]) -> str:
    if "findings" not in row:
        return str(row.get("error", ""))
    told = ("refused",) if row["outcome"] in ("green", "refused") else ("wrong", "crash", "late")
    return "; ".join(
        f"{name}: {finding['detail']}" + (f" ({finding['value']:.2g})" if finding["value"] is not None else "")
        for name, finding in row["findings"].items()
        if finding["status"] in told
    )


def summary(rows: list[dict[str, Any]]) -> str:
    """Counts, and the causes of what is not green, most frequent first."""
    counts = Counter(row["outcome"] for row in rows)
    lines = [", ".join(f"{counts[name]} {name}" for name in OUTCOMES if counts[name])]
    causes: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        if "findings" not in row:
            causes[row["outcome"], row.get("error", "")[:200]].append(row["test"])
            continue
        seen = set()
        for name, finding in row["findings"].items():
            status = finding["status"]
            if status in ("ok", "n/a"):
                continue
            label = f"{name}: {finding['detail']}" if status == "wrong" else f"{finding['detail']} [{finding['place']}]"
            label = re.sub(r"\w+(Pipeline|Wrapper)\b", "…", label)
            label = re.sub(r"\b\d+(\.\d+)?(e-?\d+)?\b", "#", label)[:260]
            if (status, label) not in seen:
                seen.add((status, label))
                causes[status, label].append(row["test"])
    for (status, label), tests in sorted(causes.items(), key=lambda item: (item[0][0], -len(item[1]))):
        lines.append(f"{len(tests):4} {status:8} {label}\n{'':14}{', '.join(_short(test) for test in tests[:6])}")
    return "\n".join(lines)


def _short(test: str) -> str:
    return test.split("/")[-1].replace(".py::", ":").removeprefix("test_")


def page(rows: list[dict[str, Any]], found: list[Test]) -> str:
    """docs/pipelines.md."""
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        before = best.get(row["pipeline"])
        if before is None or OUTCOMES.index(row["outcome"]) > OUTCOMES.index(before["outcome"]):
            best[row["pipeline"]] = row
    supported = sum(row["outcome"] == "green" for row in best.values())
    lines = [
        "# Pipelines",
        "",
        f"What `steer` does on the pipelines of Diffusers, measured on the tiny components of Diffusers' own tests by "
        f"[benchmarks/pipelines](../benchmarks/pipelines): {len(rows)} tests of {len(best)} classes, {supported} of "
        "which steer with every check green. The others are refused before the loop, with the message in the table, "
        "or the table says what is wrong. With the sampler of some tests, which adds no noise, particles can be pruned "
        "and not copied; with another they can. A class with several tests has the worst of their results.",
        "",
        "```bash",
        "OMP_NUM_THREADS=1 python -m benchmarks.pipelines.run CHECKOUT --docs docs/pipelines.md  # of Diffusers",
        "```",
        "",
        "| class | kind | steers |",
        "|---|---|---|",
    ]
    for name, row in sorted(best.items()):
        lines.append(f"| {name} | {row.get('kind', '')} | {_cell(row)} |")
    lines += ["", "## Left out", "", "| class | why |", "|---|---|"]
    lines += [f"| {test.pipeline} | {test.left_out} |" for test in found if test.left_out is not None]
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any]) -> str:
    """What the table says of a test: each message once, without the kind of error."""
    if row["outcome"] == "unbuilt":
        return f"not tried: {row['error']}".replace("|", "\\|")
    if row["outcome"] in ("crash", "wrong"):
        return f"no: {_why(row)}".replace("|", "\\|")[:300]
    told = {
        name: re.sub(r"^\w+Error: | after the first resampling.*", "", finding["detail"])
        for name, finding in row["findings"].items()
        if finding["status"] not in ("ok", "n/a") or (name == "preset" and finding["detail"])
    }
    messages = {message: name for name, message in reversed(told.items())}
    if row["outcome"] != "green":
        return f"no: {next(reversed(messages))}".replace("|", "\\|")
    notes = (message if name == "preset" else f"{_OF[name]} no: {message}" for message, name in messages.items())
    return "; ".join(["yes", *notes]).replace("|", "\\|")


_OF = defaultdict(lambda: "in a check", {"neighbours": "several prompts", "chunks": "one row at a time"})
"""What checks are about."""


def _kept(cache: Path, tests: list[Test], key: str | None) -> dict[str, dict[str, Any]]:
    kept = {}
    for test in tests:
        file = _file(cache, test.id)
        row = json.loads(file.read_text()) if file.exists() else None
        if row is not None and key in (None, row["key"]):
            kept[test.id] = row
    return kept


def _file(cache: Path, test: str) -> Path:
    return cache / (re.sub(r"\W+", "-", test) + ".json")


def _key() -> str:
    """Of the code: the package's, these scripts' and the libraries'."""
    import fk_steer

    digest = hashlib.sha256(" ".join(map(version, ("diffusers", "transformers", "torch"))).encode())
    for folder in (Path(fk_steer.__file__).parent, HERE):
        for file in sorted(folder.rglob("*.py")):
            if file != Path(__file__):  # which runs, and changes no result
                digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    app()

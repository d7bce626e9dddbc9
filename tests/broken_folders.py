"""Folders of finished runs, broken in ways that disks, people and programs break them."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from typer.testing import CliRunner

from fk_steer.cli import app


COMMANDS = {
    "generate": ["generate", "a red circle", "a blue square", "--model", "shapes", "--reward", "clip-score"]
    + ["--particles", "2", "--steps", "2", "--compare"],
    "bench": ["bench", "run", "--model", "shapes", "--prompts", "shapes", "--reward", "clip-score", "--limit", "2"]
    + ["--samples-per-prompt", "2", "--particles", "2", "--steps", "2", "--batch-size", "2"],
    "compare": ["compare", "--rewards", "none,clip-score", "--model", "shapes", "--prompts", "shapes", "--limit", "1"]
    + ["--samples", "1", "--particles", "2", "--steps", "2", "--metric", "clip-score", "--report-prompts", "1"],
}


def run(kind, out, *more):
    """(exit status, output) of a command on a folder; what it lets escape is raised."""
    result = CliRunner().invoke(app, [*COMMANDS[kind], "--out", str(out), "--device", "cpu", *more])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output, result.output
    return result.exit_code, result.output


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def flip(path, rng, others):
    content = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 4)):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def truncate(path, rng, others):
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def empty(path, rng, others):
    path.write_bytes(b"")


def delete(path, rng, others):
    path.unlink()


def swap(path, rng, others):
    other = rng.choice(others)
    own = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(own)


def binary(path, rng, others):
    path.write_bytes(rng.randbytes(64))


def other_json(path, rng, others):
    path.write_text(rng.choice(["[]", "{}", "null", "3", '"text"', '{"a": ' * 3000, "[1, 2"]))


def directory(path, rng, others):
    path.unlink()
    path.mkdir()


MUTATIONS = (flip, truncate, empty, delete, swap, binary, other_json, directory)


def mutate(folder, rng):
    """Break a file in a folder.

    Returns:
        What was done, and the names of the files concerned.
    """
    names = list(files(folder))
    name = rng.choice(names)
    path, mutation = folder / name, rng.choice(MUTATIONS)
    same = [folder / other for other in names if other != name and Path(other).suffix == path.suffix]
    other = [rng.choice(same or [folder / one for one in names if one != name])]
    mutation(path, rng, other)
    touched = [name, other[0].relative_to(folder).as_posix()] if mutation is swap else [name]
    return f"{mutation.__name__} {' '.join(touched)}", touched


DERIVED = ("contact_sheet.png", "report.html", "results.json", "results.csv", ".tex", "grid.png", "summary.json")
DERIVED += ("summary.txt",)
"""What is made of the rest, and made anew when the rest is."""


def fuzz(whole, kind, scratch, seed):
    """Break a copy of a finished run, run it again, and then with --repair.

    Returns:
        What was done and how it ended.
    """
    rng = random.Random(f"{kind} {seed}")
    folder = scratch / f"{kind}-{seed}"
    shutil.copytree(whole, folder)
    what, touched = mutate(folder, rng)
    broken = files(folder)
    first, output = run(kind, folder)
    flat = output.replace("\n", "")
    if first:
        named = [*touched, *(Path(name).parent.as_posix() for name in touched)]
        assert first == 1, (what, output)
        assert any(str(folder / name) in flat for name in named) or str(folder) in flat, (what, output)
    intact = {
        name: content
        for name, content in broken.items()
        if name not in touched and not name.endswith(DERIVED) and "/evaluation/" not in name and "/panel/" not in name
    }
    now = files(folder)
    assert not [name for name in intact if now.get(name) != intact[name]], (what, "without repair")
    second, output = run(kind, folder, "--repair")
    now = files(folder)
    changed = [name for name in intact if now.get(name) != intact[name]]
    # A record goes with its image: another image, another record.
    assert not [name for name in changed if "/records/" not in name], (what, changed, output)
    if second:
        assert second == 1 and ("with another" in output or "not of this" in output), (what, output)
    else:
        assert set(files(whole)) <= set(now), (what, set(files(whole)) - set(now))
    shutil.rmtree(folder)
    return f"{kind} {seed}: {what}: {first}, {second}"

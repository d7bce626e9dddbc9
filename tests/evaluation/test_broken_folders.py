from __future__ import annotations

import csv
import io
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from broken_folders import COMMANDS, files, fuzz, run
from filelock import FileLock

from fk_steer.csvs import csv_text, unguarded
from fk_steer.evaluation.comparison.figures import accuracy_by_cost, interval, reach
from fk_steer.evaluation.comparison.results import OVERALL, CellResults, Value
from fk_steer.evaluation.comparison.study import Cell
from fk_steer.evaluation.generation.plan import GenerationSettings


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Command -> a run that nothing happened to."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    for kind in COMMANDS:
        status, output = run(kind, folder / kind)
        assert status == 0, output
    return folder


@pytest.mark.parametrize("kind", COMMANDS)
@pytest.mark.parametrize("seed", range(3))
def test_broken_files_are_named_and_repaired(whole, tmp_path, kind, seed):
    fuzz(whole / kind, kind, tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 203))
def test_two_hundred_broken_folders(whole, tmp_path, seed):
    kind = list(COMMANDS)[seed % len(COMMANDS)]
    fuzz(whole / kind, kind, tmp_path, seed)


RECORDS = {
    "generate": ("settings.json", "000/trace.json", "000/00.png"),
    "bench": ("settings.json", "00000/records/00000.json", "00000/traces/00001.json", "00000/samples/00000.png"),
}


@pytest.mark.parametrize("kind, name", [(kind, name) for kind, names in RECORDS.items() for name in names])
@pytest.mark.parametrize("content", [b"", b"\x80\xff\x00", b"[1, 2"])
def test_the_message_names_the_file_and_the_remedy(whole, tmp_path, kind, name, content):
    out = tmp_path / "out"
    shutil.copytree(whole / kind, out)
    (out / name).write_bytes(content)
    status, output = run(kind, out)
    flat = output.replace("\n", "")
    assert status == 1
    assert str(out / name) in flat
    assert "--repair" in flat
    # Nothing was touched.
    assert (out / name).read_bytes() == content


def test_an_image_of_another_sample_is_found(whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole / "bench", out)
    first, second = (out / "00000" / "samples" / f"{number:05d}.png" for number in (0, 1))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    status, output = run("bench", out)
    assert status == 1 and str(first) in output.replace("\n", "")
    assert run("bench", out, "--repair")[0] == 0
    assert first.read_bytes() == content


# CSV


def test_texts_are_no_formulas():
    texts = ["=1+1", "+a", "-a", "@a", "\ta", "\ra", "'=a", "'a", "a=b", "-", "\N{FULLWIDTH EQUALS SIGN}1"]
    text = csv_text([texts, [-0.5, "-0.5", "+1e-3", "-inf", None]])
    cells, numbers = csv.reader(io.StringIO(text, newline=""))
    assert not [cell for cell in cells if cell[0] in "=+-@\t\r\N{FULLWIDTH EQUALS SIGN}"]
    assert [unguarded(cell) for cell in cells] == texts
    assert numbers == ["-0.5", "-0.5", "+1e-3", "-inf", ""]


# Plots


def cell(guide, accuracy, nfe, error=0.0):
    settings = GenerationSettings(model="m", reward=None)
    values = [Value(mean, error, 1, 1, "f") for mean in (accuracy, nfe)]
    return CellResults(Cell("p", "m", guide, settings, False), [], {OVERALL: values[0]}, {}, {"nfe": values[1]})


@pytest.mark.parametrize("accuracy", [0.0, 0.25, 0.5, 0.7, 1.0])
def test_equal_accuracies_stand_on_one_line(accuracy):
    svg = accuracy_by_cost([cell("a", accuracy, 50.0), cell("b", accuracy, 200.0)], ["a", "b"])
    heights = {part.split('"')[0] for part in svg.split('cy="')[1:]}
    assert len(heights) == 1 and 12 < float(heights.pop()) < 256


@pytest.mark.parametrize("odd", [0.0, -1.0, math.nan, math.inf])
def test_points_without_a_place_are_left_out(odd):
    good = [cell("a", 0.5, 50.0), cell("b", 0.5, 200.0, math.nan)]
    for bad in (cell("c", 0.5, odd), cell("c", math.nan, 100.0), cell("c", math.inf, 100.0)):
        svg = accuracy_by_cost([*good, bad], ["a", "b", "c"])
        assert svg.count("<circle") == 2 and "nan" not in svg and "inf" not in svg
    assert accuracy_by_cost(good[:1], ["a"]) == accuracy_by_cost([], []) == ""


def test_intervals_of_nothing():
    assert reach([(math.nan, 1.0), (0.5, None)]) == 0.5
    assert interval((math.nan, None), 1.0) == ""
    assert "nan" not in interval((0.0, math.nan), 0.0)


# Neighbours


def test_two_commands_on_one_folder(tmp_path):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"):
        status, output = run("generate", tmp_path / "out")
    assert status == 1
    assert f"Another command is at work in {tmp_path / 'out'}" in output.replace("\n", "")
    # A lock that a dead process left is none.
    assert run("generate", tmp_path / "out")[0] == 0


def started(kind, out, **options):
    command = [sys.executable, "-m", "fk_steer", *COMMANDS[kind], "--out", str(out), "--device", "cpu"]
    # Whoever runs the tests in the background has them ignore SIGINT, which would be handed on.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [*command, "--steps", "400"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
        )
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kind", COMMANDS)
def test_signals_end_commands_alike(tmp_path, kind, number):
    process = started(kind, tmp_path / "out")
    while not list((tmp_path / "out").rglob("settings.json")) and process.poll() is None:
        time.sleep(0.05)
    os.kill(process.pid, number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    assert f"stopped by {number.name}" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_disk_that_takes_no_more(tmp_path, kind):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))

    process = started(kind, tmp_path / "out", preexec_fn=limit)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert "Cannot write" in output and str(tmp_path / "out") in output
    assert "Traceback" not in output


# --check


def test_check_compares_what_is_reproducible(whole, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(whole / "compare", again)
    for record in again.rglob("records/*.json"):
        values = json.loads(record.read_text())
        record.write_text(json.dumps({**values, "seconds": values["seconds"] + 1.0}))
    status, output = run("compare", again, "--check", str(whole / "compare"))
    assert status == 0 and "agree" in output
    (record,) = again.glob("*/*/clip-score/*/records/*.json")
    values = json.loads(record.read_text())
    record.write_text(json.dumps({**values, "reward": 7.0}))
    before = files(again)
    status, output = run("compare", again, "--check", str(whole / "compare"))
    assert status == 1
    assert f"{record.relative_to(again)}: reward: 7.0 and" in output.replace("\n", "")
    assert files(again) == before

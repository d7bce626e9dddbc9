"""Generation runs in processes of their own, to be killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time

import torch
from PIL import Image

from fk_steer.evaluation.generation.run import GenerationSettings, generate
from fk_steer.evaluation.generation.workers import end_on_sigterm


SETTINGS = GenerationSettings(
    "shapes", "shapes", limit=4, samples_per_prompt=2, steps=3, particles=2, batch_size=3, seeds=(0,)
)
"""Two calls per prompt, of two samples each and one; seconds in all."""


def contents(folder):
    """Relative path -> content of everything in a folder, hidden files and folders included; records without what the
    time tells."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found[str(path.relative_to(folder))] = path.read_bytes()
        if path.parent.name == "records":
            record = json.loads(path.read_text())
            assert record.pop("seconds") > 0
            found[str(path.relative_to(folder))] = record
    return found


def assert_whole(folder):
    """Whatever is in a folder under its final name can be read."""
    for path in folder.rglob("*"):
        if path.suffix == ".png":
            Image.open(path).load()
        elif path.suffix in (".json", ".jsonl"):
            json.loads(path.read_text())


def in_process(settings, out):
    """A process that makes the run; returns when it has begun."""
    # Forked from a process that has imported everything, once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["generation_runs", "fk_steer.evaluation.generation.sampling"])
    begun = context.Event()
    process = context.Process(target=_run, args=(settings, out, begun))
    process.start()
    assert begun.wait(120)
    return process


def _run(settings, out, begun):
    torch.set_num_threads(1)
    end_on_sigterm()
    begun.set()
    generate(settings, out, device="cpu")


def kill_often(settings, out, kills, seed):
    """Kill a run so many times, by SIGKILL and SIGTERM, while it computes and while it writes.

    Returns:
        Files there after each kill.
    """
    rng, numbers = random.Random(seed), []
    while len(numbers) < kills:
        process = in_process(settings, out)
        before, more = len(list(out.rglob("*.*"))), rng.randint(0, 3)
        # At once, or some files later, and perhaps in the middle of a call.
        while process.is_alive() and len(list(out.rglob("*.*"))) < before + more:
            time.sleep(0.001)
        time.sleep(rng.choice([0.0, 0.0, rng.uniform(0.0, 0.3)]))
        assert process.is_alive(), "the run was over before it had been killed often enough"
        chosen = rng.choice([signal.SIGKILL, signal.SIGTERM])
        os.kill(process.pid, chosen)
        process.join()
        assert process.exitcode == (-signal.SIGKILL if chosen == signal.SIGKILL else 128 + signal.SIGTERM)
        assert_whole(out)
        if chosen == signal.SIGTERM:
            assert not [path for path in out.rglob(".*.tmp") if f".{process.pid}." in path.name]
        numbers.append(len([path for path in out.rglob("*/*.*") if not path.name.startswith(".")]))
    return numbers

"""Workers of a generation run: one loop for any number of processes, here or elsewhere."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
import traceback
import warnings
from multiprocessing import connection, get_context, parent_process
from types import FrameType
from typing import Any

import torch

from ...rewards.loading import default_device
from ..asked import asked_by, record_asked
from .folder import Progress, RunFolder


POLL_SECONDS = 0.5


def work(folder: RunFolder, rank: int, world: int, device: str | None, progress: Progress) -> None:
    """Make what is missing and nobody else is at; returns when the run is complete.

    Args:
        folder: of the run.
        rank: of this worker. Workers begin at different shares and then help out with what is left, also by others
            that were lost.
        world: number of workers; only for where to begin.
        device: see `generate`; 'cuda' is a device in turn.
        progress: updated after each call.
    """
    plan, sampler = folder.plan, None
    progress.update()
    while missing := folder.missing_shares():
        worked = False
        for number in sorted(missing, key=lambda number: ((number - rank) % world, number)):
            with folder.share(number) as taken:
                if not taken:
                    continue
                worked = True
                for samples in plan.calls(plan.shares[number]):
                    # A call is always made as a whole, so that an image does not depend on what was there before.
                    if not folder.has(samples):
                        if sampler is None:
                            from .sampling import Sampler

                            sampler = Sampler(plan, device_of(rank, device))
                            record_asked(folder.path, asked_by(sampler.reward))
                        for sample, made in zip(samples, sampler(samples)):
                            folder.write(sample, *made)
                        progress.update()
                for prompt in plan.shares[number]:
                    folder.finish(prompt)
        if not worked:
            time.sleep(POLL_SECONDS)
            progress.update()


def device_of(rank: int, device: str | None) -> torch.device:
    """The device of a worker: CUDA devices are taken in turn unless one is given by its number."""
    chosen = default_device(device)
    if chosen.type == "cuda" and chosen.index is None:
        return torch.device("cuda", rank % torch.cuda.device_count())
    return chosen


def run_processes(folder: RunFolder, processes: int, device: str | None, progress: Progress) -> None:
    """`work` in processes of their own. What a lost one was at is taken over by the others.

    Raises:
        Exception: what a worker raised; the others are stopped.
        RuntimeError: if all were lost.
    """
    context = get_context("spawn")
    workers: dict[Any, connection.Connection] = {}
    lost: list[str] = []
    try:
        for rank in range(processes):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_worker, args=(folder, rank, processes, device, sender))
            process.start()
            # The worker's end is the only one left open, so that it closes with the worker.
            sender.close()
            workers[process] = receiver
        while workers:
            # A worker with more to say than a pipe holds does not end before it is heard.
            waiting = [end for process, receiver in workers.items() for end in (process.sentinel, receiver)]
            ended = connection.wait(waiting, POLL_SECONDS)
            progress.update()
            for process in [one for one, receiver in workers.items() if one.sentinel in ended or receiver in ended]:
                receiver = workers.pop(process)
                error, heard = None, True
                try:
                    error = receiver.recv()
                except (EOFError, OSError):
                    heard = False
                process.join()
                if not heard:
                    lost.append(_death(process.exitcode))
                elif error is not None:
                    raise error
    finally:
        for process in workers:
            process.terminate()
        for process in workers:
            process.join()
    if folder.missing_shares():
        raise RuntimeError(
            f"All {processes} workers were lost ({', '.join(lost)}). What they finished is in {folder.path}; run again "
            "to go on. Workers killed by SIGKILL often ran out of memory: lower the batch size."
        )
    if lost:
        warnings.warn(f"Workers were lost ({', '.join(lost)}); the others took over.", stacklevel=2)


def _death(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    return f"exit status {exit_code}"


def _worker(folder: RunFolder, rank: int, world: int, device: str | None, sender: connection.Connection) -> None:
    _end_with_parent()
    end_on_sigterm()
    # The parent sees to it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if device_of(rank, device).type == "cpu":
        torch.set_num_threads(1)
    try:
        work(folder, rank, world, device, Progress(folder, lambda done, total: None))
    except Exception as error:
        if not isinstance(error, (ValueError, OSError, ImportError)):
            traceback.print_exc()
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = RuntimeError(f"{type(error).__name__}: {error}")
        sender.send(error)
    else:
        sender.send(None)


def _end_with_parent() -> None:
    """End this process when its parent does, however that ends."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_on_sigterm() -> None:
    """Let SIGTERM end this process as an exception does, so that what it was writing is cleaned up."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)

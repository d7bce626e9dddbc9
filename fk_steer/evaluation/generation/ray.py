"""Workers of a generation run on a Ray cluster. They compute, the driver writes: no folder has to be shared."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Sequence
from typing import Any

import torch

from llava_reward_guide.packages import require

from ..asked import asked_by, record_asked
from .folder import Progress, RunFolder
from .plan import Plan, Sample


RETRIES = 3
"""How often a lost worker is replaced, and its call made again."""


class RayWorker:
    """Makes samples, wherever it is.

    Args:
        plan: of the run.
        device: of its models.
    """

    def __init__(self, plan: Plan, device: str) -> None:
        self.plan, self.device = plan, device
        self.sampler: Any = None

    def make(self, number: int, samples: Sequence[Sample]) -> tuple[int, list[Any], dict[str, Any]]:
        """What the sampler makes of the samples of one call, after the number of their share, and what it asked."""
        from .sampling import Sampler

        if self.sampler is None:
            if self.device == "cpu":
                torch.set_num_threads(1)
            self.sampler = Sampler(self.plan, self.device)
        return number, list(zip(samples, self.sampler(samples))), asked_by(self.sampler.reward)


def run_on_ray(folder: RunFolder, workers: int, device: str | None, progress: Progress) -> None:
    """Make what is missing on the Ray cluster that `ray.init` finds (RAY_ADDRESS, or one on this machine), or else
    starts here.

    Args:
        workers: their number. Each takes a GPU, or a CPU core where the cluster has no GPU or `device` is 'cpu'.

    Raises:
        ImportError: if Ray is not installed.
        ValueError: if the cluster is too small.
        Exception: what a worker raised.
        RuntimeError: if a worker was lost too often.
    """
    require("ray")
    import ray
    from ray.exceptions import RayActorError, RayTaskError
    from ray.util import ActorPool

    plan = folder.plan
    actors: list[Any] = []
    started = not ray.is_initialized()
    if started:
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
        if threading.current_thread() is threading.main_thread():
            # Ray's own ends the process with another exit status.
            signal.signal(signal.SIGTERM, handler)
    try:
        resources = ray.cluster_resources()
        kind = "CPU" if device == "cpu" or not resources.get("GPU") else "GPU"
        if workers > resources.get(kind, 0):
            raise ValueError(
                f"Expected at most {resources.get(kind, 0):.0f} processes, as the Ray cluster has so many {kind}s, but "
                f"got {workers}."
            )
        remote = ray.remote(num_cpus=1, num_gpus=float(kind == "GPU"), max_restarts=RETRIES, max_task_retries=RETRIES)
        actors = [remote(RayWorker).remote(plan, "cuda" if kind == "GPU" else "cpu") for _ in range(workers)]
        pool = ActorPool(actors)
        progress.update()
        while missing := folder.missing_shares():
            calls = [
                (number, samples)
                for number in missing
                for samples in plan.calls(plan.shares[number])
                if not folder.has(samples)
            ]
            for number, made, asked in pool.map_unordered(lambda actor, call: actor.make.remote(*call), calls):
                with folder.share(number) as taken:
                    record_asked(folder.path, asked)
                    # Otherwise somebody else is making the same.
                    for sample, result in made if taken else ():
                        folder.write(sample, *result)
                progress.update()
            for number in missing:
                with folder.share(number) as taken:
                    for prompt in plan.shares[number] if taken else ():
                        folder.finish(prompt)
    except RayTaskError as error:
        raise error.cause from None
    except RayActorError as error:
        raise RuntimeError(
            f"A worker was lost {RETRIES + 1} times ({error}). Run again to go on from what is in {folder.path}."
        ) from error
    finally:
        if started:
            ray.shutdown()
        else:
            for actor in actors:
                ray.kill(actor)

"""Particle-parallel steering: the processes of a group share the particles of one steered call.

Every rank keeps the latents of all particles, what the scheduler remembers of them and their generators, and takes the
scheduler's steps and the resampling decisions for all of them, which costs next to nothing. What costs is done for a
share and gathered: denoiser rows and decoded images as tensors, scores as objects. So a particle that is copied or
continued in another slot never has to move, and since a share is one of the rows to be computed in that very call, the
ranks stay evenly loaded whatever has been pruned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate.utils import send_to_device
from torch import Tensor


class Ranks:
    """The processes that share a steered call, seen from one of them.

    Args:
        particle_parallel: their group; True is the default one, False this process alone.
        device: of the pipeline.

    Attributes:
        rank, size: this process's number in the group and how many there are.

    Raises:
        ValueError: without a process group, for a process outside it, or if it cannot carry what is on the device.
    """

    def __init__(self, particle_parallel: bool | dist.ProcessGroup, device: torch.device) -> None:
        self.rank, self.size = 0, 1
        if not particle_parallel:
            return
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                "`particle_parallel` needs a process group, and none is initialised. Start the script with "
                "`torchrun --nproc-per-node N` or `accelerate launch`, and call "
                "`torch.distributed.init_process_group()` or create an `accelerate.PartialState()` before."
            )
        self._group = dist.group.WORLD if particle_parallel is True else particle_parallel
        self.rank, self.size = dist.get_rank(self._group), dist.get_world_size(self._group)
        if self.rank < 0:
            raise ValueError("Expected `particle_parallel` to be a process group that this process belongs to.")
        self._carrier = _carrier(dist.get_backend_config(self._group), device)

    def share(self, count: int) -> slice:
        """Which of `count` things this rank does: an equal number on every rank, fewer or none on the last ones."""
        most = -(-count // self.size)
        return slice(min(self.rank * most, count), min((self.rank + 1) * most, count))

    def rows(self, count: int) -> slice:
        """The same for rows of a model's batch, never empty: a rank that has none does the last one, whose result
        `gather` drops, so that it knows what the result looks like."""
        share = self.share(count)
        return share if share.start < share.stop else slice(count - 1, count)

    def gather(self, rows: Tensor, count: int) -> Tensor:
        """What all ranks have computed for their `rows(count)`: (count, ...) from tensors (rows, ...)."""
        if self.size == 1:
            return rows
        sent = torch.zeros(-(-count // self.size), *rows.shape[1:], dtype=rows.dtype, device=self._carrier)
        sent[: len(rows)] = rows
        received = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(received, sent, group=self._group)
        return torch.cat(received)[:count].to(rows.device)

    def map(self, score: Callable[[slice], dict[str, Any]], count: int) -> dict[str, Any]:
        """`score(share)` of every rank's `share(count)`, joined.

        Args:
            score: share -> name -> tensor or list with an entry for each thing in the share, which is not empty.

        Raises:
            Exception: whatever `score` raises on this rank.
            RuntimeError: if it raises on another.
        """
        share = self.share(count)
        if self.size == 1:
            return score(share)
        scores: dict[str, Any] | str = {}
        failure = None
        if share.start < share.stop:
            try:
                scores = send_to_device(score(share), "cpu")
            except Exception as error:  # The others wait for this rank's answer.
                scores, failure = f"{type(error).__name__}: {error}", error
        parts = self._exchange(scores)
        if failure is not None:
            raise failure
        for rank, part in enumerate(parts):
            if isinstance(part, str):
                raise RuntimeError(f"Rank {rank} failed with {part}")
        parts = [part for part in parts if part]
        return {name: join_entries([part[name] for part in parts]) for name in parts[0]}

    def first(self, value: Any) -> Any:
        """The value that rank 0 has."""
        return value if self.size == 1 else self._exchange(value)[0]

    def agree(self, values: Mapping[str, Any]) -> None:
        """Check that all ranks have the same values, comparing digests. Of objects that are neither plain values,
        tensors nor generators only the type is compared.

        Raises:
            ValueError: on every rank, naming the values that differ.
        """
        if self.size == 1:
            return
        digests = self._exchange({name: _digest(value) for name, value in values.items()})
        names = dict.fromkeys(name for digest in digests for name in digest)
        differing = [
            f"`{name}` on rank {rank}"
            for name in names
            for rank, digest in enumerate(digests)
            if digest.get(name) != digests[0].get(name)
        ]
        if differing:
            raise ValueError(
                "Expected all ranks of a particle-parallel call to be given the same arguments, but these are not "
                f"those of rank 0: {', '.join(differing)}."
            )

    def _exchange(self, value: Any) -> list[Any]:
        """The values of all ranks."""
        values = [None] * self.size
        # NCCL takes objects through the current device, which need not be the pipeline's.
        with torch.cuda.device(self._carrier) if self._carrier.type == "cuda" else nullcontext():
            dist.all_gather_object(values, value, group=self._group)
        return values


def join_entries(parts: list[Any]) -> Any:
    """One tensor or list from several."""
    return torch.cat(parts) if isinstance(parts[0], Tensor) else [entry for part in parts for entry in part]


def _carrier(backends: str, device: torch.device) -> torch.device:
    """The device from which tensors that are on `device` travel between ranks.

    Args:
        backends: of the process group, such as 'cpu:gloo,cuda:nccl'.
    """
    backend_of = dict(pair.split(":") for pair in backends.split(","))
    if backend_of.get(device.type, "gloo") != "gloo":
        return device
    if "cpu" in backend_of:
        return torch.device("cpu")
    raise ValueError(
        f"The pipeline is on '{device}', but the process group ({backends}) carries no such tensors. Move the "
        "pipeline, or initialise the group with a backend for it ('gloo' for the CPU, 'nccl' for CUDA devices)."
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(_plain(value)).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """`value` with what repr() does not tell apart, or tells apart that is equal, replaced."""
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return tuple(value.shape), str(value.dtype), hashlib.sha256(content).hexdigest()
    if isinstance(value, torch.Generator):
        return _plain(value.get_state())
    if isinstance(value, np.ndarray):
        return _plain(torch.from_numpy(value))
    if isinstance(value, Mapping):
        # Private entries of configurations come in any order.
        return {str(key): _plain(item) for key, item in value.items() if not str(key).startswith("_")}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, bytes, bool, int, float)):
        return value
    return type(value).__qualname__

"""What a run goes on from: rolling checkpoints of accelerate, with the trained weights alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..files import on_cpu


SHARDED = (DistributedType.DEEPSPEED, DistributedType.FSDP)

PROGRESS = "progress.json"
WEIGHTS = "trained.safetensors"


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: optimiser steps done.
        best: figures of the best validation; empty before the first.
        skipped: indices of training items that cannot be read, found before the run.
        unreadable: further items that could not be read when their turn came, counted with repetition.
    """

    step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    skipped: list[int] = field(default_factory=list)
    unreadable: int = 0


class ExponentialMovingAverage:
    """Average of parameters with decay min(decay, (1 + n) / (10 + n)) after n updates."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay, self.updates = parameters, decay, 0
        self.average = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for average, parameter in zip(self.average, self.parameters):
            average.lerp_(parameter, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The average in place of the parameters."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, parameter in zip(self.average, self.parameters):
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        for average, stored in zip(self.average, state["average"]):
            average.copy_(stored)


def save_trained_weights_only(accelerator: Accelerator) -> None:
    """Let checkpoints hold what is trained and not the frozen backbone, under names that do not depend on the number
    of processes. Sharded models (DeepSpeed, FSDP) are left to accelerate."""

    def trained(model: nn.Module) -> dict[str, Tensor]:
        module = accelerator.unwrap_model(model)
        return {name: parameter.data for name, parameter in module.named_parameters() if parameter.requires_grad}

    def save(models: list[nn.Module], weights: list[dict[str, Tensor]], folder: str) -> None:
        if accelerator.distributed_type in SHARDED:
            return
        weights.clear()
        if accelerator.is_main_process:
            save_file(on_cpu(trained(models[0])), Path(folder) / WEIGHTS)

    def load(models: list[nn.Module], folder: str) -> None:
        if accelerator.distributed_type in SHARDED:
            return
        stored = load_file(Path(folder) / WEIGHTS)
        for name, value in trained(models.pop()).items():
            value.copy_(stored[name])

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def save_checkpoint(accelerator: Accelerator, folder: Path, progress: Progress, keep: int) -> None:
    """Save to `folder`/step-NUMBER, complete or not at all, and remove all but the last `keep`."""
    place = folder / f"step-{progress.step:08d}"
    unfinished = place.with_suffix(".unfinished")
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    frozen_too = accelerator.distributed_type != DistributedType.DEEPSPEED
    accelerator.save_state(str(unfinished), **({} if frozen_too else {"exclude_frozen_parameters": True}))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (unfinished / PROGRESS).write_text(json.dumps(asdict(progress)) + "\n")
        shutil.rmtree(place, ignore_errors=True)
        unfinished.rename(place)
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, place: Path) -> None:
    """Weights, optimiser, scheduler and random states."""
    whole = accelerator.distributed_type != DistributedType.DEEPSPEED
    accelerator.load_state(str(place), **({} if whole else {"load_module_strict": False}))


def checkpoints(folder: Path) -> list[Path]:
    """Complete ones, the oldest first."""
    return sorted(place for place in folder.glob("step-*") if (place / PROGRESS).is_file() and not place.suffix)


def read_progress(folder: Path) -> tuple[Path | None, Progress]:
    """The last checkpoint and where it stands; None if there is none."""
    found = checkpoints(folder)
    if not found:
        return None, Progress()
    return found[-1], Progress(**json.loads((found[-1] / PROGRESS).read_text()))

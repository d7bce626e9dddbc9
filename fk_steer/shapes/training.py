"""The loop that the training scripts share: seeded, resumable, with progress shown and losses on record."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from tqdm.auto import tqdm

from ..files import write_atomically


class ExponentialMovingAverage:
    """Average of a module's parameters with decay `min(decay, (1 + n) / (10 + n))` after n updates."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, parameter in module.named_parameters():
            self.average[name].lerp_(parameter, 1 - decay)

    def copy_to(self, module: nn.Module) -> None:
        module.load_state_dict(self.average, strict=False)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates, self.average = state["updates"], state["average"]


def warmup_cosine(step: int, steps: int, warmup: int) -> float:
    """Multiplier of the learning rate: linear to 1 over `warmup` steps, then half a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def join_processes() -> tuple[int, int]:
    """(number of this process, of all), as `torchrun` says; their gradients are averaged from here on."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1 and not distributed.is_initialized():
        distributed.init_process_group("gloo")
    return int(os.environ.get("RANK", 0)), processes


def average_gradients(module: nn.Module) -> None:
    """Over the processes of `join_processes`, if there are several."""
    if not distributed.is_initialized():
        return
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients])):
        gradient.copy_(mean.view_as(gradient))


def train(
    module: nn.Module,
    loss_at: Callable[[int], tuple[torch.Tensor, dict[str, float]]],
    *,
    steps: int,
    learning_rate: float,
    out: Path,
    weight_decay: float = 0.01,
    warmup: int = 100,
    ema: float | None = None,
    max_norm: float = 1.0,
    seed: int = 0,
    save_every: float = 120.0,
) -> None:
    """Train `module` in place; afterwards it holds the (averaged) weights.

    The data of a step follow from its number alone, so a run that was interrupted (Ctrl-C, SIGTERM, a crash) goes on
    from its last checkpoint as if nothing had happened, and a finished run returns at once. After `join_processes`,
    each process has a share of every batch, and the first one writes.

    Args:
        loss_at: step -> (loss, figures for the log).
        out: folder of `checkpoint.pt` and `log.jsonl` (a line every 50 steps with the means since the last).
        save_every: seconds between checkpoints.
    """
    optimizer = torch.optim.AdamW(module.parameters(), learning_rate, betas=(0.9, 0.98), weight_decay=weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, steps, warmup))
    average = ExponentialMovingAverage(module, ema) if ema is not None else None
    stateful: dict[str, Any] = {"module": module, "optimizer": optimizer, "scheduler": scheduler}
    if average is not None:
        stateful["average"] = average
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, log = out / "checkpoint.pt", out / "log.jsonl"
    done, spent = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        done, spent = state["step"], state["seconds"]
        for name, part in stateful.items():
            part.load_state_dict(state[name])

    number = distributed.get_rank() if distributed.is_initialized() else 0

    def save(step: int) -> None:
        if number:
            return
        buffer = io.BytesIO()
        seconds = spent + time.monotonic() - started
        torch.save({"step": step, "seconds": seconds, **{n: part.state_dict() for n, part in stateful.items()}}, buffer)
        write_atomically(checkpoint, buffer.getvalue())

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    started = saved = time.monotonic()
    step = done
    figures: dict[str, list[float]] = {}
    module.train()
    progress = tqdm(total=steps, initial=done, desc=out.name, mininterval=1.0, disable=bool(number))
    try:
        while step < steps:
            torch.manual_seed(seed * 1_000_003 + step + number * 1_000_000_007)
            loss, shown = loss_at(step)
            if not loss.isfinite():
                raise FloatingPointError(f"The loss is {loss.item()} at step {step}; the last checkpoint is intact.")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            average_gradients(module)
            nn.utils.clip_grad_norm_(module.parameters(), max_norm)
            optimizer.step()
            scheduler.step()
            if average is not None:
                average.update(module)
            step += 1
            progress.update()
            for name, value in {"loss": loss.item(), **shown}.items():
                figures.setdefault(name, []).append(value)
            if not number and (step % 50 == 0 or step == steps):
                means = {name: sum(values) / len(values) for name, values in figures.items()}
                progress.set_postfix({name: f"{value:.3f}" for name, value in means.items()})
                seconds = spent + time.monotonic() - started
                with log.open("a") as file:
                    file.write(json.dumps({"step": step, "seconds": round(seconds, 1), **means}) + "\n")
                figures.clear()
            if time.monotonic() - saved > save_every:
                save(step)
                saved = time.monotonic()
    finally:
        signal.signal(signal.SIGTERM, previous)
        progress.close()
        if step > done:
            save(step)
    if average is not None:
        average.copy_to(module)
    module.eval()

"""The training loop."""

from __future__ import annotations

import json
import math
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, broadcast_object_list, set_seed
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import get_cosine_schedule_with_warmup

from ..data import Items, check_images
from ..data.batches import Batch, RewardDataset, StepSampler
from ..files import write_whole
from ..losses import reward_loss
from ..model import LlavaReward
from ..report import write_report
from ..untrained import save_backbone
from .config import TrainingConfig
from .data import training_data
from .evaluation import Validation, validate
from .progress import Monitor
from .setup import build_reward, check_packages, count_parameters, make_trainable
from .state import (
    ExponentialMovingAverage,
    load_checkpoint,
    read_progress,
    save_checkpoint,
    save_trained_weights_only,
)


# What may change between the parts of a run, as its result does not depend on it.
FREE = (
    "output", "image_folder", "micro_batch_size", "gradient_checkpointing", "attn_implementation", "num_workers",
    "cache_images", "check_images", "validate_every", "save_every", "keep_checkpoints", "log_every", "log_with",
    "project", "published_layout",
)  # fmt: skip


class NonFiniteError(FloatingPointError):
    """The loss or its gradient is not finite; the message names the file with the batch."""


@dataclass(frozen=True)
class TrainingResult:
    """What came of a run.

    Attributes:
        finished: False if it was stopped by a signal and waits to go on.
        step: optimiser steps done.
        validation: metrics of the last validation; empty without one.
        checkpoint: folder that `LlavaReward.from_pretrained` loads.
    """

    finished: bool
    step: int
    validation: dict[str, float]
    checkpoint: Path


def train(config: TrainingConfig, reward: LlavaReward | None = None) -> TrainingResult:
    """Train, or go on with, the run in the folder `config.output`.

    It holds `config.yaml`, `log.jsonl`, `skipped.jsonl` (items whose images cannot be read), `checkpoints/` to go on
    from, `validation/`, `best/` (the best by validation) and `final/`, both in the layout of
    `LlavaReward.save_pretrained`; after a full fine-tune also with the backbone.

    Args:
        reward: with its active perspective to train, kept apart (`merge=False`); None to build one from the config.

    Raises:
        ImportError: if an option needs a package that is not installed.
        NonFiniteError: if the loss or its gradient is not finite.
        ValueError: for settings or data that do not fit, or differ from those of the run to go on with.
    """
    return Trainer(config, reward).run()


class Trainer:
    """One run; see `train`."""

    def __init__(self, config: TrainingConfig, reward: LlavaReward | None = None) -> None:
        self.config, self.folder = config, Path(config.output)
        check_packages(config)
        data = training_data(config)
        items = data.items
        self.accelerator = accelerator = self._accelerator()
        self.monitor = Monitor(accelerator, self.folder)
        if config.deterministic:
            torch.use_deterministic_algorithms(True, warn_only=True)
        last, self.progress = read_progress(self.folder / "checkpoints")
        if last is not None:
            _same_run(config, self.folder)
        if reward is not None:
            _check_reward(reward, config)
        self.reward = build_reward(config) if reward is None else reward
        if last is None:
            self.progress.skipped = self._unreadable(items)
        good = sorted(set(range(len(items))) - set(self.progress.skipped))
        data.check_readable(good)
        steps = config.max_steps or math.ceil(config.epochs * (len(good) // config.batch_size))
        processes = accelerator.num_processes
        self.sampler = StepSampler(
            good, config.batch_size, config.micro_batch_size, steps, config.seed, self.progress.step,
            accelerator.process_index, processes, [data.sources[index] for index in good], config.train_probabilities,
        )  # fmt: skip
        accelerator.gradient_accumulation_steps = self.sampler.accumulation
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            # Otherwise taken from a data loader, which is not handed over.
            settings: Any = accelerator.state.deepspeed_plugin.deepspeed_config
            settings["train_micro_batch_size_per_gpu"] = config.micro_batch_size
            settings["gradient_accumulation_steps"] = self.sampler.accumulation
        parameters = make_trainable(self.reward, config)
        # The weights begin alike on all processes, dropout does not.
        set_seed(config.seed, device_specific=True)
        self.monitor.say(str(count_parameters(self.reward)))
        for line in data.summary():
            self.monitor.say(line)
        self.dataset = RewardDataset(items, self.reward.backbone, cache=config.cache_images)
        self.validation = None
        if data.validation is not None:
            self.validation = RewardDataset(data.validation, self.reward.backbone, cache=config.cache_images)
        optimizer = torch.optim.AdamW(
            parameters, config.learning_rate, betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.weight_decay,
        )  # fmt: skip
        warmup = math.ceil(config.warmup_ratio * steps)
        scheduler = get_cosine_schedule_with_warmup(optimizer, warmup, steps)
        save_trained_weights_only(accelerator)
        self.model, self.optimizer, self.scheduler = accelerator.prepare(self.reward, optimizer, scheduler)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.average = None
        if config.ema_decay is not None:
            self.average = ExponentialMovingAverage(self.parameters, config.ema_decay)
            accelerator.register_for_checkpointing(self.average)
        if last is not None:
            load_checkpoint(accelerator, last)
            self.monitor.say(f"Going on from step {self.progress.step} ({last})")
        if accelerator.is_main_process:
            write_whole(self.folder / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))

    def _accelerator(self) -> Accelerator:
        config = self.config
        self.folder.mkdir(parents=True, exist_ok=True)
        # Some weights of a whole backbone may play no part in the reward, such as the end of a vision tower.
        unused = config.full_finetune or config.lora_vision or config.hidden_layer is not None
        trackers = [name.strip() for name in config.log_with.split(",") if name.strip()]
        known = [str(tracker) for tracker in get_available_trackers()]
        if missing := [name for name in trackers if name not in known]:
            raise ImportError(
                f"Expected the packages of {', '.join(missing)} for `log_with`, but they are not installed: "
                f"pip install {' '.join(missing)}. Installed: {', '.join(known) or 'none'}."
            )
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            log_with=trackers or None,
            project_dir=str(self.folder / "logs"),
            step_scheduler_with_optimizer=False,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused)],
        )
        if accelerator.distributed_type == DistributedType.DEEPSPEED and config.ema_decay is not None:
            raise ValueError("Expected no `ema_decay` with DeepSpeed, which holds the weights in parts of its own.")
        if trackers:
            accelerator.init_trackers(config.project, {key: str(value) for key, value in config.to_dict().items()})
        return accelerator

    def _unreadable(self, items: Items) -> list[int]:
        """Indices of items whose images cannot be used, reported; the same on every process."""
        found: list[list[int]] = [[]]
        if self.config.check_images and self.accelerator.is_main_process:
            with self.monitor.counting("images", len(items)) as advance:
                _, bad = check_images(items, progress=advance, backbone=self.reward.backbone)
            self.monitor.skip(f"Item {index}: {problem}" for index, problem in bad.items())
            self.monitor.say(f"{len(items) - len(bad)} items to train on; {len(bad)} skipped as unreadable")
            found = [sorted(bad)]
        return broadcast_object_list(found)[0]

    def run(self) -> TrainingResult:
        """To the end, or to the next SIGTERM or SIGINT."""
        config, progress, total = self.config, self.progress, self.sampler.steps
        loader = DataLoader(
            self.dataset,
            batch_sampler=self.sampler,
            collate_fn=self.dataset.collate,
            num_workers=config.num_workers,
            # Its own, so that going on draws from the global one no more often than never having stopped.
            generator=torch.Generator(),
        )
        self.model.train()
        self.monitor.start(total, progress.step)
        metrics: dict[str, float] = {}
        validated = -1
        batches = iter(loader)
        with stop_signal() as stopped, self.monitor:
            while progress.step < total:
                figures = self._step([next(batches) for _ in range(self.sampler.accumulation)])
                progress.step += 1
                self.monitor.advance(progress.step, figures, progress.step % config.log_every == 0)
                last = progress.step == total
                if self.validation is not None and (last or progress.step % config.validate_every == 0):
                    metrics, validated = self._try_to_validate() or metrics, progress.step
                stop = bool(self._sum([float(stopped.is_set())])[0])
                if last or stop or progress.step % config.save_every == 0:
                    save_checkpoint(self.accelerator, self.folder / "checkpoints", progress, config.keep_checkpoints)
                if stop and not last:
                    self.monitor.say(f"Stopped and saved at step {progress.step}; the same command goes on from here")
                    self._end()
                    return TrainingResult(False, progress.step, metrics, self.folder / "checkpoints")
            if self.validation is not None and validated < 0:
                metrics = self._try_to_validate() or metrics
        with self._averaged():
            self._save(self.folder / "final")
        if progress.unreadable:
            self.monitor.say(f"{progress.unreadable} items could not be read in their turn; see skipped.jsonl")
        self._end()
        return TrainingResult(True, progress.step, metrics, self.folder / "final")

    def _step(self, batches: list[Batch]) -> dict[str, float]:
        """One optimiser step. The loss is the mean over all readable items of all processes and passes, so it does not
        depend on how they are spread."""
        accelerator, config = self.accelerator, self.config
        started = time.perf_counter()
        batches = [batch.to(accelerator.device) for batch in batches]
        self.monitor.skip(error for batch in batches for error in batch.errors)
        unread = sum(len(batch.errors) for batch in batches)
        items, unreadable = self._sum([float(sum(batch.weights.sum() for batch in batches)), float(unread)])
        self.progress.unreadable += round(unreadable)
        # Gradients are averaged over the processes and divided by the passes.
        scale = accelerator.num_processes * len(batches) / max(items, 1.0)
        loss_sum = correct_sum = 0.0
        seen: list[tuple[Batch, Tensor, Tensor]] = []
        for batch in batches:
            with accelerator.accumulate(self.model):
                rewards = self.model(batch.inputs)
                losses, correct = reward_loss(self.reward.config, rewards, batch.labels)
                # Not a product: an unreadable item must not enter even if its loss is not finite.
                losses = torch.where(batch.weights > 0, losses, 0.0)
                accelerator.backward(losses.sum() * scale)
            loss_sum += float(losses.detach().sum())
            correct_sum += float((correct * batch.weights).sum())
            seen.append((batch, rewards.detach(), losses.detach()))
        norm = accelerator.clip_grad_norm_(self.parameters, config.max_grad_norm)
        norm = 0.0 if norm is None else float(norm)
        # In float16 a gradient may overflow, upon which the scaler leaves the step out.
        finite = math.isfinite(loss_sum) and (config.mixed_precision == "fp16" or math.isfinite(norm))
        total_loss, total_correct, bad = self._sum([loss_sum if finite else 0.0, correct_sum, float(not finite)])
        if bad:
            self._not_finite(seen, norm)
        self.optimizer.step()
        rate = self.scheduler.get_last_lr()[0]
        self.scheduler.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update()
        return {
            "loss": total_loss / max(items, 1.0),
            "accuracy": total_correct / max(items, 1.0),
            "learning_rate": rate,
            "gradient_norm": norm,
            "seconds": time.perf_counter() - started,
        }

    def _sum(self, values: list[float]) -> list[float]:
        """Over all processes."""
        if self.accelerator.num_processes == 1:
            return values
        # Not every device has float64, and counts of items are far from what float32 holds exactly.
        tensor = torch.tensor(values, device=self.accelerator.device)
        return self.accelerator.reduce(tensor, "sum").tolist()

    def _not_finite(self, seen: list[tuple[Batch, Tensor, Tensor]], norm: float) -> None:
        """Write the batch of every process, and stop."""
        path = self.folder / f"not-finite-step-{self.progress.step}-process-{self.accelerator.process_index}.json"
        content = [
            {
                "item": self.dataset.items.describe(index),
                "loss": repr(float(losses[place])),
                "rewards": [repr(value) for value in rewards[place :: len(batch.indices)].float().tolist()],
            }
            for batch, rewards, losses in seen
            for place, index in enumerate(batch.indices)
        ]
        path.write_text(json.dumps({"gradient_norm": repr(norm), "items": content}, indent=1) + "\n")
        self._end()
        raise NonFiniteError(
            f"The loss or its gradient is not finite at step {self.progress.step}; its batch is in '{path}'. The "
            f"weights of the last checkpoint are as they were. Lower `learning_rate`, or look at these items."
        )

    def _averaged(self) -> AbstractContextManager[None]:
        return nullcontext() if self.average is None else self.average.applied()

    def _try_to_validate(self) -> dict[str, float]:
        """As `_validate`; an error is reported and costs the figures, not what was trained. Empty upon one."""
        try:
            return self._validate()
        except Exception as error:  # of reading, scoring, drawing or saving
            reason = " ".join(str(error).split()) or type(error).__name__
            self.monitor.say(f"Validation at step {self.progress.step} failed, and training goes on: {reason}")
            return {}

    def _validate(self) -> dict[str, float]:
        """On the held-out items; the best so far is saved to best/."""
        assert self.validation is not None
        with self._averaged():
            result: Validation = validate(
                self.accelerator, self.model, self.reward.config, self.validation, self.config.micro_batch_size
            )
            summary, step = result.summary, self.progress.step
            best = self.progress.best
            # By accuracy, and of equal ones by loss.
            if not best or (summary["accuracy"], -summary["loss"]) > (best["accuracy"], -best["loss"]):
                self._save(self.folder / "best")
                self.progress.best = {"step": step, **summary}
        if self.accelerator.is_main_process:
            write_report(self.folder / "validation", {"step": step, **summary}, result.calibration, result.distribution)
            self.monitor.skip(f"Validation. {error}" for error in result.errors)
        self.monitor.log(step, {f"validation_{name}": value for name, value in summary.items()})
        return summary

    def _save(self, place: Path) -> None:
        """Complete or not at all: parts of two checkpoints would load as one."""
        state = self.accelerator.get_state_dict(self.model)
        try:
            if self.accelerator.is_main_process:
                self._write(place, state)
        finally:
            # The others wait even if this one could not save.
            self.accelerator.wait_for_everyone()

    def _write(self, place: Path, state: dict[str, Tensor]) -> None:
        folder, old = (place.with_name(f"{place.name}.{suffix}") for suffix in ("unfinished", "old"))
        for left in (folder, old):
            shutil.rmtree(left, ignore_errors=True)
        self.reward.save_pretrained(folder, state_dict=state)
        if self.config.full_finetune:
            prefix = "backbone.model."
            own = {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
            save_backbone(self.reward.backbone, folder, own)
        if self.config.published_layout:
            try:
                self.reward.save_pretrained(folder / "published", "published", state)
            except Exception as error:  # a second copy must not cost the first
                shutil.rmtree(folder / "published", ignore_errors=True)
                self.monitor.say(f"Saved '{place}', but not its copy in the published layout: {error}")
        if place.exists():
            place.rename(old)
        folder.rename(place)
        shutil.rmtree(old, ignore_errors=True)

    def _end(self) -> None:
        if self.config.log_with:
            self.accelerator.end_training()


def _check_reward(reward: LlavaReward, config: TrainingConfig) -> None:
    """Make sure that what is to be trained can be saved.

    Raises:
        ValueError: if it cannot.
    """
    if reward.merged:
        raise ValueError(
            "Expected a reward whose adapter is kept apart, but got one that is merged into the weights, which cannot "
            "be saved without the backbone. Load it with `merge=False`."
        )
    if config.full_finetune and reward.perspectives[reward.active].has_adapter:
        raise ValueError(
            "Expected a perspective without LoRA for `full_finetune`, but got one with it. Make it by "
            "`new_perspective(..., rank=0)`, or train without `full_finetune`."
        )
    config.check_published(reward.config)


def _same_run(config: TrainingConfig, folder: Path) -> None:
    try:
        stored = dict(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"Expected the settings of the run to go on with in '{folder / 'config.yaml'}', but could not read them: "
            f"{error}. Choose another `output`, or put the file back."
        ) from None
    # A setting that there was not yet was at its default.
    before = {**TrainingConfig().to_dict(), **stored}
    changes = [
        f"{name}: {before[name]!r} -> {value!r}"
        for name, value in config.to_dict().items()
        if name not in FREE and before[name] != value
    ]
    if changes:
        raise ValueError(
            f"Expected the settings of the run that '{folder}' holds to go on with it, but got others "
            f"({', '.join(changes)}). Choose another `output`, or remove it."
        )


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """Set by SIGTERM or SIGINT, so that the step at hand is finished and saved; a second SIGINT interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def stop(number: int, frame: Any) -> None:
        if event.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

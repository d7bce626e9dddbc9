"""The training loop of `fk-steer train dpo`."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import set_seed
from diffusers.optimization import get_scheduler
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from llava_reward_guide.data.batches import StepSampler
from llava_reward_guide.packages import require
from llava_reward_guide.training.progress import Monitor
from llava_reward_guide.training.state import (
    checkpoints,
    load_checkpoint,
    read_progress,
    save_checkpoint,
    save_trained_weights_only,
)
from llava_reward_guide.training.trainer import stop_signal

from ..files import alone, check_settings, record_settings
from ..loading import load_pipeline
from .config import DPOConfig
from .data import DrawSampler, Example, PairDataset, Preferences, collate, read_preferences
from .denoisers import denoiser_of
from .losses import PairErrors, implicit_accuracy, implicit_reward, pair_losses
from .process import draw_times, process_of
from .trained import prepare
from .watching import Watch


FREE = (
    "output", "micro_batch_size", "gradient_checkpointing", "num_workers", "cache_latents", "prompts", "reward",
    "sample_every", "sample_steps", "sample_guidance", "sample_batch", "sample_limit", "save_every",
    "keep_checkpoints", "export_every", "log_every", "log_with", "project", "compile",
)  # fmt: skip
"""Settings that may change between the parts of a run, as its result does not depend on them."""

FINAL = "final"


class NonFiniteError(FloatingPointError):
    """The loss or its gradient is not finite."""


@dataclass(frozen=True)
class DPOResult:
    """What came of a run.

    Attributes:
        finished: False if it was stopped by a signal and waits to go on.
        step: optimiser steps done.
        weights: folder for `pipe.load_lora_weights`, or after `full` for `DiffusionPipeline.from_pretrained`.
    """

    finished: bool
    step: int
    weights: Path


def train_dpo(config: DPOConfig, pipe: Any = None, pairs: Preferences | None = None) -> DPOResult:
    """Train, or go on with, the run in the folder `config.output`; one that is finished does nothing.

    It holds `settings.json`, `log.jsonl`, `checkpoints/` to go on from, `samples/`, `step-N/` where weights are asked
    for on the way, and `final/`.

    Args:
        pipe: to train, which it changes; None for the one of `config.model`.
        pairs: to train on; None for those of `config.data`.

    Raises:
        ImportError: if an option needs a package that is not installed.
        NonFiniteError: if the loss or its gradient is not finite.
        OSError: if the model cannot be had.
        ValueError: for settings or data that do not fit, or differ from those of the run to go on with.
    """
    folder = Path(config.output)
    settings = {name: value for name, value in config.to_dict().items() if name not in FREE}
    check_settings(folder, settings)
    if (folder / FINAL).is_dir():
        return DPOResult(True, config.steps, folder / FINAL)
    require("rich", "Training", "train")
    accelerator = _accelerator(config)
    if not accelerator.is_main_process:
        return Trainer(config, accelerator, pipe, pairs).run()
    with alone(folder):
        trainer = Trainer(config, accelerator, pipe, pairs)
        record_settings(folder, settings)
        return trainer.run()


def _accelerator(config: DPOConfig) -> Accelerator:
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
        project_dir=str(Path(config.output) / "logs"),
        step_scheduler_with_optimizer=False,
    )
    if trackers:
        accelerator.init_trackers(config.project, {key: str(value) for key, value in config.to_dict().items()})
    return accelerator


class Trainer:
    """One run; see `train_dpo`."""

    def __init__(
        self, config: DPOConfig, accelerator: Accelerator, pipe: Any = None, pairs: Preferences | None = None
    ) -> None:
        self.config, self.folder, self.accelerator = config, Path(config.output), accelerator
        if pairs is None:
            if not config.data:
                raise ValueError("Expected `data`, preferences to train on, but got none.")
            pairs = read_preferences(config.data)
        last, self.progress = read_progress(self.folder / "checkpoints")
        self.sampler = StepSampler(
            range(len(pairs)), config.batch_size, config.micro_batch_size, config.steps, config.seed,
            self.progress.step, accelerator.process_index, accelerator.num_processes,
        )  # fmt: skip
        accelerator.gradient_accumulation_steps = self.sampler.accumulation
        self.denoiser = self._denoiser(pipe)
        self.process = process_of(self.denoiser.pipe.scheduler, config.weighting)
        self.times = _indices(config.timesteps, self.process.timesteps)
        self.trained = prepare(self.denoiser, config)
        self.watch = None
        if config.prompts is not None:
            self.watch = Watch(self.denoiser, config, self.folder / "samples")
        # The weights begin alike on all processes, dropout does not.
        set_seed(config.seed, device_specific=True)
        self.monitor = Monitor(accelerator, self.folder)
        trained, every = (
            sum(one.numel() for one in some) for some in (self.trained.parameters, self.denoiser.module.parameters())
        )
        self.monitor.say(
            f"{len(pairs)} pairs ({pairs.ties} ties left out); {trained:,} of {every:,} weights of the denoiser are "
            f"trained ({trained / every:.2%})"
        )
        self.encoded: dict[tuple[int, bool], Tensor] = {}
        self.dataset = PairDataset(
            pairs, config.resolution or self.denoiser.resolution, config.random_crop, config.flip,
            config.caption_dropout, config.seed, self.encoded,
        )  # fmt: skip
        optimizer = torch.optim.AdamW(
            self.trained.parameters, config.learning_rate, betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.weight_decay,
        )  # fmt: skip
        schedule = get_scheduler(
            config.schedule, optimizer, num_warmup_steps=config.warmup, num_training_steps=config.steps
        )
        if config.compile:
            self.denoiser.module.compile()
        save_trained_weights_only(accelerator)
        self.model, self.optimizer, self.schedule = accelerator.prepare(self.denoiser.module, optimizer, schedule)
        if last is not None:
            load_checkpoint(accelerator, last)
            self.monitor.say(f"Going on from step {self.progress.step} ({last})")

    def _denoiser(self, pipe: Any) -> Any:
        config, accelerator = self.config, self.accelerator
        if pipe is None:
            dtype = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}[config.mixed_precision]
            pipe = load_pipeline(config.model, dtype=dtype, device=accelerator.device)
            # Decoders that overflow in float16 say so.
            if dtype == "float16" and pipe.vae.config.get("force_upcast"):
                pipe.vae.float()
        return denoiser_of(pipe, config.text_length, config.embedded_guidance)

    def run(self) -> DPOResult:
        """To the end, or to the next SIGTERM or SIGINT."""
        config, progress = self.config, self.progress
        loader = DataLoader(
            self.dataset,
            batch_sampler=DrawSampler(self.sampler),
            collate_fn=collate,
            num_workers=config.num_workers,
            # Its own, so that going on draws from the global one no more often than never having stopped.
            generator=torch.Generator(),
        )
        self.model.train()
        self.monitor.start(config.steps, progress.step)
        if progress.step == 0:
            self._sample()
        batches = iter(loader)
        with stop_signal() as stopped, self.monitor:
            while progress.step < config.steps:
                figures = self._step([next(batches) for _ in range(self.sampler.accumulation)])
                progress.step += 1
                self.monitor.advance(progress.step, figures, progress.step % config.log_every == 0)
                last = progress.step == config.steps
                if last or progress.step % config.sample_every == 0:
                    self._sample()
                if config.export_every is not None and progress.step % config.export_every == 0:
                    self._save(self.folder / f"step-{progress.step:08d}")
                stop = self._sum([float(stopped.is_set())])[0] > 0
                if last or stop or progress.step % config.save_every == 0:
                    save_checkpoint(self.accelerator, self.folder / "checkpoints", progress, config.keep_checkpoints)
                if stop and not last:
                    self.monitor.say(f"Stopped and saved at step {progress.step}; the same command goes on from here")
                    self._end()
                    place = checkpoints(self.folder / "checkpoints")[-1]
                    return DPOResult(False, progress.step, place)
        self._save(self.folder / FINAL)
        self._end()
        return DPOResult(True, progress.step, self.folder / FINAL)

    def _step(self, batches: Sequence[Sequence[Example]]) -> dict[str, float]:
        """One optimiser step. Everything that is drawn belongs to a pair, so that the mean over all pairs does not
        depend on how they are spread."""
        started = time.perf_counter()
        sums: dict[str, float] = {}
        for batch in batches:
            with self.accelerator.accumulate(self.model):
                loss, figures = self._pass(batch)
                self.accelerator.backward(loss)
            for name, value in figures.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        norm = self.accelerator.clip_grad_norm_(parameters, self.config.max_grad_norm)
        norm = 0.0 if norm is None else float(norm)
        # In float16 a gradient may overflow, upon which the scaler leaves the step out.
        finite = all(map(math.isfinite, sums.values()))
        finite = finite and (self.config.mixed_precision == "fp16" or math.isfinite(norm))
        totals = self._sum([*(sums.values() if finite else [0.0] * len(sums)), float(not finite)])
        if totals[-1]:
            self._end()
            raise NonFiniteError(
                f"The loss or its gradient is not finite at step {self.progress.step}. The last checkpoint is intact: "
                "go on from there with a lower learning rate or beta, or in another precision, in another `output`."
            )
        self.optimizer.step()
        rate = self.schedule.get_last_lr()[0]
        self.schedule.step()
        self.optimizer.zero_grad()
        count = len(batches) * self.accelerator.num_processes
        return {
            **{name: total / count for name, total in zip(sums, totals)},
            "learning_rate": rate,
            "gradient_norm": norm,
            "seconds": time.perf_counter() - started,
        }

    def _pass(self, batch: Sequence[Example]) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of a micro-batch, and its figures."""
        config, denoiser, device = self.config, self.denoiser, self.accelerator.device
        sft = config.loss == "sft"
        # (B, 2, ...) of which fine-tuning takes the first, all chosen ones before all rejected ones.
        images = self._latents(batch)
        latents = images[:, 0] if sft else images.transpose(0, 1).flatten(0, 1)
        copies = 1 if sft else 2
        noise, times = self._draw(batch, images.shape[2:])
        noise, times = (part.to(device).repeat(copies, *[1] * (part.ndim - 1)) for part in (noise, times))
        sizes = torch.cat([torch.stack([one.sizes[place] for one in batch]) for place in range(copies)]).to(device)
        conditions = {
            name: value.repeat(copies, *[1] * (value.ndim - 1))
            for name, value in denoiser.conditions([one.caption for one in batch]).items()
        }
        dtype = conditions["text"].dtype
        noisy = self.process.noisy(latents, noise, times).to(dtype)
        moments = self.process.timesteps.to(device)[times]

        def errors(module: nn.Module) -> Tensor:
            with self.accelerator.autocast():
                predicted = denoiser(module, noisy, moments, conditions, sizes)
            return self.process.errors(predicted, latents, noise, times)

        if sft:
            model = PairErrors(own := errors(self.model), own)
            return model.chosen.mean(), {"loss": model.chosen.detach().mean()}
        with torch.no_grad(), self.trained.reference() as module:
            reference = PairErrors(*errors(module).chunk(2))
        model = PairErrors(*errors(self.model).chunk(2))
        losses = pair_losses(config.loss, model, reference, config.beta, config.anchor)
        with torch.no_grad():
            reward = implicit_reward(model, reference, config.beta)
            figures = {
                "loss": losses.mean(),
                "accuracy": implicit_accuracy(reward).mean(),
                "implicit_reward": reward.mean(),
                "chosen_error": model.chosen.mean(),
                "rejected_error": model.rejected.mean(),
                "reference_chosen_error": reference.chosen.mean(),
                "reference_rejected_error": reference.rejected.mean(),
            }
        return losses.mean(), figures

    def _latents(self, batch: Sequence[Example]) -> Tensor:
        """(B, 2, C, h, w) float32 of chosen and rejected images."""
        device = self.accelerator.device
        found = {one.key: self.encoded[one.key] for one in batch if one.pixels is None}
        fresh = [one for one in batch if one.pixels is not None]
        if fresh:
            pixels = torch.cat([one.pixels for one in fresh if one.pixels is not None]).to(device)
            encoded = self.denoiser.latents(pixels).unflatten(0, (len(fresh), 2))
            found.update({one.key: latents for one, latents in zip(fresh, encoded)})
            if self.config.cache_latents:
                self.encoded.update({one.key: found[one.key].cpu() for one in fresh})
        return torch.stack([found[one.key].to(device) for one in batch])

    def _draw(self, batch: Sequence[Example], shape: torch.Size) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) noise and (B,) moments, of each pair from its own seed."""
        noise, times = [], []
        for one in batch:
            generator = torch.Generator().manual_seed(one.seed)
            times.append(draw_times(self.process, generator, self.config.density, self.times))
            noise.append(torch.randn(shape, generator=generator))
        return torch.stack(noise), torch.cat(times)

    def _sum(self, values: list[float]) -> list[float]:
        """Over all processes."""
        if self.accelerator.num_processes == 1:
            return values
        return self.accelerator.reduce(torch.tensor(values, device=self.accelerator.device), "sum").tolist()

    def _sample(self) -> None:
        """Images on the way, drawn by the first process; the others wait."""
        if self.watch is None:
            return
        step = self.progress.step
        if self.accelerator.is_main_process:
            with torch.random.fork_rng(), self.accelerator.autocast():
                figures, images = self.watch(step)
            if figures:
                self.monitor.log(step, figures)
            self._log_images(images, step)
        self.accelerator.wait_for_everyone()

    def _log_images(self, images: Sequence[Image.Image], step: int) -> None:
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                if tracker.name == "wandb":
                    tracker.log_images({"samples": list(images)}, step=step)
                else:
                    pixels = torch.stack(
                        [
                            torch.frombuffer(bytearray(one.tobytes()), dtype=torch.uint8).view(one.height, one.width, 3)
                            for one in images
                        ]
                    )
                    tracker.log_images({"samples": pixels.numpy()}, step=step, dataformats="NHWC")

    def _save(self, place: Path) -> None:
        """Complete or not at all."""
        if self.accelerator.is_main_process:
            folder = place.with_name(f"{place.name}.unfinished")
            for left in (folder, place):
                shutil.rmtree(left, ignore_errors=True)
            self.trained.save(folder)
            (folder / "training.yaml").write_text(yaml.safe_dump(self.config.to_dict(), sort_keys=False))
            folder.rename(place)
        self.accelerator.wait_for_everyone()

    def _end(self) -> None:
        if self.config.log_with:
            self.accelerator.end_training()


def _indices(timesteps: Sequence[int] | None, known: Tensor) -> list[int] | None:
    """Indices of timesteps among those that a model knows.

    Raises:
        ValueError: if one is not among them.
    """
    if timesteps is None:
        return None
    places = {round(float(value)): place for place, value in enumerate(known)}
    if missing := [number for number in timesteps if number not in places]:
        raise ValueError(
            f"Expected `timesteps` among those of the model, {min(places)} to {max(places)}, but got "
            f"{', '.join(map(str, missing))}."
        )
    return [places[number] for number in timesteps]

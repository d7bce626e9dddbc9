"""Everything that a run of `fk-steer train dpo` is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_reward_guide.settings import option, read_settings


LOSSES = ("dpo", "ipo", "sft")
WEIGHTINGS = ("epsilon", "target")
DENSITIES = ("uniform", "logit-normal")
PRECISIONS = ("no", "bf16", "fp16")
SCHEDULES = ("constant_with_warmup", "cosine", "linear")


@dataclass(frozen=True)
class DPOConfig:
    """Settings of a run, which are also the flags of `fk-steer train dpo`.

    Raises:
        ValueError: for values that cannot be.
    """

    data: str = option(
        "",
        "Train on these preferences: a folder or file of parquet, a saved data set or image folder, a JSON list, or "
        "hf:NAME[:SPLIT] of a data set on the hub, with the columns caption, jpg_0, jpg_1 and label_0.",
        "none; it is needed, here or in the YAML file",
    )
    model: str = option("shapes", "Train this pipeline: a hub id, a folder, or a bundled one.")
    output: str = option("out/dpo", "Write weights, checkpoints and logs to this folder.")

    loss: str = option(
        "dpo", "Train by this loss: dpo, ipo, which does not grow without bound, or sft on the chosen images alone."
    )
    beta: float = option(
        2000.0, "Stay close to the reference: the higher, the less may be changed for the same preference."
    )
    anchor: float = option(
        0.0, "Hold the chosen image's error down by this weight, beside dpo or ipo, which may let both images go."
    )
    weighting: str = option(
        "auto",
        "Measure errors of the noise (epsilon), or of what the model predicts (target), which pays more attention to "
        "high noise.",
        "epsilon for models that predict it, target for others",
    )
    density: str = option(
        "auto", "Draw timesteps uniform or logit-normal.", "uniform, and logit-normal for flow models"
    )
    timesteps: list[int] | None = option(
        None, "Train at these of the model's timesteps alone, such as 249, 499, 749, 999 for SDXL-Turbo.", "all"
    )

    full: bool = option(False, "Train all weights of the denoiser, with a frozen copy as the reference, without LoRA.")
    lora: str | None = option(
        None,
        "Go on from these LoRA weights, a folder, file or hub id, as on preferences between images that the model made "
        "with them; the model with them is the reference.",
        "new ones",
    )
    lora_rank: int = option(16, "Train low-rank adapters (LoRA) of this rank.")
    lora_alpha: int | None = option(None, "Scale LoRA by this number over its rank.", "the rank")
    lora_dropout: float = option(0.0, "Drop this share of LoRA's input while training.")
    lora_layers: str = option(
        "attention",
        "Put LoRA on attention alone, on all linear layers (linear), on these and convolutions (all), or on layers "
        "whose names end in one of these, comma-separated.",
    )

    resolution: int | None = option(None, "Train on squares of this many pixels.", "the model's own size")
    random_crop: bool = option(False, "Cut the square out at random in place of the middle, of both images alike.")
    flip: bool = option(False, "Mirror half of the pairs, both images alike. Not where captions tell left from right.")
    caption_dropout: float = option(0.0, "Leave out this share of the captions, for classifier-free guidance.")
    text_length: int | None = option(None, "Cut captions to this many tokens of T5.", "as the pipeline does")
    embedded_guidance: float = option(3.5, "Tell models that take their guidance as an input, as Flux, this scale.")

    batch_size: int = option(
        32, "Take this many pairs for an optimiser step, over all processes and accumulated passes."
    )
    micro_batch_size: int = option(4, "Take this many pairs for a pass of one process, as memory allows.")
    steps: int = option(500, "Take this many optimiser steps.")
    learning_rate: float = option(1e-4, "Train at this learning rate of AdamW; about 1e-6 with --full.")
    schedule: str = option("constant_with_warmup", f"Let the learning rate follow this: {', '.join(SCHEDULES)}.")
    warmup: int = option(10, "Let the learning rate rise over this many steps.")
    adam_beta1: float = option(0.9, "Let AdamW average gradients with this decay.")
    adam_beta2: float = option(0.999, "Let AdamW average squared gradients with this decay.")
    weight_decay: float = option(0.01, "Let AdamW shrink weights at this rate.")
    max_grad_norm: float = option(1.0, "Clip gradients to this norm.")
    seed: int = option(0, "Draw everything from this seed.")

    mixed_precision: str = option("no", "Compute in this precision beside float32: no, bf16 or fp16.")
    gradient_checkpointing: bool = option(
        False, "Compute activations again in the backward pass, which takes less memory and a third more time."
    )
    compile: bool = option(False, "Compile the denoiser, which takes a minute at the start.")
    num_workers: int = option(0, "Read images in this many processes for each that trains.")
    cache_latents: bool = option(
        False, "Keep encoded images in memory: faster where all fit, without --random-crop and --num-workers."
    )

    prompts: str | None = option(
        None,
        "Sample images of these held-out prompts while it trains: a file with one a line, JSON lines or a table, or "
        "geneval, drawbench or shapes.",
        "none",
    )
    sample_limit: int | None = option(8, "Take this many of them, spread evenly over the tasks or categories.")
    reward: str | None = option(None, "Score these images by this reward; `fk-steer rewards` lists them.", "not scored")
    sample_every: int = option(100, "Sample images after this many steps each time, at the start and at the end.")
    sample_steps: int = option(25, "Take this many denoising steps for a sample.")
    sample_guidance: float | None = option(
        None, "Use this scale of classifier-free guidance for samples.", "the pipeline's"
    )
    sample_batch: int = option(4, "Sample this many images at a time.")
    save_every: int = option(100, "Save a checkpoint to go on from after this many steps each time.")
    keep_checkpoints: int = option(1, "Keep this many of those checkpoints.")
    export_every: int | None = option(
        None, "Save the weights after this many steps each time, not only at the end.", "at the end"
    )
    log_every: int = option(1, "Write a line of log.jsonl after this many steps each time.")
    log_with: str = option(
        "",
        "Log to these trackers of accelerate too, comma-separated: tensorboard, wandb and others.",
        "log.jsonl alone",
    )
    project: str = option("fk-steer-dpo", "Log to trackers under this project name.")

    def __post_init__(self) -> None:
        choices = {
            "loss": LOSSES,
            "weighting": ("auto", *WEIGHTINGS),
            "density": ("auto", *DENSITIES),
            "schedule": SCHEDULES,
            "mixed_precision": PRECISIONS,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"Unknown `{name}` {getattr(self, name)!r}. Known: {', '.join(known)}.")
        for name in (
            "beta", "lora_rank", "lora_alpha", "resolution", "text_length", "batch_size", "micro_batch_size", "steps",
            "learning_rate", "max_grad_norm", "sample_every", "sample_steps", "sample_batch", "sample_limit",
            "save_every", "keep_checkpoints", "export_every", "log_every",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"Expected `{name}` to be positive, but got {value}.")
        for name in ("lora_dropout", "caption_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"Expected `{name}` to be at least 0 and below 1, but got {getattr(self, name)}.")
        for name in ("anchor", "warmup", "num_workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"Expected `{name}` to be at least 0, but got {getattr(self, name)}.")
        if self.lora is not None and self.full:
            raise ValueError("Expected `lora` to go on from, or `full` for all weights, but got both.")
        if self.cache_latents and (self.random_crop or self.num_workers):
            raise ValueError("Expected `cache_latents` without `random_crop` and `num_workers`, but got them together.")
        if self.reward is not None and self.prompts is None:
            raise ValueError("Expected `prompts` to sample images of for the `reward` to score, but got none.")
        if self.timesteps is not None and not self.timesteps:
            raise ValueError("Expected at least one of `timesteps`, but got none. Leave it out to train at all.")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def load_config(source: str | Path | None, overrides: Mapping[str, Any] | None = None) -> DPOConfig:
    """Settings from YAML.

    Args:
        source: a file; None for the defaults.
        overrides: settings in place of the file's.

    Raises:
        ValueError: for a file that is missing, unknown settings, or values of the wrong type.
    """
    if source is not None and not Path(source).is_file():
        raise ValueError(f"Expected a YAML file with settings, but there is none at '{source}'.")
    return read_settings(DPOConfig, None if source is None else Path(source), overrides)

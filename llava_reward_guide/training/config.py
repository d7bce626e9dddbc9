"""Everything a training run is told."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..attention import check_attention_name
from ..config import RewardConfig
from ..loading import QUANTIZE
from ..settings import option, read_settings


SCOPES = ("all", "lora_only")
PRECISIONS = ("no", "bf16", "fp16")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a run, which are also the flags of `python -m llava_reward_guide.train`. The defaults are the
    paper's recipe (arXiv 2507.21391, section 4.1) on Phi-3.5-vision.

    Raises:
        ValueError: for values that cannot be.
    """

    train_data: str | list[str] = option(
        "",
        "Train on this JSON, JSONL or CSV file of pairs or labelled images, or hf:NAME[:SPLIT]; given several times, "
        "on all of them.",
        "none; it is needed, here or in the YAML file",
    )
    train_probabilities: list[float] | None = option(
        None, "Draw from each `train_data` with this weight, in their order.", "as often as it has items"
    )
    validation_data: str = option("", "Validate on this file of the same form.", "nothing is validated")
    validation_fraction: float = option(
        0.0, "Hold out this share of the data's prompts to validate on, in place of a file."
    )
    image_folder: str | None = option(
        None, "Take paths of images to be relative to this folder.", "the folder of the file"
    )
    output: str = option("out/llava-reward", "Write checkpoints and logs to this folder.")

    init_from: str = option(
        "", "Start from this checkpoint's adapter, projector and head, in either layout.", "from new ones"
    )
    backbone: str = option(
        "microsoft/Phi-3.5-vision-instruct",
        "Train on this multimodal LLM, a folder or hub id.",
        "Phi-3.5-vision of Microsoft",
    )
    perspective: str = option(
        "default", "Call what the reward is about by this name, such as alignment or safety; it is kept beside it."
    )
    objective: str = option(
        "bradley-terry",
        "Train by this loss: bradley-terry for pairs, general-preference for pairs in which no order need hold for "
        "three, classification for labels.",
    )
    value_head_dim: int = option(1, "Give a reward this many numbers: 1, or an even number for general-preference.")
    tau: float = option(0.1, "Divide what is compared by this temperature before it becomes a probability.")
    add_cross_attention: bool = option(
        True, "Let the reward token attend to the image's visual tokens once more (SkipCA)."
    )
    hidden_layer: int | None = option(
        None, "Read the reward from the text model's hidden state after this layer.", "the last"
    )
    visual_layer: int | None = option(
        None, "Let SkipCA attend to the hidden state after this layer.", "projected visual tokens"
    )
    mean_pooling: bool = option(False, "Average over all positions in place of reading the end of the text.")

    lora_rank: int = option(128, "Train low-rank adapters (LoRA) of this rank on the text model's linear layers.")
    lora_alpha: int = option(256, "Scale LoRA by this number over its rank.")
    lora_dropout: float = option(0.05, "Drop this share of LoRA's input while training.")
    lora_vision: bool = option(False, "Put LoRA on the linear layers of the vision tower too.")
    quantize: str | None = option(None, "Keep the weights under LoRA in 4bit (nf4) or 8bit.", "not quantized")
    optimizer_scope: str = option(
        "all", "Train LoRA, projector, SkipCA and head (all), or LoRA alone as the released code does (lora_only)."
    )
    full_finetune: bool = option(False, "Train every weight of the backbone, without LoRA.")

    batch_size: int = option(
        128, "Take this many items (pairs) for an optimiser step, over all processes and accumulated passes."
    )
    micro_batch_size: int = option(8, "Take this many items for a pass of one process, as memory allows.")
    epochs: float = option(1.0, "Pass over the data this often.")
    max_steps: int | None = option(
        None, "Stop after this many optimiser steps, in place of --epochs.", "as --epochs says"
    )
    learning_rate: float = option(
        2e-4, "Train at this learning rate of AdamW; the release takes 5e-7 for full fine-tuning."
    )
    warmup_ratio: float = option(
        0.03, "Let the learning rate rise over this share of the steps; then it falls by half a cosine."
    )
    adam_beta1: float = option(0.9, "Let AdamW average gradients with this decay.")
    adam_beta2: float = option(0.95, "Let AdamW average squared gradients with this decay.")
    weight_decay: float = option(0.0, "Let AdamW shrink weights at this rate.")
    max_grad_norm: float = option(1.0, "Clip gradients to this norm.")
    ema_decay: float | None = option(None, "Average the weights with this decay, and save the average.", "no average")
    seed: int = option(42, "Draw everything from this seed.")
    deterministic: bool = option(False, "Take deterministic kernels where there are any, which are slower on a GPU.")

    mixed_precision: str = option("bf16", "Compute in this precision beside float32: no, bf16 or fp16.")
    dtype: str = option(
        "bfloat16", "Keep the frozen weights in this type; trained ones are float32. FSDP wants float32 here."
    )
    gradient_checkpointing: bool = option(
        True, "Compute activations again in the backward pass, which takes less memory and a third more time."
    )
    attn_implementation: str = option("sdpa", "Compute attention by sdpa, flash_attention_2 or eager.")
    num_crops: int | None = option(None, "Cut an image into at most this many crops on Phi-3.5-vision.", "16")
    num_workers: int = option(4, "Prepare images in this many processes for each that trains.")
    cache_images: bool = option(False, "Keep prepared images in memory, which suits small ones with --num-workers 0.")
    check_images: bool = option(True, "Decode all images before the run, to leave out those that cannot be.")

    validate_every: int = option(100, "Validate after this many steps each time, and at the end in any case.")
    save_every: int = option(100, "Save a checkpoint to go on from after this many steps each time.")
    keep_checkpoints: int = option(2, "Keep this many of those checkpoints.")
    log_every: int = option(1, "Write a line of log.jsonl after this many steps each time.")
    log_with: str = option(
        "",
        "Log to these trackers of accelerate too, comma-separated: tensorboard, wandb and others.",
        "log.jsonl alone",
    )
    project: str = option("llava-reward", "Log to trackers under this project name.")
    published_layout: bool = option(False, "Save also in the layout that the released code reads.")

    def __post_init__(self) -> None:
        # One list is the same whether it comes alone or as a list of one.
        sources = self.sources()
        object.__setattr__(self, "train_data", sources[0] if len(sources) == 1 else sources or "")
        for name, known in (
            ("optimizer_scope", SCOPES),
            ("mixed_precision", PRECISIONS),
            ("dtype", DTYPES),
            ("quantize", QUANTIZE),
        ):
            if getattr(self, name) not in known and not (name == "quantize" and self.quantize is None):
                raise ValueError(f"Unknown `{name}` {getattr(self, name)!r}. Known: {', '.join(known)}.")
        positive: tuple[str, ...] = (
            "batch_size", "micro_batch_size", "epochs", "learning_rate", "validate_every", "save_every",
            "keep_checkpoints", "log_every", "max_grad_norm", "lora_alpha", "max_steps", "num_crops",
        )  # fmt: skip
        for name in positive if self.full_finetune else (*positive, "lora_rank"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"Expected `{name}` to be positive, but got {value}.")
        for name in ("ema_decay", "lora_dropout", "validation_fraction"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"Expected `{name}` to be at least 0 and below 1, but got {value}.")
        if self.full_finetune and self.optimizer_scope == "lora_only":
            raise ValueError("Expected `optimizer_scope` 'all' with `full_finetune`, but got 'lora_only'.")
        for name in ("lora_vision", "quantize", "init_from"):
            if self.full_finetune and getattr(self, name):
                raise ValueError(
                    f"Expected no `{name}` with `full_finetune`, which has no LoRA, but got {getattr(self, name)!r}."
                    + (" Pass a full fine-tune to go on with as `backbone`." if name == "init_from" else "")
                )
        if self.validation_data and self.validation_fraction:
            raise ValueError("Expected `validation_data` or `validation_fraction`, but got both.")
        self._check_probabilities(sources)
        # Trained weights are float32, and meet the frozen ones' dtype unless these come first (LoRA) or there are none.
        mixed = self.optimizer_scope == "all" and not self.full_finetune and self.dtype != "float32"
        if mixed and self.mixed_precision == "no":
            raise ValueError(
                f"Expected `dtype` 'float32' with `mixed_precision` 'no' and `optimizer_scope` 'all', but got "
                f"{self.dtype!r}."
            )
        check_attention_name(self.attn_implementation)
        self.check_published(self.reward_config())

    def _check_probabilities(self, sources: list[str]) -> None:
        if repeated := sorted({name for name in sources if sources.count(name) > 1}):
            raise ValueError(
                f"Expected different data sets in `train_data`, but got '{repeated[0]}' twice. Let "
                f"`train_probabilities` draw from it more often."
            )
        if self.train_probabilities is None:
            return
        if len(self.train_probabilities) != len(sources):
            raise ValueError(
                f"Expected one of `train_probabilities` for each of `train_data`, but got "
                f"{len(self.train_probabilities)} for {len(sources)}."
            )
        if not all(math.isfinite(value) and value > 0 for value in self.train_probabilities):
            raise ValueError(
                f"Expected `train_probabilities` above 0, but got {self.train_probabilities}. Leave out data that is "
                f"not to be drawn."
            )

    def sources(self) -> list[str]:
        """The data sets to train on."""
        found = [self.train_data] if isinstance(self.train_data, str) else list(self.train_data)
        return [name for name in found if name]

    def check_published(self, reward: RewardConfig) -> None:
        """Make sure that what comes of the run can be saved as it asks for.

        Raises:
            ValueError: if `published_layout` cannot hold it.
        """
        lost = ["full_finetune"] if self.full_finetune else []
        lost += reward.beyond_published()
        if self.published_layout and lost:
            raise ValueError(
                f"The published layout has no place for {', '.join(lost)}: neither this package nor the released code "
                f"could load what it would hold. Train without `published_layout` (our own layout is saved in any "
                f"case), or without {', '.join(lost)}."
            )

    def reward_config(self) -> RewardConfig:
        """The configuration of the head that is trained."""
        return RewardConfig(
            objective=self.objective,
            value_head_dim=self.value_head_dim,
            tau=self.tau,
            add_cross_attention=self.add_cross_attention,
            hidden_layer=self.hidden_layer,
            visual_layer=self.visual_layer,
            mean_pooling=self.mean_pooling,
        )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def shipped_configs() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = files("llava_reward_guide") / "configs"
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml"))


def load_config(source: str | Path | None, overrides: Mapping[str, Any] | None = None) -> TrainingConfig:
    """A config from YAML.

    Args:
        source: a file, or the name of a shipped recipe; None for the defaults.
        overrides: settings in place of the file's.

    Raises:
        ValueError: for a file that is missing, unknown settings, or values of the wrong type.
    """
    path: Any = None
    if source is not None:
        path = Path(source)
        if not path.is_file():
            path = files("llava_reward_guide") / "configs" / f"{source}.yaml"
            if not path.is_file():
                raise ValueError(f"Expected a YAML file or one of {', '.join(shipped_configs())}, but got '{source}'.")
    return read_settings(TrainingConfig, path, overrides)

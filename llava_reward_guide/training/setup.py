"""What is trained, and with which precision."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import PartialState
from torch import nn

from ..backbones import Backbone, backbone_of, load_backbone
from ..checkpoint import Checkpoint, find_checkpoint, read_checkpoint
from ..loading import quantization_config
from ..model import LlavaReward
from ..packages import require
from ..untrained import new_perspective
from .config import TrainingConfig


def build_reward(config: TrainingConfig) -> LlavaReward:
    """The backbone of a config with a perspective on it: a fresh one, the same for the same seed, or that of the
    checkpoint `init_from`.

    Raises:
        CheckpointError: for a backbone or checkpoint that is missing, incomplete or does not fit.
        ImportError: if an option needs a package that is not installed.
        ValueError: if the checkpoint to start from has a head or LoRA other than that of the config.
    """
    check_packages(config)
    # Before gigabytes of backbone: most of what can be wrong shows in the small files.
    start = _starting_point(config) if config.init_from else None
    dtype = getattr(torch, config.dtype)
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": config.attn_implementation}
    if config.quantize is not None:
        options["quantization_config"] = quantization_config(config.quantize, dtype)
        options["device_map"] = {"": PartialState().device}
    backbone = load_backbone(config.backbone, **options)
    if config.quantize is not None:
        _prepare_quantized(backbone)
    if config.num_crops is not None:
        if backbone.num_crops is None:
            raise ValueError(f"Expected no `num_crops` for {type(backbone).__name__}, which has no crops to count.")
        backbone.num_crops = config.num_crops
    reward = LlavaReward(backbone.requires_grad_(False), config.micro_batch_size)
    torch.manual_seed(config.seed)
    if start is not None:
        reward.add_perspective(config.perspective, start)
        return reward
    new_perspective(
        reward,
        config.perspective,
        config.reward_config(),
        rank=0 if config.full_finetune else config.lora_rank,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        vision=config.lora_vision,
    )
    return reward


def check_packages(config: TrainingConfig) -> None:
    """Look for the packages that the settings need.

    Raises:
        ImportError: naming the extra that brings what is missing.
    """
    require("matplotlib", "Training, which plots how reliable the reward is,", "train")
    if not config.full_finetune:
        require("peft", "Training LoRA", "train")
    if config.quantize is not None:
        require("bitsandbytes", f"`quantize` '{config.quantize}'")


def _starting_point(config: TrainingConfig) -> Checkpoint:
    folder = find_checkpoint(config.init_from)
    # The published files do not tell classification from Bradley-Terry, and one may be trained on the other.
    stored = read_checkpoint(folder)
    checkpoint = stored.on(backbone_of(config.backbone))
    wanted, adapter = config.reward_config(), checkpoint.adapter
    if adapter is None:
        raise ValueError(f"Expected LoRA in '{folder}' to start from, but it has none.")
    pairs = [
        (name, getattr(wanted, name), getattr(stored.config, name))
        for name in ("value_head_dim", "add_cross_attention", "hidden_layer", "visual_layer", "mean_pooling")
    ]
    pairs += [("lora_rank", config.lora_rank, adapter.rank), ("lora_alpha", config.lora_alpha, adapter.alpha)]
    pairs += [("lora_vision", config.lora_vision, any(map(_in_tower, adapter.weights)))]
    if different := [(name, own, found) for name, own, found in pairs if own != found]:
        raise ValueError(
            f"Expected the head and LoRA of '{config.init_from}' to start from it, but got others. Set "
            f"{', '.join(f'`{name}` to {found!r} (it is {own!r})' for name, own, found in different)}."
        )
    return replace(checkpoint, config=wanted, adapter=replace(adapter, dropout=config.lora_dropout))


def _in_tower(name: str) -> bool:
    return any(part in ("vision_tower", "visual", "img_processor") for part in name.split("."))


def _prepare_quantized(backbone: Backbone) -> None:
    """What is not quantised becomes float32 and all is frozen; gradient checkpointing is left to the config."""
    require("peft", "Training on quantized weights", "train")
    from peft import prepare_model_for_kbit_training

    prepare_model_for_kbit_training(backbone.model, use_gradient_checkpointing=False)


def make_trainable(reward: LlavaReward, config: TrainingConfig) -> list[nn.Parameter]:
    """Freeze the rest, make what is trained float32, switch on gradient checkpointing.

    Raises:
        ValueError: if there is nothing to train.
    """
    if config.full_finetune:
        reward.requires_grad_(False)
        reward.backbone.requires_grad_(True)
        reward.head.requires_grad_(True)
    else:
        everything = config.optimizer_scope == "all"
        reward.trainable(adapter=True, projector=everything, head=everything)
    parameters = [parameter for parameter in reward.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError(
            "Expected parameters to train, but got none: `optimizer_scope` 'lora_only' needs a perspective with LoRA."
        )
    for parameter in parameters:
        parameter.data = parameter.data.float()
    if config.gradient_checkpointing:
        reward.backbone.model.gradient_checkpointing_enable({"use_reentrant": False})
    return parameters


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters: trained, by part, and of the whole model."""

    adapter: int
    projector: int
    head: int
    backbone: int
    total: int

    @property
    def trainable(self) -> int:
        return self.adapter + self.projector + self.head + self.backbone

    def __str__(self) -> str:
        return (
            f"{self.trainable:,} of {self.total:,} parameters are trained ({self.trainable / self.total:.2%}): "
            f"LoRA {self.adapter:,}, projector {self.projector:,}, SkipCA and head {self.head:,}"
            + (f", rest of the backbone {self.backbone:,}" if self.backbone else "")
        )


def count_parameters(reward: LlavaReward) -> ParameterCount:
    """Of the active perspective on its backbone; works on the meta device."""
    projector = {id(parameter) for parameter in reward.backbone.projector.parameters()}
    counts = dict.fromkeys(("adapter", "projector", "head", "backbone"), 0)
    for name, parameter in reward.backbone.named_parameters():
        part = "adapter" if ".lora_" in name else "projector" if id(parameter) in projector else "backbone"
        counts[part] += parameter.numel() * parameter.requires_grad
    counts["head"] = sum(parameter.numel() for parameter in reward.head.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for module in (reward.backbone, reward.head) for parameter in module.parameters())
    return ParameterCount(**counts, total=total)

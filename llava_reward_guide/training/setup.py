"""What is trained, and with which precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..backbones import load_backbone
from ..model import LlavaReward
from ..untrained import new_perspective
from .config import TrainingConfig


def build_reward(config: TrainingConfig) -> LlavaReward:
    """The backbone of a config with a fresh perspective on it, the same for the same seed."""
    backbone = load_backbone(
        config.backbone, dtype=getattr(torch, config.dtype), attn_implementation=config.attn_implementation
    )
    if config.num_crops is not None:
        if backbone.num_crops is None:
            raise ValueError(f"Expected no `num_crops` for {type(backbone).__name__}, which has no crops to count.")
        backbone.num_crops = config.num_crops
    reward = LlavaReward(backbone.requires_grad_(False), config.micro_batch_size)
    torch.manual_seed(config.seed)
    new_perspective(
        reward,
        config.perspective,
        config.reward_config(),
        rank=0 if config.full_finetune else config.lora_rank,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
    )
    return reward


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

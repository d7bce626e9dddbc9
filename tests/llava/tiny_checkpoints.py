"""A tiny Phi-3.5-vision on disk, and checkpoints of a reward on it."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch
from PIL import Image

from llava_reward_guide import LlavaReward, RewardConfig, new_perspective
from llava_reward_guide.untrained import random_backbone, save_backbone


GPM = RewardConfig("general-preference", value_head_dim=4, tau=0.2)
SAFETY = RewardConfig("classification", add_cross_attention=False)
IMAGE = Image.effect_noise((90, 70), 60).convert("RGB")


_folders: list[tempfile.TemporaryDirectory] = []


@functools.cache
def checkpoints() -> tuple[Path, dict[str, torch.Tensor]]:
    """A backbone, and a reward on it with three trained perspectives, saved in both layouts; what they say of IMAGE."""
    _folders.append(tempfile.TemporaryDirectory())
    root = Path(_folders[-1].name)
    torch.manual_seed(0)
    backbone = random_backbone("phi3_v", "tiny", num_crops=1)
    backbone.model.config.name_or_path = save_backbone(backbone, root / "base")
    reward = LlavaReward(backbone)
    scores = {}
    for name, config in (("alignment", RewardConfig()), ("preference", GPM), ("safety", SAFETY)):
        new_perspective(reward, name, config, rank=2, alpha=4)
        with torch.no_grad():
            for parameter in reward.trainable():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        reward.eval()
        scores[name] = reward.embed([IMAGE], ["a red cube"])
        reward.save_pretrained(root / name)
        reward.save_pretrained(root / f"{name}-published", layout="published")
    return root, scores

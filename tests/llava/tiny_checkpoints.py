"""A tiny Phi-3.5-vision on disk, and checkpoints of a reward on it."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

from llava_reward_guide import LlavaReward, RewardConfig, new_perspective
from llava_reward_guide.backbones import Backbone
from llava_reward_guide.untrained import random_backbone


GPM = RewardConfig("general-preference", value_head_dim=4, tau=0.2)
SAFETY = RewardConfig("classification", add_cross_attention=False)
IMAGE = Image.effect_noise((90, 70), 60).convert("RGB")


def save_backbone(backbone: Backbone, folder: Path) -> Path:
    if backbone.model_type == "phi3_v":
        # As published, with what the reward does not use, under the published prefix.
        weights = {f"model.{name}": value for name, value in backbone.model.state_dict().items()}
        weights |= {"lm_head.weight": torch.zeros(4, 4), "model.vision_embed_tokens.wte.weight": torch.zeros(4, 4)}
        folder.mkdir()
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        backbone.model.config.save_pretrained(folder)
    else:
        backbone.model.save_pretrained(folder)
    backbone.tokenizer.save(str(folder / "tokenizer.json"))
    return folder


_folders: list[tempfile.TemporaryDirectory] = []


@functools.cache
def checkpoints() -> tuple[Path, dict[str, torch.Tensor]]:
    """A backbone, and a reward on it with three trained perspectives, saved in both layouts; what they say of IMAGE."""
    _folders.append(tempfile.TemporaryDirectory())
    root = Path(_folders[-1].name)
    torch.manual_seed(0)
    backbone = random_backbone("phi3_v", "tiny", num_crops=1)
    backbone.model.config.name_or_path = str(save_backbone(backbone, root / "base"))
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

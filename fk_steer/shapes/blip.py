"""The world's BLIP before its training: ImageReward's network, small, on the guide's vision model."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertTokenizer, CLIPModel

from ..rewards.blip import ImageRewardModel, text_config, vision_config
from ..rewards.image_reward import MAX_LENGTH, MEAN, STD
from ..rewards.images import normalize
from .captions import sample_pair
from .models import WIDTH
from .tokenizer import words
from .train_clip import pixels_of
from .world import SIZE, render


VIT = {
    "embed_dim": WIDTH,
    "depth": 3,
    "num_heads": WIDTH // 32,
    "img_size": SIZE,
    "patch_size": 8,
    "layer_norm_eps": 1e-5,
}
"""vit_config.json"""


def make_tokenizer() -> BertTokenizer:
    """BERT's, with the world's words as its vocabulary."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        path.write_text("\n".join(vocabulary))
        return BertTokenizer(str(path), model_max_length=MAX_LENGTH)


def med_config(tokenizer: BertTokenizer, layers: int = 3) -> dict[str, Any]:
    """med_config.json"""
    return {
        # BLIP adds two tokens to BERT's.
        "vocab_size": len(tokenizer) + 2,
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": WIDTH // 32,
        "max_position_embeddings": MAX_LENGTH,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    }


def make_model(med: dict[str, Any], clip: CLIPModel | None = None) -> ImageRewardModel:
    """ImageReward's network, its vision model started from that of a CLIP of the same sizes."""
    model = ImageRewardModel(vision_config(VIT), text_config(med, WIDTH))
    if clip is not None:
        start_from(model.vision, clip.vision_model)
    return model


@torch.no_grad()
def start_from(blip: nn.Module, clip: Any) -> None:
    """Give a `BlipVisionModel` the weights of a CLIP vision model.

    CLIP normalises its embeddings before the first layer and BLIP does not; that is replaced by the affine map of each
    patch that comes closest to it on 64 renders. The layers are the same but for the activation, GELU instead of its
    approximation.
    """
    rng = np.random.default_rng(0)
    pixels = normalize(pixels_of([render(sample_pair(rng, everything=True)[0]) for _ in range(64)]))
    embedded = clip.pre_layrnorm(clip.embeddings(pixels))
    patches = F.unfold(pixels, 8, stride=8).transpose(1, 2)
    inputs, outputs = patches - patches.mean(0), embedded[:, 1:] - embedded[:, 1:].mean(0)
    # Most of what a patch could show it never does here, so a little ridge.
    gram = inputs.flatten(0, 1).T @ inputs.flatten(0, 1)
    ridge = 1e-4 * gram.diagonal().mean() * torch.eye(len(gram))
    weight = torch.linalg.solve(gram + ridge, inputs.flatten(0, 1).T @ outputs.flatten(0, 1)).T
    offset = (embedded[:, 1:] - patches @ weight.T).mean(0)

    own = {
        "embeddings.class_embedding": torch.zeros(1, 1, weight.shape[0]),
        "embeddings.position_embedding": torch.cat([embedded[:1, 0], offset])[None],
        "embeddings.patch_embedding.weight": weight.unflatten(1, (3, 8, 8)),
        "embeddings.patch_embedding.bias": torch.zeros(weight.shape[0]),
    }
    theirs = clip.state_dict()
    for name in blip.state_dict():
        if name.startswith("embeddings."):
            continue
        if ".qkv." in name:
            own[name] = torch.cat([theirs[name.replace("qkv", f"{part}_proj")] for part in "qkv"])
        else:
            own[name] = theirs[name.replace("self_attn.projection", "self_attn.out_proj")]
    blip.load_state_dict(own)


@torch.no_grad()
def save_reward(
    model: ImageRewardModel, tokenizer: BertTokenizer, med: dict[str, Any], scores: Tensor, folder: Path
) -> None:
    """Save what `load_reward("image-reward", path=folder)` loads, in float16.

    The reward subtracts ImageReward's mean and divides by its standard deviation; the last layer is scaled such that
    the outcome has mean 0 and standard deviation 1 where the model gives `scores` (N,).
    """
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    scale = STD / scores.std()
    weights["mlp.layers.7.weight"] *= scale
    weights["mlp.layers.7.bias"] = (weights["mlp.layers.7.bias"] - scores.mean()) * scale + MEAN
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half() for name, value in weights.items()}, folder / "ImageReward.safetensors")
    (folder / "med_config.json").write_text(json.dumps(med, indent=2) + "\n")
    (folder / "vit_config.json").write_text(json.dumps(VIT, indent=2) + "\n")
    tokenizer.save_pretrained(folder)

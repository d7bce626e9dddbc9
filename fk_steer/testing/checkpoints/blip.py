"""BLIP as ImageReward and CycleReward name its tensors, and the head of the aesthetic predictor.

Sources: THUDM/ImageReward c1392c6, hjbahng/cyclereward 36e1077, christophschuhmann/improved-aesthetic-predictor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .weights import Shapes, linear, norm


MED_CONFIG = {
    "vocab_size": 30524,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "encoder_width": 1024,
}
"""What ImageReward's med_config.json says, as far as it matters."""


def score_head(width: int, prefix: str = "layers", places: Sequence[int] = (0, 2, 4, 6, 7)) -> Shapes:
    """The five linear layers of ImageReward and of the aesthetic predictor, in their places among all."""
    widths = [width, 1024, 128, 64, 16, 1]
    shapes: Shapes = {}
    for place, before, after in zip(places, widths, widths[1:]):
        shapes |= linear(f"{prefix}.{place}", after, before)
    return shapes


def image_reward(vit: Mapping[str, Any], med: Mapping[str, Any]) -> Shapes:
    """ImageReward.pt."""
    width, patch = vit.get("embed_dim", 1024), vit.get("patch_size", 16)
    hidden = int(width * vit.get("mlp_ratio", 4))
    shapes: Shapes = {
        "blip.visual_encoder.cls_token": (1, 1, width),
        "blip.visual_encoder.pos_embed": (1, (vit.get("img_size", 224) // patch) ** 2 + 1, width),
        "blip.visual_encoder.patch_embed.proj.weight": (width, 3, patch, patch),
        "blip.visual_encoder.patch_embed.proj.bias": (width,),
        **norm("blip.visual_encoder.norm", width),
    }
    for block in range(vit.get("depth", 24)):
        name = f"blip.visual_encoder.blocks.{block}"
        shapes |= norm(f"{name}.norm1", width) | norm(f"{name}.norm2", width)
        shapes |= linear(f"{name}.attn.qkv", 3 * width, width) | linear(f"{name}.attn.proj", width, width)
        shapes |= linear(f"{name}.mlp.fc1", hidden, width) | linear(f"{name}.mlp.fc2", width, hidden)
    text, inner = med["hidden_size"], med["intermediate_size"]
    name = "blip.text_encoder.embeddings"
    shapes |= {
        f"{name}.position_ids": (1, med["max_position_embeddings"]),
        f"{name}.word_embeddings.weight": (med["vocab_size"], text),
        f"{name}.position_embeddings.weight": (med["max_position_embeddings"], text),
        **norm(f"{name}.LayerNorm", text),
    }
    for layer in range(med["num_hidden_layers"]):
        name = f"blip.text_encoder.encoder.layer.{layer}"
        for attention, source in (("attention", text), ("crossattention", width)):
            shapes |= linear(f"{name}.{attention}.self.query", text, text)
            shapes |= linear(f"{name}.{attention}.self.key", text, source)
            shapes |= linear(f"{name}.{attention}.self.value", text, source)
            shapes |= linear(f"{name}.{attention}.output.dense", text, text)
            shapes |= norm(f"{name}.{attention}.output.LayerNorm", text)
        shapes |= linear(f"{name}.intermediate.dense", inner, text) | linear(f"{name}.output.dense", text, inner)
        shapes |= norm(f"{name}.output.LayerNorm", text)
    shapes |= linear("blip.vision_proj", 256, width) | linear("blip.text_proj", 256, text)
    return shapes | score_head(text, "mlp.layers")


def cycle_reward(vit: Mapping[str, Any], med: Mapping[str, Any]) -> Shapes:
    """CycleReward-Combo.pth and its siblings."""
    shapes = {name: shape for name, shape in image_reward(vit, med).items() if not name.startswith("mlp.")}
    return shapes | score_head(med["hidden_size"], "mlp.layers", (0, 2, 4, 6, 8))

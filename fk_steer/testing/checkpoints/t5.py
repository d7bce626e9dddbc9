"""CLIP-FlanT5, of VQAScore. Source: linzhiqiu/t2v_metrics before 74c7208."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .clip import clip_vision
from .weights import Shapes, linear


FLAN_T5_XXL = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_decoder_layers": 24,
    "num_heads": 64,
    "vocab_size": 32128,
    "relative_attention_num_buckets": 32,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0,
}

FLAN_T5_XL = {**FLAN_T5_XXL, "d_model": 2048, "d_ff": 5120, "num_heads": 32}


def clip_flant5(config: Mapping[str, Any], vision: Mapping[str, Any]) -> Shapes:
    """The shards of clip-flant5, together."""
    width, attention = config["d_model"], config["d_kv"] * config["num_heads"]
    buckets = (config["relative_attention_num_buckets"], config["num_heads"])
    shapes: Shapes = {
        "shared.weight": (config["vocab_size"], width),
        "lm_head.weight": (config["vocab_size"], width),
        **linear("mm_projector.0", width, vision["hidden_size"]),
        **linear("mm_projector.2", width, width),
        **clip_vision(vision, "vision_tower.vision_tower.vision_model."),
    }
    stacks = (
        ("encoder", config["num_layers"], ["SelfAttention"]),
        ("decoder", config["num_decoder_layers"], ["SelfAttention", "EncDecAttention"]),
    )
    for stack, layers, attentions in stacks:
        shapes[f"{stack}.embed_tokens.weight"] = (config["vocab_size"], width)
        shapes[f"{stack}.final_layer_norm.weight"] = (width,)
        shapes[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = buckets
        for layer in range(layers):
            for place, kind in enumerate(attentions):
                name = f"{stack}.block.{layer}.layer.{place}"
                shapes[f"{name}.layer_norm.weight"] = (width,)
                shapes |= {f"{name}.{kind}.{part}.weight": (attention, width) for part in "qkv"}
                shapes[f"{name}.{kind}.o.weight"] = (width, attention)
            name = f"{stack}.block.{layer}.layer.{len(attentions)}"
            shapes[f"{name}.layer_norm.weight"] = (width,)
            shapes |= {f"{name}.DenseReluDense.wi_{part}.weight": (config["d_ff"], width) for part in "01"}
            shapes[f"{name}.DenseReluDense.wo.weight"] = (width, config["d_ff"])
    return shapes

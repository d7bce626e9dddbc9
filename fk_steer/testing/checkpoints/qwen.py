"""Qwen2-VL with the head of HPSv3, and Qwen3-VL with those of HPSv3++.

Sources: the package hpsv3 1.0.0 with transformers 4.45.2, PlantPotatoOnMoon/HPSv3-PlusPlus 7bdbebc with transformers
4.57.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .weights import Shapes, linear, norm


QWEN3_VISION = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [8, 16, 24],
}
"""Of Qwen3-VL-8B."""


def qwen2_vl(config: Mapping[str, Any]) -> Shapes:
    """A Qwen2-VL as transformers named its tensors up to 4.51."""
    text, vision = config["text_config"], config["vision_config"]
    width, inner, out = vision["embed_dim"], 4 * vision["embed_dim"], vision["hidden_size"]
    merged = 4 * width
    shapes: Shapes = {
        "visual.patch_embed.proj.weight": (width, 3, 2, 14, 14),
        **norm("visual.merger.ln_q", width),
        **linear("visual.merger.mlp.0", merged, merged),
        **linear("visual.merger.mlp.2", out, merged),
    }
    for block in range(vision["depth"]):
        name = f"visual.blocks.{block}"
        shapes |= norm(f"{name}.norm1", width) | norm(f"{name}.norm2", width)
        shapes |= linear(f"{name}.attn.qkv", 3 * width, width) | linear(f"{name}.attn.proj", width, width)
        shapes |= linear(f"{name}.mlp.fc1", inner, width) | linear(f"{name}.mlp.fc2", width, inner)
    return shapes | qwen_text(text, "model", bias=True) | {"lm_head.weight": (text["vocab_size"], text["hidden_size"])}


def qwen3_vl(config: Mapping[str, Any]) -> Shapes:
    """A Qwen3-VL as transformers names its tensors."""
    text, vision = config["text_config"], {**QWEN3_VISION, **config["vision_config"]}
    width, inner, out = vision["hidden_size"], vision["intermediate_size"], vision["out_hidden_size"]
    merged = 4 * width
    shapes: Shapes = {
        "model.visual.patch_embed.proj.weight": (width, 3, 2, 16, 16),
        "model.visual.patch_embed.proj.bias": (width,),
        "model.visual.pos_embed.weight": (vision["num_position_embeddings"], width),
    }
    for block in range(vision["depth"]):
        name = f"model.visual.blocks.{block}"
        shapes |= norm(f"{name}.norm1", width) | norm(f"{name}.norm2", width)
        shapes |= linear(f"{name}.attn.qkv", 3 * width, width) | linear(f"{name}.attn.proj", width, width)
        shapes |= linear(f"{name}.mlp.linear_fc1", inner, width) | linear(f"{name}.mlp.linear_fc2", width, inner)
    deep = [f"deepstack_merger_list.{place}" for place in range(len(vision["deepstack_visual_indexes"]))]
    for merger in ("merger", *deep):
        name = f"model.visual.{merger}"
        shapes |= norm(f"{name}.norm", width if merger == "merger" else merged)
        shapes |= linear(f"{name}.linear_fc1", merged, merged) | linear(f"{name}.linear_fc2", out, merged)
    shapes |= qwen_text(text, "model.language_model", bias=False)
    return shapes | {"lm_head.weight": (text["vocab_size"], text["hidden_size"])}


def qwen_text(text: Mapping[str, Any], prefix: str, bias: bool) -> Shapes:
    """The language model of a Qwen-VL.

    Args:
        bias: of queries, keys and values, as Qwen2 has it; without, they are normalised, as in Qwen3.
    """
    width, inner, heads = text["hidden_size"], text["intermediate_size"], text["num_attention_heads"]
    size = text.get("head_dim", width // heads)
    shapes: Shapes = {f"{prefix}.embed_tokens.weight": (text["vocab_size"], width), f"{prefix}.norm.weight": (width,)}
    for layer in range(text["num_hidden_layers"]):
        name = f"{prefix}.layers.{layer}"
        shapes |= linear(f"{name}.self_attn.q_proj", heads * size, width, bias)
        for part in "kv":
            shapes |= linear(f"{name}.self_attn.{part}_proj", text["num_key_value_heads"] * size, width, bias)
        shapes |= linear(f"{name}.self_attn.o_proj", width, heads * size, bias=False)
        if not bias:
            shapes |= {f"{name}.self_attn.{part}_norm.weight": (size,) for part in "qk"}
        shapes |= {f"{name}.mlp.{part}_proj.weight": (inner, width) for part in ("gate", "up")}
        shapes[f"{name}.mlp.down_proj.weight"] = (width, inner)
        shapes |= {f"{name}.{part}_layernorm.weight": (width,) for part in ("input", "post_attention")}
    return shapes


def rank_head(width: int, prefix: str = "rm_head") -> Shapes:
    """The three linear layers of HPSv3 and HPSv3++."""
    return linear(f"{prefix}.0", 1024, width) | linear(f"{prefix}.3", 16, 1024) | linear(f"{prefix}.5", 2, 16)


def hpsv3(config: Mapping[str, Any]) -> Shapes:
    """HPSv3.safetensors."""
    return qwen2_vl(config) | rank_head(config["text_config"]["hidden_size"])


def hpsv3_plus(config: Mapping[str, Any], condition: int = 256) -> Shapes:
    """hpsv3++.pth."""
    width = config["text_config"]["hidden_size"]
    shapes = qwen3_vl(config) | rank_head(width)
    shapes |= linear("cond_encoder.0", condition, 2) | linear("cond_encoder.2", condition, condition)
    shapes |= linear("film_gen.0", width, condition) | linear("film_gen.2", 2 * width, width)
    shapes |= linear("cap_encoder.proj", condition, width)
    return shapes | linear("cap_encoder.pool_attn", 1, condition) | linear("cap_encoder.out_proj", 1, condition)

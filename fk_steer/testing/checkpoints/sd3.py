"""The transformer of Stable Diffusion 3.5, and DiNa-LRM, which scores with it.

Source: HKUST-C4G/diffusion-rm af485b4 with diffusers 0.36.0 and peft 0.17.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .weights import Shapes, linear, random_weights


SD3_MEDIUM: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 384,
    "dual_attention_layers": list(range(13)),
    "qk_norm": "rms_norm",
}
"""The transformer of Stable Diffusion 3.5 medium."""

DINA_LRM: dict[str, Any] = {
    "model": {
        "backbone_model_id": "stabilityai/stable-diffusion-3.5-medium",
        "num_transformer_layers": 12,
        "freeze_backbone": False,
        "use_lora": True,
        "lora_config": {"r": 64, "lora_alpha": 128, "init_lora_weights": "gaussian"},
        "use_logistic": False,
        "visual_head_idx": [4, 8, 12],
        "text_head_idx": [4, 8, 12],
        "use_text_features": True,
        "use_t_embed": True,
        "reward_head": {
            "use_proj_in": False,
            "width": -1,
            "out_dim": 1,
            "num_queries": 4,
            "num_attn_heads": 8,
            "dropout": 0.0,
        },
    },
    "training": {"add_noise": True},
}
"""What the published config.json says, as far as it matters."""

TINY_SD3: dict[str, Any] = {
    "sample_size": 8,
    "patch_size": 1,
    "in_channels": 4,
    "num_layers": 4,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 64,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 64,
    "out_channels": 4,
    "pos_embed_max_size": 24,
    "dual_attention_layers": [0, 1],
    "qk_norm": "rms_norm",
}
"""Of the form of `SD3_MEDIUM`, and the widths of `fk_steer.testing.sd3`."""

TINY_DINA_LRM: dict[str, Any] = {
    **DINA_LRM,
    "model": {
        **DINA_LRM["model"],
        "num_transformer_layers": 3,
        "lora_config": {"r": 2, "lora_alpha": 4, "init_lora_weights": "gaussian"},
        "visual_head_idx": [1, 2, 3],
        "text_head_idx": [2, 3],
    },
}


def sd3_transformer(config: Mapping[str, Any]) -> Shapes:
    """diffusion_pytorch_model.safetensors of a Stable Diffusion 3.5."""
    size = config["attention_head_dim"]
    width, patch = size * config["num_attention_heads"], config["patch_size"]
    shapes: Shapes = {
        "pos_embed.pos_embed": (1, config["pos_embed_max_size"] ** 2, width),
        "pos_embed.proj.weight": (width, config["in_channels"], patch, patch),
        "pos_embed.proj.bias": (width,),
        **linear("time_text_embed.timestep_embedder.linear_1", width, 256),
        **linear("time_text_embed.timestep_embedder.linear_2", width, width),
        **linear("time_text_embed.text_embedder.linear_1", width, config["pooled_projection_dim"]),
        **linear("time_text_embed.text_embedder.linear_2", width, width),
        **linear("context_embedder", config["caption_projection_dim"], config["joint_attention_dim"]),
        **linear("norm_out.linear", 2 * width, width),
        **linear("proj_out", patch**2 * config["out_channels"], width),
    }
    for layer in range(config["num_layers"]):
        name, last = f"transformer_blocks.{layer}", layer == config["num_layers"] - 1
        dual = layer in config["dual_attention_layers"]
        shapes |= linear(f"{name}.norm1.linear", (9 if dual else 6) * width, width)
        shapes |= linear(f"{name}.norm1_context.linear", (2 if last else 6) * width, width)
        parts = {"attn": ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj"]}
        parts["attn"] += [] if last else ["to_add_out"]
        norms = {"attn": ["norm_q", "norm_k", "norm_added_q", "norm_added_k"]}
        if dual:
            parts["attn2"], norms["attn2"] = parts["attn"][:4], norms["attn"][:2]
        for attention in parts:
            for part in parts[attention]:
                shapes |= linear(f"{name}.{attention}.{part}", width, width)
            shapes |= {f"{name}.{attention}.{part}.weight": (size,) for part in norms[attention]}
        for part in ["ff"] if last else ["ff", "ff_context"]:
            shapes |= linear(f"{name}.{part}.net.0.proj", 4 * width, width)
            shapes |= linear(f"{name}.{part}.net.2", width, 4 * width)
    return shapes


def sd3_weights(config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Random weights of `sd3_transformer`, those of the embeddings scaled like others."""
    weights = random_weights(sd3_transformer(config))
    for name, value in weights.items():
        if "embed" in name and name.endswith("weight"):
            weights[name] = value / value[0].numel() ** 0.5
    return weights


def dina_lora(config: Mapping[str, Any], transformer: Mapping[str, Any]) -> Shapes:
    """checkpoint/backbone_lora/adapter_model.safetensors.

    Args:
        config: config.json.
        transformer: configuration of the whole one.
    """
    layers, rank = config["model"]["num_transformer_layers"], config["model"]["lora_config"]["r"]
    shapes: Shapes = {}
    for name, shape in sd3_transformer(transformer).items():
        block, attention, _ = ([*name.split("."), "", ""])[1:4]
        if attention.startswith("attn") and len(shape) == 2 and int(block) < layers:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            shapes |= {f"{module}.lora_A.weight": (rank, shape[1]), f"{module}.lora_B.weight": (shape[0], rank)}
    return shapes


def adapter_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """adapter_config.json beside `dina_lora`, as far as it matters."""
    attention = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
    return {"peft_type": "LORA", "bias": "none", "target_modules": attention, **config["model"]["lora_config"]}


def dina_head(config: Mapping[str, Any], transformer: Mapping[str, Any]) -> Shapes:
    """checkpoint/rm_head.pt; see `dina_lora`."""
    model = config["model"]
    width = transformer["attention_head_dim"] * transformer["num_attention_heads"]
    shapes: Shapes = {"query_tokens": (1, model["reward_head"]["num_queries"], width)}
    for kind, places in (("visual", model["visual_head_idx"]), ("text", model["text_head_idx"])):
        for place in range(len(places)):
            name = f"layer_adapters_{kind}.{place}"
            shapes[f"{name}.layer_embed"] = (1, 1, width)
            shapes |= linear(f"{name}.cond_mlp.0", 2 * width, width) | linear(
                f"{name}.cond_mlp.2", 2 * width, 2 * width
            )
            shapes |= linear(f"{name}.proj", width // 4, width)
        shapes |= linear(f"agg_{kind}", width, len(places) * (width // 4))
    for name in ("attn1", "attn2"):
        kinds = ["vis", "text"] if name == "attn1" else ["vis"]
        shapes |= {f"{name}.norm_{one}.weight": (width,) for one in ("qvt" if name == "attn1" else "qv")}
        for part in ["to_q", "to_out.0", *(f"to_{one}_{kind}" for kind in kinds for one in "kv")]:
            shapes |= linear(f"{name}.{part}", width, width)
    for kind in ("vis", "text"):
        shapes |= linear(f"attn1.gate_{kind}.0", width, width) | linear(f"attn1.gate_{kind}.2", 1, width)
    shapes["norm_ff.weight"] = (width,)
    return shapes | linear("ff.0", 4 * width, width) | linear("ff.2", width, 4 * width) | linear("head", 1, width)


def dina_inputs() -> dict[str, Tensor]:
    """What golden rewards of a `TINY_DINA_LRM` are for: three latents, their texts, and noise (1, 4, 8, 8)."""
    drawn = torch.Generator().manual_seed(1)
    shapes = {"latents": (3, 4, 8, 8), "words": (3, 7, 64), "pooled": (3, 64)}
    inputs = {name: torch.randn(shape, generator=drawn) for name, shape in shapes.items()}
    # The first draw of the reward itself.
    return {**inputs, "noise": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))}

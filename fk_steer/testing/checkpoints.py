"""Names and shapes of the tensors in published reward checkpoints, at any size, and random weights under those names.

Sources: the code that wrote the files, THUDM/ImageReward c1392c6, tgxs002/HPSv2 866735e (open_clip),
christophschuhmann/improved-aesthetic-predictor, linzhiqiu/t2v_metrics before 74c7208.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


Shapes = dict[str, tuple[int, ...]]

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


def random_weights(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Weights whose outputs differ between inputs: scales near one, the rest of a variance that keeps activations'."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        if name == "logit_scale":
            value = torch.tensor(4.6052)
        elif len(shape) == 1 and name.endswith("weight"):
            value = 1 + 0.1 * value
        elif len(shape) == 1:
            value = 0.1 * value
        elif "embed" not in name and "shared" not in name:
            value = value / value[0].numel() ** 0.5
        weights[name] = value
    return weights


def linear(name: str, out_width: int, in_width: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (out_width, in_width), **({f"{name}.bias": (out_width,)} if bias else {})}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def score_head(width: int, prefix: str = "layers") -> Shapes:
    """The five linear layers of ImageReward and of the aesthetic predictor."""
    widths = [width, 1024, 128, 64, 16, 1]
    shapes: Shapes = {}
    for place, before, after in zip((0, 2, 4, 6, 7), widths, widths[1:]):
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


def open_clip(config: Mapping[str, Any]) -> Shapes:
    """The `state_dict` of HPS_v2_compressed.pt and HPS_v2.1_compressed.pt."""
    vision, text, embed = config["vision_cfg"], config["text_cfg"], config["embed_dim"]
    width, patch = vision["width"], vision["patch_size"]
    shapes: Shapes = {
        "positional_embedding": (text["context_length"], text["width"]),
        "text_projection": (text["width"], embed),
        "logit_scale": (),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": ((vision["image_size"] // patch) ** 2 + 1, width),
        "visual.proj": (width, embed),
        "visual.conv1.weight": (width, 3, patch, patch),
        "token_embedding.weight": (text["vocab_size"], text["width"]),
        **norm("visual.ln_pre", width),
        **norm("visual.ln_post", width),
        **norm("ln_final", text["width"]),
    }
    for prefix, tower in (("visual.transformer", vision), ("transformer", text)):
        width = tower["width"]
        for block in range(tower["layers"]):
            name = f"{prefix}.resblocks.{block}"
            shapes |= norm(f"{name}.ln_1", width) | norm(f"{name}.ln_2", width)
            shapes |= {f"{name}.attn.in_proj_weight": (3 * width, width), f"{name}.attn.in_proj_bias": (3 * width,)}
            shapes |= linear(f"{name}.attn.out_proj", width, width)
            shapes |= linear(f"{name}.mlp.c_fc", 4 * width, width) | linear(f"{name}.mlp.c_proj", width, 4 * width)
    return shapes


def clip_vision(config: Mapping[str, Any], prefix: str) -> Shapes:
    """The vision model of a `CLIPModel` checkpoint."""
    width, inner, patch = config["hidden_size"], config["intermediate_size"], config["patch_size"]
    shapes: Shapes = {
        f"{prefix}embeddings.class_embedding": (width,),
        f"{prefix}embeddings.patch_embedding.weight": (width, 3, patch, patch),
        f"{prefix}embeddings.position_embedding.weight": ((config["image_size"] // patch) ** 2 + 1, width),
        **norm(f"{prefix}pre_layrnorm", width),
        **norm(f"{prefix}post_layernorm", width),
    }
    for layer in range(config["num_hidden_layers"]):
        name = f"{prefix}encoder.layers.{layer}"
        shapes |= norm(f"{name}.layer_norm1", width) | norm(f"{name}.layer_norm2", width)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{name}.self_attn.{part}", width, width)
        shapes |= linear(f"{name}.mlp.fc1", inner, width) | linear(f"{name}.mlp.fc2", width, inner)
    return shapes


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

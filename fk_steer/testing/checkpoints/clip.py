"""CLIP as open_clip and as transformers name its tensors, and what is built on it: HPS v2 and MPS.

Sources: tgxs002/HPSv2 866735e (open_clip), Kwai-Kolors/MPS be9027f as imscore 0.0.11 saves it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .weights import Shapes, linear, norm


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
    return shapes | _layers(f"{prefix}encoder", config["num_hidden_layers"], width, inner)


def _layers(prefix: str, number: int, width: int, inner: int) -> Shapes:
    shapes: Shapes = {}
    for layer in range(number):
        name = f"{prefix}.layers.{layer}"
        shapes |= norm(f"{name}.layer_norm1", width) | norm(f"{name}.layer_norm2", width)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{name}.self_attn.{part}", width, width)
        shapes |= linear(f"{name}.mlp.fc1", inner, width) | linear(f"{name}.mlp.fc2", width, inner)
    return shapes


def clip(config: Mapping[str, Any], prefix: str) -> Shapes:
    """A `CLIPModel` of an open_clip configuration, as transformers names its tensors."""
    vision, text, embed = config["vision_cfg"], config["text_cfg"], config["embed_dim"]
    sizes = {"image_size": vision["image_size"], "patch_size": vision["patch_size"]}
    shapes = clip_vision(
        {**sizes, "hidden_size": vision["width"], "intermediate_size": 4 * vision["width"],
         "num_hidden_layers": vision["layers"]},
        f"{prefix}vision_model.",
    )  # fmt: skip
    width = text["width"]
    shapes |= {
        f"{prefix}logit_scale": (),
        f"{prefix}text_model.embeddings.token_embedding.weight": (text["vocab_size"], width),
        f"{prefix}text_model.embeddings.position_embedding.weight": (text["context_length"], width),
        f"{prefix}visual_projection.weight": (embed, vision["width"]),
        f"{prefix}text_projection.weight": (embed, width),
        **norm(f"{prefix}text_model.final_layer_norm", width),
    }
    return shapes | _layers(f"{prefix}text_model.encoder", text["layers"], width, 4 * width)


def mps(config: Mapping[str, Any], heads: int = 16, layers: int = 4, size: int = 64) -> Shapes:
    """model.safetensors of RE-N-Y/mpsv1.

    Args:
        config: of the CLIP, as open_clip has it.
        heads, layers, size: of the attention that follows.
    """
    width, inner = config["embed_dim"], heads * size
    shapes = clip(config, "mps.model.")
    for layer in range(layers):
        cross, among = (f"mps.cross_model.layers.{layer}.{part}.fn" for part in (0, 1))
        for name in (cross, among):
            shapes |= norm(f"{name}.norm", width)
        shapes |= linear(f"{cross}.to_q", inner, width, bias=False) | linear(f"{cross}.to_kv", 2 * size, width, False)
        shapes |= linear(f"{cross}.to_out", width, inner, bias=False)
        shapes |= linear(f"{cross}.ff.0", 8 * width, width, False) | linear(f"{cross}.ff.2", width, 4 * width, False)
        shapes[f"{among}.rotary_emb.inv_freq"] = (size // 2,)
        shapes |= linear(f"{among}.fused_attn_ff_proj", inner + 2 * size + 8 * width, width, bias=False)
        shapes |= linear(f"{among}.attn_out", width, inner, bias=False)
        shapes |= linear(f"{among}.ff_out.1", width, 4 * width, bias=False)
    return shapes

"""Weights of open_clip models as transformers' `CLIPModel`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor


VIT_H_14: dict[str, Any] = {
    "embed_dim": 1024,
    "vision_cfg": {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24},
}
"""open_clip's configuration of ViT-H-14."""

_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_RENAMED = [
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
]


def clip_config(open_clip: Mapping[str, Any]) -> Any:
    """The `CLIPConfig` of an open_clip configuration: exact GELU, the text pooled at its first end-of-text token."""
    from transformers import CLIPConfig

    vision, text = open_clip["vision_cfg"], open_clip["text_cfg"]
    shared = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "projection_dim": open_clip["embed_dim"]}
    return CLIPConfig(
        vision_config={
            **shared,
            "hidden_size": vision["width"],
            "intermediate_size": 4 * vision["width"],
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision.get("head_width", 64),
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
        },
        text_config={
            **shared,
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "max_position_embeddings": text["context_length"],
            "vocab_size": text["vocab_size"],
            # 2 makes transformers pool at the largest token, open_clip's rule: end-of-text is the last of its words.
            "eos_token_id": 2,
            "bos_token_id": None,
        },
        projection_dim=open_clip["embed_dim"],
    )


def to_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by `CLIPModel`'s names, from those by open_clip's. Names that are neither stay as they are."""
    converted = {}
    for name, value in weights.items():
        if name in _TRANSPOSED:
            converted[_TRANSPOSED[name]] = value.T.contiguous()
            continue
        renamed = name
        for pattern, replacement in _RENAMED:
            renamed = re.sub(pattern, replacement, renamed)
        if match := re.fullmatch(r"(.*)\.attn\.in_proj_(weight|bias)", renamed):
            for part, third in zip("qkv", value.chunk(3)):
                converted[f"{match[1]}.self_attn.{part}_proj.{match[2]}"] = third.clone()
        else:
            converted[renamed] = value
    return converted

"""ImageReward's network on transformers' BLIP classes, which is CycleReward's too, and its weights' names.

Architecture and names: THUDM/ImageReward, ImageReward/ImageReward.py and ImageReward/models/BLIP.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .loading import load_pretrained


TOKENIZER = ("google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594")

_RENAMED = [
    (r"^blip\.text_encoder\.", "text."),
    (r"^blip\.visual_encoder\.", "vision."),
    (r"^vision\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^vision\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^vision\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^vision\.norm\.", "vision.post_layernorm."),
    (r"^vision\.blocks\.", "vision.encoder.layers."),
    (r"^(vision\..*)\.norm([12])\.", r"\1.layer_norm\2."),
    (r"^(vision\..*)\.attn\.qkv\.", r"\1.self_attn.qkv."),
    (r"^(vision\..*)\.attn\.proj\.", r"\1.self_attn.projection."),
]
_UNUSED = re.compile(r"^blip\.(vision_proj|text_proj)\.|^blip\.text_encoder\.embeddings\.position_ids$")


def vision_config(vit: Mapping[str, Any]) -> Any:
    """The `BlipVisionConfig` of a timm-like description; what it leaves out is as in ViT-L/16 at 224 pixels."""
    from transformers import BlipVisionConfig

    width = vit.get("embed_dim", 1024)
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=int(width * vit.get("mlp_ratio", 4)),
        num_hidden_layers=vit.get("depth", 24),
        num_attention_heads=vit.get("num_heads", 16),
        image_size=vit.get("img_size", 224),
        patch_size=vit.get("patch_size", 16),
        hidden_act="gelu",
        layer_norm_eps=vit.get("layer_norm_eps", 1e-6),
    )


def text_config(med: Mapping[str, Any], vision_width: int) -> Any:
    """The `BlipTextConfig` of a med_config.json."""
    from transformers import BlipTextConfig

    names = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
        "hidden_act",
        "layer_norm_eps",
    )
    # With is_decoder the layers get their cross-attention; the model is called as an encoder all the same.
    special = {"bos_token_id": None, "pad_token_id": 0, "eos_token_id": None, "sep_token_id": None}
    sizes = {name: med[name] for name in names}
    return BlipTextConfig(**sizes, **special, encoder_hidden_size=vision_width, is_decoder=True)


class Score(nn.Module):
    """Five linear layers with nothing but dropout in between, which is off; the places of the dropout keep the
    checkpoint's numbering. The head of ImageReward and of the LAION aesthetic predictor.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width, 1024, 128, 64, 16, 1]
        linear = [nn.Linear(before, after) for before, after in zip(widths, widths[1:])]
        dropout = [nn.Dropout(0.2), nn.Dropout(0.2), nn.Dropout(0.1)]
        self.layers = nn.Sequential(
            linear[0], dropout[0], linear[1], dropout[1], linear[2], dropout[2], linear[3], linear[4]
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, width) -> (B,)."""
        return self.layers(features).squeeze(-1)


class ImageRewardModel(nn.Module):
    """Images and tokens -> scores before standardisation.

    Args:
        vision, text: a `BlipVisionConfig` and a `BlipTextConfig`.
        head: features (B, width) of the text -> scores (B,); None for ImageReward's.
    """

    def __init__(self, vision: Any, text: Any, head: nn.Module | None = None) -> None:
        from transformers import BlipTextModel, BlipVisionModel

        super().__init__()
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        self.mlp: Any = head or Score(text.hidden_size)

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, 3, H, W), (B, L), (B, L) -> (B,)."""
        image = self.vision(pixel_values=pixels).last_hidden_state
        hidden = self.text(
            input_ids, attention_mask=attention_mask, encoder_hidden_states=image, is_decoder=False
        ).last_hidden_state
        return self.mlp(hidden[:, 0])


def to_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by `ImageRewardModel`'s names, from those of ImageReward.pt, without those that scoring does not use."""
    converted = {}
    for name, value in weights.items():
        if _UNUSED.match(name):
            continue
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        converted[name] = value
    return converted


def load_tokenizer(path: str, reward: str) -> Any:
    """BERT's, with the two tokens that BLIP adds. The first token of a prompt stays [CLS]."""
    from transformers import BertTokenizer

    revision = TOKENIZER[1] if path == TOKENIZER[0] else None
    tokenizer = load_pretrained(BertTokenizer, path, reward, revision=revision)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    return tokenizer

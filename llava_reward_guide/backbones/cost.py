"""FLOPs of the parts that backbones share. A multiplication with its addition counts as two, as in torch."""

from __future__ import annotations

from typing import Any


def clip_flops(config: Any) -> int:
    """Of one view through a CLIP tower of this config."""
    patches = (config.image_size // config.patch_size) ** 2
    width, tokens = config.hidden_size, patches + 1
    embedding = 2 * patches * config.num_channels * config.patch_size**2 * width
    linear = 2 * tokens * (4 * width * width + 2 * width * config.intermediate_size)
    attention = 4 * tokens * tokens * width
    return embedding + config.num_hidden_layers * (linear + attention)


def decoder_flops(config: Any, length: int) -> int:
    """Of `length` tokens through a decoder with gated MLPs, causal attention counted in full."""
    width = config.hidden_size
    head = getattr(config, "head_dim", None) or width // config.num_attention_heads
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    linear = 2 * length * (width * (2 * queries + 2 * keys) + 3 * width * config.intermediate_size)
    attention = 4 * length * length * queries
    return config.num_hidden_layers * (linear + attention)

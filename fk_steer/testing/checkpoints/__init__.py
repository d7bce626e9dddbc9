"""Names and shapes of the tensors in published reward checkpoints, at any size, and random weights under those names.

Each module names the code that wrote the files.
"""

from .blip import MED_CONFIG, cycle_reward, image_reward, score_head
from .clip import mps, open_clip
from .qwen import hpsv3, hpsv3_plus
from .sd3 import (
    DINA_LRM,
    SD3_MEDIUM,
    TINY_DINA_LRM,
    TINY_SD3,
    adapter_config,
    dina_head,
    dina_inputs,
    dina_lora,
    sd3_transformer,
    sd3_weights,
)
from .t5 import FLAN_T5_XL, FLAN_T5_XXL, clip_flant5
from .weights import random_weights


__all__ = [
    "DINA_LRM",
    "FLAN_T5_XL",
    "FLAN_T5_XXL",
    "MED_CONFIG",
    "SD3_MEDIUM",
    "TINY_DINA_LRM",
    "TINY_SD3",
    "adapter_config",
    "clip_flant5",
    "cycle_reward",
    "dina_head",
    "dina_inputs",
    "dina_lora",
    "hpsv3",
    "hpsv3_plus",
    "image_reward",
    "mps",
    "open_clip",
    "random_weights",
    "score_head",
    "sd3_transformer",
    "sd3_weights",
]

"""Tiny pipelines of many families, whose stock calls take a tenth of a second, and arguments of their calls.

```py
make, call = FAMILIES["wan"]
make()(prompt="a red circle", num_inference_steps=4, **call)
```
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import PIL.Image
import torch
from diffusers.utils import numpy_to_pil
from PIL.Image import Image

from ..pipelines import CALLS, SIZE, flux, sd, sd3, sdxl
from .images import (
    deepfloyd_if,
    flux2,
    hidream,
    kandinsky5,
    pixart,
    qwen_image,
    sana,
    sd3_img2img,
    sd_inpaint,
    z_image,
)
from .modular import modular_flux, modular_of, modular_sdxl
from .omnigen import omnigen
from .videos import animatediff, cogvideox, hunyuan_video, ltx, wan


def picture(side: int = 16, seed: int = 1) -> torch.Tensor:
    """An image (1, 3, side, side) in [0, 1] to start from."""
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(seed))


def photograph(side: int = 48) -> Image:
    """An image, as a user has one."""
    return numpy_to_pil(picture(side).movedim(1, -1).numpy())[0]


def hole(side: int = 48) -> Image:
    """A mask in which a part of an image is white."""
    mask = PIL.Image.new("L", (side, side))
    mask.paste(255, (side // 4, side // 3, side // 2, 2 * side // 3))
    return mask


_TEXT = {"max_sequence_length": 16}
_EIGHTFOLD = {"height": 32, "width": 32}

FAMILIES: Mapping[str, tuple[Callable[[], Any], Mapping[str, Any]]] = MappingProxyType(
    {
        **CALLS,
        "sd-inpaint": (
            sd_inpaint,
            {**SIZE, "image": photograph(), "mask_image": hole(), "padding_mask_crop": 4, "strength": 1.0},
        ),
        "sd3-img2img": (sd3_img2img, {"image": picture(), "strength": 0.75, "guidance_scale": 5.0}),
        "flux2": (flux2, {**SIZE, "max_sequence_length": 32, "text_encoder_out_layers": (1,)}),
        "qwen-image": (qwen_image, {**SIZE, **_TEXT, "true_cfg_scale": 3.0, "negative_prompt": "blurry"}),
        "z-image": (z_image, {**SIZE, "max_sequence_length": 32, "guidance_scale": 3.0}),
        "sana": (sana, {**_EIGHTFOLD, **_TEXT, "complex_human_instruction": None, "use_resolution_binning": False}),
        "pixart": (pixart, {**SIZE, **_TEXT, "use_resolution_binning": False, "clean_caption": False}),
        "omnigen": (omnigen, {**_EIGHTFOLD, "guidance_scale": 2.5}),
        "hidream": (hidream, {**SIZE, **_TEXT}),
        "kandinsky5": (kandinsky5, {**_EIGHTFOLD, **_TEXT, "guidance_scale": 3.5}),
        "deepfloyd-if": (deepfloyd_if, {**SIZE, "clean_caption": False}),
        "animatediff": (animatediff, {**SIZE, "num_frames": 2}),
        "wan": (wan, {**SIZE, **_TEXT, "num_frames": 5}),
        "ltx": (ltx, {**_EIGHTFOLD, **_TEXT, "num_frames": 9}),
        "cogvideox": (cogvideox, {**SIZE, **_TEXT, "num_frames": 9}),
        "hunyuan-video": (
            hunyuan_video,
            {**SIZE, **_TEXT, "num_frames": 5, "prompt_template": {"template": "{}", "crop_start": 0}},
        ),
        "modular-sdxl": (modular_sdxl, SIZE),
        "modular-flux": (modular_flux, {**SIZE, "max_sequence_length": 16}),
    }
)
"""Name -> function that makes the pipeline, arguments of its call beside the prompt."""

__all__ = [
    "FAMILIES",
    "animatediff",
    "cogvideox",
    "deepfloyd_if",
    "flux",
    "flux2",
    "hidream",
    "hole",
    "hunyuan_video",
    "kandinsky5",
    "ltx",
    "modular_flux",
    "modular_of",
    "modular_sdxl",
    "omnigen",
    "photograph",
    "picture",
    "pixart",
    "qwen_image",
    "sana",
    "sd",
    "sd3",
    "sd3_img2img",
    "sd_inpaint",
    "sdxl",
    "wan",
    "z_image",
]

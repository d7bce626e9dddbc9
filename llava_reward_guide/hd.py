"""The HD transform of Phi-3-vision, without torchvision."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from .images import ImageError, normalize


CROP = 336
"""Side in pixels of a crop: the input of CLIP ViT-L/14 at 336."""

CROP_TOKENS = 12
"""Visual tokens along a side of a crop: 24 patches, 2 x 2 of them merged."""


@dataclass(frozen=True)
class HDLayout:
    """How the HD transform lays an image out.

    Attributes:
        size: (width, height) in pixels the image is scaled to.
        padding: (left, top, right, bottom) white pixels around it.
        grid: (rows, columns) of crops.
        side: visual tokens along a side of a crop.
    """

    size: tuple[int, int]
    padding: tuple[int, int, int, int]
    grid: tuple[int, int]
    side: int = CROP_TOKENS

    @property
    def num_tokens(self) -> int:
        """Visual tokens: side² per crop and for the global view, a separator per row of tokens, one between the two."""
        rows, columns = self.grid
        return (rows * columns + 1) * self.side**2 + 1 + (rows + 1) * self.side


def hd_layout(width: int, height: int, num_crops: int = 16, crop: int = CROP, side: int = CROP_TOKENS) -> HDLayout:
    """The largest grid of at most `num_crops` crops that keeps the proportions of an image.

    Args:
        crop: side of a crop in pixels.
        side: the same in visual tokens.

    Raises:
        ImageError: for an image so elongated that even one row of crops is too many.
        ValueError: for sizes below one.
    """
    if min(width, height, num_crops) < 1:
        raise ValueError(f"Expected sizes and `num_crops` of at least 1, but got {width} x {height} and {num_crops}.")
    portrait = width < height
    ratio = max(width, height) / min(width, height)
    scale = 1
    while scale * math.ceil(scale / ratio) <= num_crops:
        scale += 1
    scale -= 1
    long, short = crop * scale, int(crop * scale / ratio)
    if short < 1:
        raise ImageError(f"Expected an image less elongated than {crop * scale}:1, but got {width} x {height}.")
    total = crop * math.ceil(short / crop)
    before = (total - short) // 2
    after = total - short - before
    crops = (total // crop, long // crop)
    if portrait:
        return HDLayout((short, long), (before, 0, after, 0), (crops[1], crops[0]), side)
    return HDLayout((long, short), (0, before, 0, after), crops, side)


def hd_transform(image: Image.Image, num_crops: int = 16, crop: int = CROP) -> Tensor:
    """Scale and pad an RGB image to a grid of crops.

    Equal, pixel for pixel, to the processor of Phi-3.5-vision: bilinear with Pillow's antialiasing, white padding.

    Returns:
        (3, rows * crop, columns * crop) uint8.
    """
    layout = hd_layout(*image.size, num_crops, crop)
    portrait = image.width < image.height
    # Portraits are scaled on their side, as in the original: Pillow's two passes round, so their order matters.
    if portrait:
        scaled = image.transpose(Image.Transpose.TRANSPOSE).resize(layout.size[::-1], Image.Resampling.BILINEAR)
        scaled = scaled.transpose(Image.Transpose.TRANSPOSE)
    else:
        scaled = image.resize(layout.size, Image.Resampling.BILINEAR)
    padded = ImageOps.expand(scaled, layout.padding, fill=(255, 255, 255))
    return torch.from_numpy(np.array(padded)).permute(2, 0, 1)


def hd_crops(pixels: Tensor, crop: int = CROP) -> Tensor:
    """The views that CLIP sees of a transformed image: the whole of it, then the crops row by row.

    Args:
        pixels: (3, rows * crop, columns * crop) uint8, on any device.

    Returns:
        (1 + rows * columns, 3, crop, crop) float32.
    """
    normalized = normalize(pixels)
    # Not antialiased, and after the normalisation: the model was trained on these very aliases.
    whole = F.interpolate(normalized[None], size=(crop, crop), mode="bicubic", align_corners=False)
    rows, columns = pixels.shape[1] // crop, pixels.shape[2] // crop
    crops = normalized.view(3, rows, crop, columns, crop).permute(1, 3, 0, 2, 4).reshape(-1, 3, crop, crop)
    return torch.cat([whole, crops])

"""Images in, and the HD transform of Phi-3-vision, without torchvision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor


Images = Tensor | Sequence[Image.Image]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

CROP = 336
"""Side in pixels of a crop: the input of CLIP ViT-L/14 at 336."""

CROP_TOKENS = 12
"""Visual tokens along a side of a crop: 24 patches, 2 x 2 of them merged."""


class ImageError(ValueError):
    """An image that cannot be scored; of a file the message names it."""


def load_image(path: str | Path) -> Image.Image:
    """An image file as RGB, the way up that its EXIF says.

    Raises:
        ImageError: if it is missing or not a readable image.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise ImageError(f"Expected an image at '{path}', but there is no such file.") from None
    # Truncated and hostile files raise all of these, by format.
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(
            f"Expected a readable image at '{path}', but it is corrupt or of no known format: {error}."
        ) from None


def to_pil(images: Images) -> list[Image.Image]:
    """Images as RGB PIL images, rounded to 8 bits as a pipeline's `output_type="pil"` does.

    Args:
        images: (B, 3, H, W) float in [0, 1] on any device, or PIL images of any mode and size.

    Raises:
        ValueError: for a tensor of another shape.
    """
    if isinstance(images, Tensor):
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"Expected images of shape (B, 3, H, W), but got {tuple(images.shape)}.")
        arrays = (images.detach().float().clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
        return [Image.fromarray(array) for array in arrays]
    return [image.convert("RGB") for image in images]


def normalize(pixels: Tensor | Image.Image) -> Tensor:
    """(3, H, W) float32, normalised as for CLIP, of an RGB image or (3, H, W) uint8."""
    if isinstance(pixels, Image.Image):
        pixels = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
    mean, std = (torch.tensor(value, device=pixels.device).view(3, 1, 1) for value in (CLIP_MEAN, CLIP_STD))
    return (pixels.float() / 255 - mean) / std


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

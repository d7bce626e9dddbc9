"""Preprocessing images on tensors, equal to what Pillow does.

Scorers were trained and published with Pillow's resampling, which antialiases and rounds to 8 bits after each of its
two passes; torch's does neither. `resize` repeats Pillow's arithmetic on tensors of any device, pixel for pixel, so
that steering scores the very image that would have been saved, without leaving the device. Float images go through the
same steps with the same kernels but nothing is rounded, which makes them differentiable.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import PIL
import torch
import torch.nn.functional as F
from PIL.Image import Image, Resampling
from torch import Tensor

from llava_reward_guide.images import as_rgb, check_images


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_PILLOW = tuple(int(part) for part in PIL.__version__.split(".")[:2])
_PRECISION_BITS = 22  # of the fixed-point weights in Pillow's src/libImaging/Resample.c for 8-bit channels


def to_uint8(images: Tensor | Sequence[Image], device: torch.device | str) -> list[Tensor] | Tensor:
    """Images as 8-bit RGB, the way a pipeline's `output_type="pil"` rounds them.

    Args:
        images: (B, 3, H, W) float in [0, 1], or PIL images of any mode and sizes.

    Returns:
        (B, 3, H, W) uint8 on `device`; a list of (3, H, W) for PIL images.

    Raises:
        ImageError: for anything else, see `check_images`, or an image that cannot be RGB, see `as_rgb`.
    """
    check_images(images)
    if isinstance(images, Tensor):
        return (images.detach().to(device).float().clamp(0, 1) * 255).round().to(torch.uint8)
    arrays = [np.array(as_rgb(image)) for image in images]
    return [torch.from_numpy(array).permute(2, 0, 1).to(device) for array in arrays]


def to_pixels(
    images: Tensor | Sequence[Image], device: torch.device | str, exact: bool = True
) -> list[Tensor] | Tensor:
    """Images to prepare for a model: 8-bit as by `to_uint8`, or if not `exact` as the floats in [0, 1] they are."""
    if isinstance(images, Tensor) and not exact:
        check_images(images)
        return images.to(device)
    return to_uint8(images, device)


def to_float(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1]: 8-bit ones as float32, floats as they are."""
    return pixels if pixels.is_floating_point() else pixels.float() / 255


def resize(images: Tensor, size: tuple[int, int], resample: str = "bicubic") -> Tensor:
    """`PIL.Image.resize` on tensors: for 8-bit images equal to the Pillow that is installed, bit for bit; for float
    images the same without rounding, differentiable.

    Args:
        images: (..., H, W) uint8, or (B, C, H, W) float in [0, 1].
        size: (height, width) wanted.
        resample: 'bicubic' or 'bilinear'.

    Returns:
        (..., height, width) of the same dtype.
    """
    height, width = size
    rows, columns = images.shape[-2:]
    if images.is_floating_point():
        if size == (rows, columns):
            return images
        # With antialias, and only then, torch's kernels and their support are Pillow's.
        return F.interpolate(images, size, mode=resample, antialias=True).clamp(0, 1)
    rows_first = height < rows and _begins_with_rows(rows, columns, height, width)
    if rows_first:
        images = _resize_rows(images, height, resample)
    if width != columns:
        images = _resize_columns(images, width, resample)
    if height != rows and not rows_first:
        images = _resize_rows(images, height, resample)
    return images


def _begins_with_rows(rows: int, columns: int, height: int, width: int) -> bool:
    """Which of the two passes Pillow makes first where there are to be fewer rows; it shows in the rounding. Pillow 13
    begins with the rows where that saves enough work, 12.2 and 12.3 where the image is a stripe, earlier ones never."""
    if _PILLOW >= (13, 0):
        return 2 * (columns - width) < rows - height
    return _PILLOW >= (12, 2) and rows > 100 * columns


def resize_shortest_side(images: Tensor, side: int, resample: str = "bicubic") -> Tensor:
    """Scale (..., H, W) uint8 so that the shorter side becomes `side` and the longer int(side * long / short)."""
    height, width = images.shape[-2:]
    if height <= width:
        return resize(images, (side, int(side * width / height)), resample)
    return resize(images, (int(side * height / width), side), resample)


def center_crop(images: Tensor, side: int, down: bool = False) -> Tensor:
    """The middle side x side of (..., H, W), offsets rounded as torchvision does, or down as transformers does."""
    height, width = images.shape[-2:]
    top, left = ((length - side) // 2 if down else round((length - side) / 2) for length in (height, width))
    return images[..., top : top + side, left : left + side]


def clip_pixels(
    images: Tensor | Sequence[Image],
    side: int,
    device: torch.device | str,
    dtype: torch.dtype,
    exact: bool = True,
    convert_last: bool = False,
    down: bool = False,
) -> Tensor:
    """OpenAI CLIP's preprocessing: shortest side to `side` (bicubic), centre crop, normalisation.

    Args:
        images: (B, 3, H, W) float in [0, 1], or B PIL images.
        exact: round as Pillow does; False keeps float images differentiable.
        convert_last: resize and crop PIL images in their own mode and make them RGB after, as torchvision pipelines do
            in which the conversion comes last. It shows where there is transparency or a palette.
        down: of the crop, see `center_crop`.

    Returns:
        (B, 3, side, side) of `dtype` on `device`.
    """
    if convert_last and not isinstance(images, Tensor):
        check_images(images)
        images = [_crop_in_mode(image, side) for image in images]
    pixels = batched(
        to_pixels(images, device, exact), lambda image: center_crop(resize_shortest_side(image, side), side, down)
    )
    return normalize(to_float(pixels)).to(dtype)


def normalize(pixels: Tensor, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD) -> Tensor:
    """(..., 3, H, W) in [0, 1] by means and standard deviations of the channels, CLIP's if not given."""
    middle, spread = (torch.tensor(value, device=pixels.device).view(3, 1, 1) for value in (mean, std))
    return (pixels - middle) / spread


def _crop_in_mode(image: Image, side: int) -> Image:
    if image.mode not in ("RGBA", "LA", "P", "PA", "1"):
        return image
    width, height = image.size
    size = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    left, top = (round((length - side) / 2) for length in size)
    # Pillow takes the nearest pixel for palettes, whatever is asked for.
    return image.resize(size, Resampling.BICUBIC).crop((left, top, left + side, top + side))


def batched(images: list[Tensor] | Tensor, transform: Callable[[Tensor], Tensor]) -> Tensor:
    """`transform` of a batch (B, C, H, W), or of images (C, H, W) of several sizes, which come out of one size."""
    return transform(images) if isinstance(images, Tensor) else torch.stack([transform(image) for image in images])


def _resize_rows(images: Tensor, out_size: int, resample: str) -> Tensor:
    return _resize_columns(images.transpose(-1, -2), out_size, resample).transpose(-1, -2)


def _resize_columns(images: Tensor, out_size: int, resample: str) -> Tensor:
    index, weight = (torch.from_numpy(value).to(images.device) for value in _taps(images.shape[-1], out_size, resample))
    total = torch.full(
        (*images.shape[:-1], out_size), 1 << (_PRECISION_BITS - 1), device=images.device, dtype=torch.int32
    )
    for tap in range(index.shape[0]):
        total += weight[tap] * images.index_select(-1, index[tap]).to(torch.int32)
    return (total >> _PRECISION_BITS).clamp(0, 255).to(torch.uint8)


@functools.lru_cache(maxsize=128)
def _taps(in_size: int, out_size: int, resample: str) -> tuple[np.ndarray, np.ndarray]:
    """Input positions and fixed-point weights, (taps, out_size) each, of one pass (Pillow's `precompute_coeffs`)."""
    kernel, support = _FILTERS[resample]
    scale = in_size / out_size
    filter_scale = max(scale, 1.0)
    support *= filter_scale
    center = (np.arange(out_size) + 0.5) * scale
    first = np.maximum((center - support + 0.5).astype(int), 0)
    last = np.minimum((center + support + 0.5).astype(int), in_size)
    position = first + np.arange(int((last - first).max()))[:, None]
    weight = np.where(position < last, kernel((position - center + 0.5) / filter_scale), 0.0)
    weight /= weight.sum(0)
    fixed = np.trunc(weight * (1 << _PRECISION_BITS) + np.copysign(0.5, weight)).astype(np.int32)
    return np.minimum(position, in_size - 1), fixed


def _bicubic(x: np.ndarray, a: float = -0.5) -> np.ndarray:
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.abs(x), 0.0)


_FILTERS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "bicubic": (_bicubic, 2.0),
    "bilinear": (_bilinear, 1.0),
}

"""Images in: from files, and what a reward may be given."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from .image_repair import without_metadata


Images = Tensor | Sequence[Image.Image]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientation -> what undoes it."""

NOT_RGB = ("1", "P", "PA", "L", "LA", "RGBA")
"""Modes that `load_image(keep_mode=True)` keeps."""


class ImageError(ValueError):
    """An image that cannot be scored; of a file the message names it."""


def load_image(path: str | Path, keep_mode: bool = False) -> Image.Image:
    """An image file as RGB, the way up that its EXIF says.

    Of several frames it is the first. Transparency is dropped, and deep greys become 8 bits as `as_rgb` says. Metadata
    that is broken is ignored as long as the pixels can be read.

    Args:
        keep_mode: leave greys, palettes and transparency of 8 bits a channel as they are, for models whose preparation
            of images sees them.

    Raises:
        ImageError: if it is missing, not a readable image, or `as_rgb` refuses it.
    """
    path = Path(path)
    if path.is_dir():
        raise ImageError(f"Expected an image at '{path}', but it is a folder.")
    # Reading from a pipe may last for ever.
    if path.exists() and not path.is_file():
        raise ImageError(f"Expected an image at '{path}', but it is no ordinary file.")
    try:
        with path.open("rb") as file:
            return _load(file, keep_mode)
    except FileNotFoundError:
        raise ImageError(f"Expected an image at '{path}', but there is no such file.") from None
    # Files that are truncated, hostile or odd raise nearly anything, by format: struct.error and zlib.error among it.
    except Exception as error:
        raise ImageError(f"Expected a readable image at '{path}', but {_reason(error)}.") from None


def decode_image(data: bytes, name: str = "the data", keep_mode: bool = False) -> Image.Image:
    """An image file's content, as `load_image` makes it RGB.

    Args:
        name: for messages.
        keep_mode: see `load_image`.

    Raises:
        ImageError: if it is not a readable image, or `as_rgb` refuses it.
    """
    try:
        return _load(BytesIO(data), keep_mode)
    except Exception as error:  # As above.
        raise ImageError(f"Expected a readable image in {name}, but {_reason(error)}.") from None


def as_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB; always a copy.

    Most modes are what Pillow makes of them: transparency is dropped, CMYK and LAB are converted, ICC profiles are not
    applied. Pillow clips deep greys at 255; here they are scaled to 8 bits:

    - 16 bits (I;16 of either byte order) by their upper byte, as Pillow itself reads colours of 16 bits.
    - I, 32-bit integers, which Pillow has for 8 and 16 bits alike: up to 255 as they are, up to 65535 by their upper
      byte. Read from a PNG or PGM file they are always of 16 bits.
    - F, floats: in [0, 1] times 255, else up to 255 as they are, else up to 65535 by their upper byte. A maximum
      of less than 16 times the smaller range is refused: it may be an overshoot of that, or the darkest of the next.

    Raises:
        ImageError: for an image without pixels, a mode that has no RGB, or greys that are NaN, infinite, negative or of
            no known range.
    """
    if 0 in image.size:
        raise ImageError(f"Expected an image with pixels, but got one of {image.width} x {image.height}.")
    if image.mode.startswith("I;16"):
        return _grey(np.asarray(image).astype(np.uint16) >> 8)
    if image.mode == "I":
        return _grey(_eight_bits_of_integers(np.asarray(image), image.format in ("PNG", "PPM")))
    if image.mode == "F":
        return _grey(_eight_bits_of_floats(np.asarray(image)))
    # Pillow converts premultiplied modes by way of the plain ones only.
    plain = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
    try:
        return (image.convert(plain) if plain else image).convert("RGB")
    except ValueError as error:
        raise ImageError(f"Expected an image that can be RGB, but got the mode {image.mode}: {error}.") from error


def check_form(images: Any) -> None:
    """Make sure that these are images as rewards take them, without looking at their pixels.

    Raises:
        ImageError: unless it is a float tensor (B, 3, H, W) or a sequence of PIL images.
    """
    if isinstance(images, Tensor):
        if images.ndim != 4 or images.shape[1] != 3:
            raise ImageError(f"Expected images of shape (B, 3, H, W), but got {tuple(images.shape)}.")
        if not images.is_floating_point():
            raise ImageError(
                f"Expected a tensor of images to be float in [0, 1], but got {images.dtype}. Divide 8-bit images "
                "by 255."
            )
        if len(images) and 0 in images.shape:
            raise ImageError(f"Expected images with pixels, but got the shape {tuple(images.shape)}.")
        return
    expected = "Expected a float tensor of images (B, 3, H, W) in [0, 1], or a list of PIL images, but got"
    if isinstance(images, Image.Image):
        raise ImageError(f"{expected} a single image. Put it into a list.")
    if isinstance(images, np.ndarray):
        raise ImageError(
            f"{expected} an array of shape {images.shape}. `torch.from_numpy(array).permute(0, 3, 1, 2)` makes a "
            "tensor of images in [0, 1] with the channels last."
        )
    if isinstance(images, (str, bytes)) or not isinstance(images, Sequence):
        raise ImageError(f"{expected} {type(images).__name__}.")
    for image in images:
        if not isinstance(image, Image.Image):
            raise ImageError(f"{expected} a list with {type(image).__name__} in it.")


def check_images(images: Any) -> None:
    """`check_form`, and of a tensor its values. What is wrong with the pixels of PIL images is found by `as_rgb`.

    Values a little outside of [0, 1], as sharpening and some autoencoders leave them, are clipped by whoever rounds
    them. Far outside they are of another range.

    Raises:
        ImageError: as `check_form`; for NaN or infinity; for values below -0.5 or above 1.5.
    """
    check_form(images)
    if not isinstance(images, Tensor) or not images.numel():
        return
    low, high = torch.stack(images.detach().aminmax()).tolist()
    if not np.isfinite([low, high]).all():
        raise ImageError(
            f"{_FINITE} An autoencoder that gives them may overflow in half precision: decode in float32 or bfloat16."
        )
    if low < -0.5 or high > 1.5:
        advice = "(images + 1) / 2" if high <= 1.5 else "images / 255"
        raise ImageError(f"Expected images in [0, 1], but got values from {low:g} to {high:g}. Give `{advice}`?")


def to_pil(images: Images) -> list[Image.Image]:
    """Images as RGB PIL images, rounded to 8 bits as a pipeline's `output_type="pil"` does.

    Args:
        images: (B, 3, H, W) float in [0, 1] on any device, or PIL images of any mode and size.

    Raises:
        ImageError: as `check_images` and `as_rgb`.
    """
    check_images(images)
    if isinstance(images, Tensor):
        arrays = (images.detach().float().clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1)
        return [Image.fromarray(np.ascontiguousarray(array)) for array in arrays.numpy()]
    return [as_rgb(image) for image in images]


def normalize(pixels: Tensor | Image.Image) -> Tensor:
    """(3, H, W) float32, normalised as for CLIP, of an RGB image or (3, H, W) uint8."""
    if isinstance(pixels, Image.Image):
        pixels = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
    mean, std = (torch.tensor(value, device=pixels.device).view(3, 1, 1) for value in (CLIP_MEAN, CLIP_STD))
    return (pixels.float() / 255 - mean) / std


_FINITE = "Expected images without NaN or infinity."


def _load(file: IO[bytes], keep_mode: bool) -> Image.Image:
    try:
        return _decoded(file, keep_mode)
    except (ImageError, Image.DecompressionBombError, MemoryError):
        raise
    except Exception as error:
        file.seek(0)
        if (bare := without_metadata(file)) is None:
            raise
        try:
            return _decoded(BytesIO(bare), keep_mode)
        except Exception:
            # What is wrong with the file itself is what its owner can look for.
            raise error from None


def _decoded(file: IO[bytes], keep_mode: bool) -> Image.Image:
    with Image.open(file) as image:
        image.load()
        turn = _turn(image)
        rgb = as_rgb(image)
        kept = image.copy() if keep_mode and image.mode in NOT_RGB else rgb
    return kept if turn is None else kept.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    # Broken EXIF raises nearly anything, and says nothing of the pixels.
    except Exception:
        return None


def _reason(error: Exception) -> str:
    if isinstance(error, ImageError):
        return f"it cannot be scored: {str(error).removesuffix('.')}"
    if isinstance(error, OSError) and error.errno is not None:
        return f"it could not be read: {error.strerror}"
    if isinstance(error, UnidentifiedImageError):
        return "it is corrupt or of no known format"
    # Others than these speak of Pillow's inside.
    told = isinstance(error, (OSError, SyntaxError, ValueError, Image.DecompressionBombError)) and str(error)
    return f"it is corrupt or of no known format: {' '.join(str(told or type(error).__name__).split()).rstrip('.')}"


def _grey(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.astype(np.uint8)).convert("RGB")


def _eight_bits_of_integers(pixels: np.ndarray, deep: bool) -> np.ndarray:
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > 65535:
        raise ImageError(f"Expected 32-bit greys from 0 to 255 or to 65535, but got values from {low} to {high}.")
    return pixels >> 8 if deep or high > 255 else pixels


def _eight_bits_of_floats(pixels: np.ndarray) -> np.ndarray:
    low, high = float(pixels.min()), float(pixels.max())
    if not np.isfinite([low, high]).all():
        raise ImageError(_FINITE)
    if low < 0 or high > 65535 or 1 < high < 16 or 255 < high < 16 * 255:
        raise ImageError(
            "Expected float greys in [0, 1], [0, 255] or [0, 65535], and of which can be told, but got values from "
            f"{low:g} to {high:g}. Save the image with 8 bits."
        )
    if high <= 1:
        return (pixels * 255).round()
    return pixels.round() if high <= 255 else pixels.astype(np.int64) >> 8

"""Images from bytes that strangers send."""

from __future__ import annotations

import io

from PIL import Image, UnidentifiedImageError

from llava_reward_guide.images import ImageError, decode_image

from .errors import RequestError, invalid, too_large


FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Of images, as Pillow calls them; others, some of which start programs, are not tried."""

BYTES_PER_PIXEL = 4
"""Of a decoded image, at most: greys, palettes and transparency are kept."""


def pixels_of(data: bytes, name: str, most: int) -> int:
    """How many pixels an image has, by the head of its file, without decoding it.

    Args:
        name: for messages, such as 'image 1'.
        most: that it may have.

    Raises:
        RequestError: for another format, a head that is broken, or more pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        raise too_large(f"Expected {name} to have at most {most} pixels, but it has many times as many.") from None
    except UnidentifiedImageError:
        raise RequestError(
            415,
            "unknown_image_type",
            f"Expected {name} to be a file of {', '.join(FORMATS)}, but it is none of these, or its head is corrupt.",
        ) from None
    # Broken files raise nearly anything, by format.
    except Exception:
        raise invalid(f"Expected {name} to be a readable image, but its file is corrupt.") from None
    if width * height > most:
        raise too_large(f"Expected {name} to have at most {most} pixels, but it has {width} x {height}.")
    return width * height


def decoded(data: bytes, name: str) -> Image.Image:
    """The image in a file, the first frame of several, the way up that its EXIF says.

    Raises:
        RequestError: if it cannot be read.
    """
    try:
        return decode_image(data, name, keep_mode=True)
    except ImageError as error:
        raise invalid(str(error)) from None

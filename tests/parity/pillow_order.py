"""The order of the two passes of `Image.resize` by which the golden pixels were made."""

from __future__ import annotations

import PIL
from PIL import Image


OWN = Image.Image.resize


def resize_as_pillow_13(image: Image.Image, size, resample=None, box=None, reducing_gap=None) -> Image.Image:
    """Rows before columns where that saves enough work, as Pillow does from 13.0 on; each pass rounds to 8 bits, so the
    order shows. With one side left alone, Pillow of any version makes one pass."""
    (width, height), (columns, rows) = size, image.size
    if box is None and width != columns and height < rows and 2 * (columns - width) < rows - height:
        image = OWN(image, (columns, height), resample)
    return OWN(image, size, resample, box, reducing_gap)


OLDER = int(PIL.__version__.split(".")[0]) < 13
"""Whether the installed Pillow has another order."""

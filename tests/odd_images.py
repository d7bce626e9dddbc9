"""Image files as they should not be, from a seed."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, PngImagePlugin


def picture(size: tuple[int, int] = (24, 20), seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 5, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    """Of a PNG file."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_chunks(png: bytes, *chunks: bytes) -> bytes:
    """A PNG file with more chunks before its pixels."""
    place = png.index(b"IDAT") - 4
    return png[:place] + b"".join(chunks) + png[place:]


def originals() -> list[tuple[str, bytes]]:
    """Suffix and content of good files of all kinds."""
    image, exif, info = picture(), Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "about", 72.0
    info.add_text("prompt", "a red circle", zip=True)
    info.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta/>")
    frames = [picture(seed=1), picture(seed=2)]
    grey = Image.fromarray(np.arange(480, dtype=np.uint16).reshape(20, 24) * 136)
    return [
        ("png", encoded(image, "PNG", exif=exif, pnginfo=info, icc_profile=b"profile" * 20)),
        ("png", encoded(image.convert("P"), "PNG", transparency=3)),
        ("png", encoded(grey, "PNG")),
        ("png", encoded(image, "PNG", save_all=True, append_images=frames)),
        ("jpg", encoded(image, "JPEG", exif=exif, comment=b"about", icc_profile=b"profile" * 20)),
        ("jpg", encoded(image.convert("CMYK"), "JPEG", progressive=True)),
        ("webp", encoded(image, "WEBP", exif=exif.tobytes())),
        ("webp", encoded(image, "WEBP", lossless=True, save_all=True, append_images=frames)),
        ("gif", encoded(image, "GIF", save_all=True, append_images=frames)),
        ("tiff", encoded(image, "TIFF", exif=exif)),
        ("tiff", encoded(image, "TIFF", compression="tiff_lzw", save_all=True, append_images=frames)),
        ("tiff", encoded(grey, "TIFF")),
        ("tiff", encoded(image.convert("F"), "TIFF")),
        ("bmp", encoded(image, "BMP")),
        ("ppm", encoded(image, "PPM")),
    ]


def mutated(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Suffix and content of files that are flipped, cut, mixed up or overwritten somewhere."""
    random, files = np.random.default_rng(seed), originals()
    for number in range(count):
        suffix, content = files[number % len(files)]
        data = bytearray(content)
        for _ in range(int(random.integers(1, 4))):
            # Half of the changes are where the metadata is.
            end = len(data) if random.random() < 0.5 else min(len(data), 120)
            place, kind = int(random.integers(0, max(end, 1))), random.integers(0, 6)
            if kind == 0:
                for at in random.integers(0, max(end, 1), 3):
                    data[at : at + 1] = bytes(byte ^ (1 << int(random.integers(8))) for byte in data[at : at + 1])
            elif kind == 1:
                del data[place:]
            elif kind == 2:
                other, length = int(random.integers(0, max(end, 1))), int(random.integers(1, 24))
                first, second = data[place : place + length], data[other : other + length]
                data[place : place + length], data[other : other + length] = second, first
            elif kind == 3:
                data[place : place + 4] = random.choice(
                    [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\1\0\0\0"]
                )
            elif kind == 4:
                del data[place : place + int(random.integers(1, 16))]
            else:
                data[place:place] = random.bytes(int(random.integers(1, 16)))
        yield suffix, bytes(data)

"""Image files without their metadata, which may be broken where the pixels are fine."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import IO


PNG_START = b"\x89PNG\r\n\x1a\n"

# What it takes to find and to read the pixels; see TIFF 6.0 and its technical notes.
_TIFF_TAGS = {
    *(254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325),
    *(332, 338, 339, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532),
}


def without_metadata(file: IO[bytes]) -> bytes | None:
    """The PNG, JPEG, WebP or TIFF file that is left when all is dropped that is not needed to read its pixels; None
    for other formats, or if the file is too damaged to tell.

    Of a TIFF file of several images the first is left. Transparency that is metadata (tRNS of a PNG) goes too.
    """
    start = file.read(12)
    for matches, strip in _STRIP.items():
        if matches(start):
            try:
                return strip(start + file.read())
            except (struct.error, IndexError):
                return None
    return None


def _png(data: bytes) -> bytes:
    kept, place = [PNG_START], len(PNG_START)
    while place + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        if data[place + 4 : place + 8] in (b"IHDR", b"PLTE", b"IDAT"):
            kept.append(data[place : place + 12 + length])
        place += 12 + length
    # Its check sum is always the same.
    return b"".join([*kept, b"\0\0\0\0IEND\xaeB`\x82"])


def _jpeg(data: bytes) -> bytes:
    kept, place = [data[:2]], 2
    while data[place + 1] != 0xDA:  # Where the pixels begin.
        marker = data[place + 1]
        if data[place] != 0xFF:
            raise IndexError
        if marker == 0xFF:
            place += 1
            continue
        end = place + 2 + struct.unpack_from(">H", data, place + 2)[0]
        # JFIF's and Adobe's segments say which colours these are.
        if not (0xE0 < marker <= 0xEF and marker != 0xEE) and marker != 0xFE:
            kept.append(data[place:end])
        place = end
    return b"".join([*kept, data[place:]])


def _webp(data: bytes) -> bytes:
    kept, place = [], 12
    while place + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, place)
        end = place + 8 + length + length % 2
        chunk = bytearray(data[place:end])
        if name == b"VP8X":
            chunk[8] &= ~0x2C  # No ICC profile, EXIF or XMP follows.
        if name not in (b"ICCP", b"EXIF", b"XMP "):
            kept.append(bytes(chunk))
        place = end
    content = b"".join(kept)
    return b"RIFF" + struct.pack("<I", 4 + len(content)) + b"WEBP" + content


def _tiff(data: bytes) -> bytes:
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(f"{order}H", data, 2)[0] == 43
    count_format, size, offset_format = (f"{order}Q", 20, f"{order}Q") if big else (f"{order}H", 12, f"{order}I")
    (directory,) = struct.unpack_from(offset_format, data, 8 if big else 4)
    (count,) = struct.unpack_from(count_format, data, directory)
    first = directory + struct.calcsize(count_format)
    entries = [data[place : place + size] for place in range(first, min(first + size * count, len(data)), size)]
    kept = [entry for entry in entries if struct.unpack_from(f"{order}H", entry)[0] in _TIFF_TAGS]
    listed = struct.pack(count_format, len(kept)) + b"".join(kept) + bytes(struct.calcsize(offset_format))
    return data[:directory] + listed + data[directory + len(listed) :]


_STRIP: dict[Callable[[bytes], bool], Callable[[bytes], bytes]] = {
    lambda start: start.startswith(PNG_START[:4]): _png,
    lambda start: start.startswith(b"\xff\xd8\xff"): _jpeg,
    lambda start: start.startswith(b"RIFF") and start[8:12] == b"WEBP": _webp,
    lambda start: start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"): _tiff,
}

"""Pictures and films of a data set, as rewards take them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageSequence

from llava_reward_guide.images import ImageError, load_image
from llava_reward_guide.packages import require

from ...rewards.chat.frames import places


FILMS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
"""How the names of files end that are decoded by PyAV; Pillow reads animations."""


def load_frames(path: Path, number: int, to_the_end: bool = False) -> tuple[Image.Image, ...]:
    """Evenly spaced frames of a video, see `places`.

    Args:
        path: a film, an animation (GIF, WebP, PNG), or a folder of frames in the order of their names.
        number: of frames.

    Raises:
        ImageError: if it cannot be read.
        ImportError: for a film, without PyAV.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
        if not files:
            raise ImageError(f"The folder {path} holds no frames.")
        return tuple(load_image(files[place]) for place in places(len(files), number, to_the_end))
    if path.suffix.lower() in FILMS:
        return _of_film(path, number, to_the_end)
    try:
        with Image.open(path) as animation:
            total = getattr(animation, "n_frames", 1)
            wanted = set(places(total, number, to_the_end))
            frames = enumerate(ImageSequence.Iterator(animation))
            return tuple(frame.convert("RGB") for place, frame in frames if place in wanted)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path} cannot be read as a video ({error}).") from error


def _of_film(path: Path, number: int, to_the_end: bool) -> tuple[Image.Image, ...]:
    require("av")
    import av

    try:
        # What a file says of its own length may be wrong or missing; a second look is cheaper than keeping all frames.
        with av.open(str(path)) as film:
            total = sum(1 for _ in film.decode(video=0))
        wanted = set(places(total, number, to_the_end))
        with av.open(str(path)) as film:
            frames = tuple(frame.to_image() for place, frame in enumerate(film.decode(video=0)) if place in wanted)
    except (av.FFmpegError, OSError, IndexError) as error:
        raise ImageError(f"{path} cannot be read as a video ({error}).") from error
    if not frames:
        raise ImageError(f"{path} holds no frames.")
    return frames

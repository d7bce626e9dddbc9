"""Files that others have published: fetched once, checked, and kept in the cache of `huggingface_hub`."""

from __future__ import annotations

import hashlib
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .files import write_atomically


@dataclass(frozen=True)
class Source:
    """A published file.

    Attributes:
        what: for messages.
        url: where it is.
        sha256: of its content, hexadecimal.
        blob: in place of it the id of its content in Git, for files that are too large to have been seen.
    """

    what: str
    url: str
    sha256: str = ""
    blob: str = ""

    def digest(self, content: bytes) -> tuple[str, str]:
        """What identifies a content, and what it should be."""
        if self.sha256:
            return sha256(content), self.sha256
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest(), self.blob


def fetch(
    source: Source, opener: Callable[[str], bytes] | None = None, cache: Path | None = None, by: str = ""
) -> Path:
    """A published file, downloaded unless it is there already, and checked.

    Args:
        by: the option that takes a path in its place, for messages.
        opener: URL -> content; None to download.
        cache: folder to keep it in; None for the assets in the cache of `huggingface_hub`.

    Raises:
        OSError: if it cannot be fetched, or is not the file that was published.
    """
    from huggingface_hub import cached_assets_path

    path = (cache or cached_assets_path("fk_steer", "prompts")) / Path(source.url).name
    if path.exists():
        found, expected = source.digest(path.read_bytes())
        if found == expected:
            return path
    advice = f"Download it from {source.url} elsewhere and give its path{by and f' by {by}'}."
    try:
        content = (opener or download)(source.url)
    except OSError as error:
        raise OSError(f"Could not fetch {source.what}: {error}. {advice}") from error
    digest, expected = source.digest(content)
    if digest != expected:
        raise OSError(
            f"Expected {source.what} at {source.url} to have the {'SHA-256' if source.sha256 else 'Git id'} "
            f"{expected}, but got {digest}: the file has changed since, or was damaged on its way. If you trust it, "
            "give its path."
        )
    write_atomically(path, content)
    return path


def download(url: str, timeout: float = 30.0) -> bytes:
    """What is at a URL; `timeout` is how many seconds the server may keep silent.

    Raises:
        OSError: if it cannot be had.
    """
    with urllib.request.urlopen(url, timeout=timeout) as response:
        content: bytes = response.read()
    return content


def sha256(content: bytes) -> str:
    """The SHA-256 of some bytes, hexadecimal."""
    return hashlib.sha256(content).hexdigest()

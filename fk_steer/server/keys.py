"""The key that clients have to send: from the environment or a file, never from a command line."""

from __future__ import annotations

import os
from pathlib import Path

from llava_reward_guide.texts import read_text


KEY = "FK_STEER_API_KEY"
"""The environment variable of the key, of servers and of clients alike."""


def read_key(file: Path | None) -> str | None:
    """The key, from a file or else from the environment; None if there is none.

    Raises:
        ValueError: for a key that is empty, or no line of visible ASCII characters.
        OSError: for a file that cannot be read.
    """
    key = os.environ.get(KEY) if file is None else read_text(file)
    if key is None:
        return None
    key, where = key.strip(), f"the environment variable {KEY}" if file is None else f"'{file}'"
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"Expected {where} to hold a key, one line of visible ASCII characters, but it does not.")
    return key

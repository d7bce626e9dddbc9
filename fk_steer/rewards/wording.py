"""The words that models are asked in, where those they were trained with belong to others.

Such words are not part of this package. They are read from the scripts they were published in, which are fetched once,
checked against a SHA-256, and parsed and never run.
"""

from __future__ import annotations

import ast
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit

from llava_reward_guide.hub import within
from llava_reward_guide.texts import read_text

from ..published import Source, download, fetch, sha256


PATIENCE = 10.0
"""Seconds to wait for a host; who has waited in vain waits no more."""

OPTION = "the option `template`"
"""Of the rewards that are asked so, for messages."""

OURS = "fk_steer"
"""Where our own words come from."""

_unreachable: set[str] = set()
"""Hosts that could not be reached in this process."""


@dataclass(frozen=True)
class Template:
    """A question's text.

    Attributes:
        text: with placeholders such as {prompt}.
        origin: URL or path it was read from; 'fk_steer' for our own words.
    """

    text: str
    origin: str

    @property
    def sha256(self) -> str:
        """Of the text in UTF-8, hexadecimal, which records hold."""
        return sha256(self.text.encode())


def published_file(source: Source, folder: str, retry: bool = False) -> Path:
    """A published file, fetched once and soon, or not at all.

    Args:
        folder: of the assets in the cache of `huggingface_hub`.
        retry: ask a host, too, that could not be reached before.

    Raises:
        OSError: if it cannot be had within `PATIENCE`, or is not the file that was published.
    """
    from huggingface_hub import cached_assets_path, constants

    def quickly(url: str) -> bytes:
        host = urlsplit(url).netloc
        if constants.is_offline_mode():
            raise OSError("HF_HUB_OFFLINE keeps it from being asked for")
        if host in _unreachable and not retry:
            raise OSError("it could not be reached a while ago")
        contents: list[bytes] = []
        try:
            within(PATIENCE, lambda: contents.append(download(url, PATIENCE)))
        except HTTPError:
            raise
        except TimeoutError:
            _unreachable.add(host)
            raise OSError(f"it was not there within {PATIENCE:g} seconds") from None
        except HTTPException as error:
            raise OSError(f"the answer broke off ({error!r})") from error
        except OSError:
            _unreachable.add(host)
            raise
        return contents[0]

    # Scripts of different folders share their names.
    return fetch(source, quickly, cached_assets_path("fk_steer", folder, source.sha256[:12]), by=OPTION)


def our_words(path: Path, fields: Sequence[str]) -> Template:
    """A template that ships with this package."""
    text = read_text(path).strip()
    check_fields(text, fields, str(path))
    return Template(text, OURS)


def check_fields(text: str, fields: Sequence[str], where: str) -> None:
    """
    Raises:
        ValueError: if a template lacks a placeholder.
    """
    lacking = [f"{{{field}}}" for field in fields if f"{{{field}}}" not in text]
    if lacking:
        raise ValueError(f"Expected the template {where!r} to contain {', '.join(lacking)}, but it does not.")


def read_script(path: str | Path, member: str = "") -> str:
    """A script.

    Args:
        path: the script, or a wheel that holds it.
        member: its path in the wheel.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is no text in UTF-8, or the wheel has no such file.
    """
    if Path(path).suffix != ".whl":
        return read_text(path)
    try:
        with zipfile.ZipFile(path) as wheel:
            return wheel.read(member).decode()
    except (zipfile.BadZipFile, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"Expected '{path}' to be a wheel that holds {member}, but it does not. ({error})") from None


def parse_script(script: str, where: str) -> ast.Module:
    """A script as a tree; nothing of it is run.

    Args:
        where: for messages.

    Raises:
        ValueError: if it is no Python.
    """
    try:
        return ast.parse(script)
    except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
        raise ValueError(f"Expected {where} to be Python, but it is not: {error}.") from None


def texts_in_script(script: str, names: Sequence[str], where: str) -> list[str]:
    """The texts that a script assigns to names outside of functions and classes.

    Raises:
        ValueError: if it is no Python, or does not assign a text to each name.
    """
    found = {
        target.id: node.value.value
        for node in parse_script(script, where).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    if lacking := [name for name in names if name not in found]:
        raise ValueError(f"Expected {where} to assign a text to {' and to '.join(lacking)}, but it does not.")
    return [found[name] for name in names]

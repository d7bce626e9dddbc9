"""Tokenizers as their tokenizer.json says."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer
from transformers.utils import cached_file


class TextTokenizer:
    """A tokenizer.json, read without the classes of `transformers`.

    The published checkpoints were trained with the ids of `transformers` 4; its successor's Llama tokenizer gives
    others after special tokens, and the file itself does not change.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, path: str, revision: str | None = None) -> TextTokenizer:
        """From a folder or hub id.

        Raises:
            OSError: if there is no tokenizer.json, or it cannot be read.
        """
        file = cached_file(path, "tokenizer.json", revision=revision)
        try:
            return cls(Tokenizer.from_file(file))
        except Exception as error:  # which is what the library raises
            raise OSError(f"Could not read the tokenizer in '{file}': {error}.") from error

    def encode(self, text: str) -> list[int]:
        """Ids of a text; nothing is added around it."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def id_of(self, token: str) -> int:
        """Id of a token.

        Raises:
            ValueError: if there is no such token.
        """
        index = self._tokenizer.token_to_id(token)
        if index is None:
            raise ValueError(
                f"Expected a tokenizer that has the token {token!r}, but this one has not. Use the tokenizer.json that "
                f"belongs to the backbone."
            )
        return index

    def expect(self, text: str, ids: list[int]) -> None:
        """Check that a text has these ids.

        Raises:
            ValueError: if it has others.
        """
        found = self.encode(text)
        if found != ids:
            raise ValueError(
                f"Expected the tokenizer to encode {text!r} as {ids}, but got {found}. Rewards of a model that was "
                f"trained with other ids are wrong; use the tokenizer.json published with the backbone."
            )

    @property
    def size(self) -> int:
        """Number of tokens, special ones included."""
        return self._tokenizer.get_vocab_size()

    def save(self, path: str) -> None:
        self._tokenizer.save(path)


def read_config(path: str, revision: str | None = None) -> dict[str, Any]:
    """The config.json of a folder or hub id, as it is.

    Raises:
        OSError: if there is none.
        ValueError: if it is no JSON object.
    """
    with open(cached_file(path, "config.json", revision=revision), encoding="utf-8") as file:
        found = json.load(file)
    if not isinstance(found, dict):
        raise ValueError(f"Expected an object in config.json, but it holds a {type(found).__name__}.")
    return found

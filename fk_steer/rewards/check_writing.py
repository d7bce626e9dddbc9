"""Checklists of prompts: from a file, from an LLM that writes them into that file, or from the wording."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from llava_reward_guide.texts import read_text

from ..files import write_atomically
from .check_templates import from_wording
from .checks import Checklist, checklist_lines, checklist_of, read_checklists


TEMPLATE = Path(__file__).parent / "chat" / "templates" / "checklist-questions.txt"
ATTEMPTS = 2
MAX_TOKENS = 4096

logger = logging.getLogger(__name__)


class Checklists:
    """The checklist of any prompt.

    Args:
        questions: JSON lines with a `prompt` each and its `checks`, see `read_checklists`; None for none. It need not
            be there yet where there is a writer, whose checklists are added to it.
        writer: name under which a chat server serves the LLM that writes checklists of prompts that are not in the
            file; None to make them from the wording, see `from_wording`.
        writer_url: address of that server, with its `/v1`; None as for `ChatClient`.
        writer_key_env: name of the environment variable that holds its key.

    Raises:
        OSError: if the file is not there and there is no writer.
        ValueError: for a file of another form, or a writer without a file.
    """

    def __init__(
        self,
        questions: str | Path | None = None,
        writer: str | None = None,
        writer_url: str | None = None,
        writer_key_env: str = "OPENAI_API_KEY",
    ) -> None:
        self._path = None if questions is None else Path(questions)
        self._ask: Callable[[Sequence[str]], list[Checklist | None]] | None = None
        if writer is not None:
            if self._path is None:
                raise ValueError("Expected `questions`, a file to keep what the `writer` writes, but got none.")
            self._ask = _Writer(writer, writer_url, writer_key_env)
        if self._path is not None and not self._path.exists() and writer is None:
            raise FileNotFoundError(f"Expected checklists in {self._path}, but there is no such file.")
        self._known = self._read()

    def __call__(self, prompts: Sequence[str]) -> list[Checklist]:
        """The checklists of prompts."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if missing and self._ask is not None:
            self._write(dict(zip(missing, self._ask(missing))))
        return [self._known[prompt] if prompt in self._known else from_wording(prompt) for prompt in prompts]

    def _read(self) -> dict[str, Checklist]:
        return read_checklists(self._path) if self._path is not None and self._path.exists() else {}

    def _write(self, made: dict[str, Checklist | None]) -> None:
        assert self._path is not None
        for prompt in (prompt for prompt, checks in made.items() if checks is None):
            logger.warning("No checklist could be had for the prompt %r; it is taken by its wording.", prompt)
            # Not asked for again by this process, and not kept.
            self._known[prompt] = from_wording(prompt)
        written = {prompt: checks for prompt, checks in made.items() if checks is not None}
        if not written:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Others may have written meanwhile; what is there stays.
        with FileLock(self._path.with_name(f".{self._path.name}.lock")):
            kept = {**written, **self._read()}
            write_atomically(self._path, checklist_lines(kept).encode())
        self._known.update(kept)


class _Writer:
    def __init__(self, model: str, base_url: str | None, api_key_env: str) -> None:
        from .chat.client import ChatClient

        self._chat = ChatClient(model, base_url, api_key_env)
        self._template = read_text(TEMPLATE).strip()

    def __call__(self, prompts: Sequence[str]) -> list[Checklist | None]:
        from .chat.client import Question

        found: dict[str, Checklist] = {}
        for attempt in range(ATTEMPTS):
            left = [prompt for prompt in prompts if prompt not in found]
            # The same text at temperature 0 would bring the same reply.
            ending = "\n\nReply with the JSON object alone." if attempt else ""
            questions = [Question((), self._template.replace("{prompt}", prompt) + ending) for prompt in left]
            for prompt, answer in zip(left, self._chat.ask(questions, MAX_TOKENS)):
                checks = parse_checklist(answer.text or "")
                if checks is not None:
                    found[prompt] = checks
            if len(found) == len(prompts):
                break
        return [found.get(prompt) for prompt in prompts]


def parse_checklist(reply: str) -> Checklist | None:
    """The checklist in a reply: the last JSON object with `checks`, outside of thinking; None if there is none.

    Parents are counted from 1 in replies, as people and models count lists.
    """
    text = re.sub(r"<think>.*?(</think>|$)", "", reply, flags=re.DOTALL)
    decoder = json.JSONDecoder()
    found: Checklist | None = None
    start = text.find("{")
    while start >= 0:
        end = start + 1
        try:
            value, end = decoder.raw_decode(text, start)
            found = checklist_of(_from_zero(value)) if isinstance(value, dict) and "checks" in value else found
        except (ValueError, RecursionError, TypeError):
            pass
        start = text.find("{", end)
    return found


def _from_zero(value: dict[str, Any]) -> dict[str, Any]:
    checks = [
        {**check, "parents": [parent - 1 for parent in check["parents"]]} if check.get("parents") else check
        for check in value["checks"]
    ]
    return {"checks": [{name: one[name] for name in one if name in _FIELDS} for one in checks]}


_FIELDS = ("question", "answer", "parents", "kind")

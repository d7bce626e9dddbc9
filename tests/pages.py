"""The documentation as tests read it: pages, their blocks of code, and the commands in them.

A block marked `python` is run by a test. One marked `py` needs a checkpoint of the Hub, a server or data of the
reader's; it is compiled, and its names have to exist. Commands are in blocks marked `bash`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path


REPOSITORY = Path(__file__).parent.parent
DOCS = sorted(path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "docs").glob("*.md"))
PAGES = [
    *DOCS,
    "README.md",
    "examples/README.md",
    "examples/comfyui/README.md",
    "benchmarks/README.md",
    "fk_steer/shapes/README.md",
]


def blocks(page: str, *languages: str) -> list[str]:
    """The blocks of a page in some languages, in order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", (REPOSITORY / page).read_text(), re.S | re.M)
    return [code for language, code in found if language in languages]


def runnable(page: str) -> list[str]:
    """The blocks that a test runs."""
    return blocks(page, "python")


def commands(page: str) -> Iterator[list[str]]:
    """The commands of a page, each as words, without comments and environment; '...' for what a shell puts in."""
    for block in blocks(page, "bash"):
        text = re.sub(r"\w+=\$\(.*?\)\n", "", block, flags=re.S).replace("\\\n", " ")
        for line in text.splitlines():
            words = ["..." if word.startswith("$") else word for word in shlex.split(line, comments=True)]
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words = words[1:]
            if words:
                yield words

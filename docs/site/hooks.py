"""What the site needs beside MkDocs: links that leave `docs/` lead to the repository."""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any


log = logging.getLogger("mkdocs.hooks.links")

LINK = re.compile(r"(?<=\]\()(?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?(?=\))")
FENCE = re.compile(r"^(```|~~~)[^\n]*\n.*?^\1[ ]*$", re.M | re.S)


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Pages are read on GitHub too, where `../benchmarks` is a link. Here it becomes the repository's address of it.

    A link to something that is not in the checkout is warned of, which ends a strict build.
    """
    root = Path(config.docs_dir).parent
    folder = posixpath.join(Path(config.docs_dir).name, posixpath.dirname(page.file.src_uri))

    def outward(found: re.Match[str]) -> str:
        place = posixpath.normpath(posixpath.join(folder, found["target"]))
        if place.split("/")[0] == Path(config.docs_dir).name:
            return found[0]
        if place.startswith("..") or not (root / place).exists():
            log.warning("%s links to %s, which is not in the repository.", page.file.src_uri, found["target"])
            return found[0]
        kind = "tree" if (root / place).is_dir() else "blob"
        return f"{config.repo_url.rstrip('/')}/{kind}/main/{place}{found['anchor'] or ''}"

    parts, end = [], 0
    for code in FENCE.finditer(markdown):
        parts += [LINK.sub(outward, markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, LINK.sub(outward, markdown[end:])])

"""What the site needs beside MkDocs: links that leave `docs/`, and a look at what pages would ask other hosts for."""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any


log = logging.getLogger("mkdocs.hooks")

FENCE = re.compile(r"^(```|~~~)[^\n]*\n.*?^\1[ ]*$", re.M | re.S)
LINK = re.compile(r"(?P<before>(?P<mark>!?)\[[^\[\]]*\]\()(?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?(?=\))")
FOREIGN = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\bsrc=["']?(?:https?:)?//[^>]*>"""
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|icon|preload|preconnect|modulepreload))[^>]*\bhref=["']?(?:https?:)?//[^>]*>"""
    r"""|url\(["']?(?:https?:)?//[^)]*\)|@import\s+["'](?:https?:)?//[^;]*"""
)
"""What a browser fetches from another host as soon as it shows a page; links that are clicked are none of it."""


def on_files(files: Any, *, config: Any) -> Any:
    """Pictures of other folders that pages show, such as plots of `benchmarks/`, become files of the site."""
    from mkdocs.structure.files import File  # tests of links need no MkDocs

    for page in list(files.documentation_pages()):
        for found in links(Path(page.abs_src_path).read_text(encoding="utf-8")):
            place = outside(found["target"], page.src_uri, config)
            if found["mark"] and place and (root(config) / place).is_file() and copied(place) not in files.src_uris:
                files.append(File.generated(config, copied(place), abs_src_path=str(root(config) / place)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Pages are read on GitHub too, where `../benchmarks` is a link. Here it becomes the repository's address of it.

    A link to something that is not in the checkout is warned of, which ends a strict build.
    """

    def outward(found: re.Match[str]) -> str:
        place = outside(found["target"], page.file.src_uri, config)
        if place is None:
            return found[0]
        if place.startswith("..") or not (root(config) / place).exists():
            log.warning("%s links to %s, which is not in the repository.", page.file.src_uri, found["target"])
            return found[0]
        if found["mark"]:
            return found["before"] + posixpath.relpath(copied(place), posixpath.dirname(page.file.src_uri))
        kind = "tree" if (root(config) / place).is_dir() else "blob"
        return f"{found['before']}{config.repo_url.rstrip('/')}/{kind}/main/{place}{found['anchor'] or ''}"

    return prose(markdown, lambda text: LINK.sub(outward, text))


def on_post_build(*, config: Any) -> None:
    """Warn of whatever a page or style sheet would fetch from another host."""
    for path in sorted(Path(config.site_dir).rglob("*")):
        if path.suffix in (".html", ".css"):
            for found in FOREIGN.finditer(path.read_text(encoding="utf-8")):
                log.warning("%s asks another host: %s", path.relative_to(config.site_dir), found[0])


def links(markdown: str) -> list[re.Match[str]]:
    """All links and pictures of a page, those in its code left out."""
    found: list[re.Match[str]] = []

    def note(text: str) -> str:
        found.extend(LINK.finditer(text))
        return text

    prose(markdown, note)
    return found


def prose(markdown: str, change: Callable[[str], str]) -> str:
    """A page, with something done to what stands between its blocks of code."""
    parts, end = [], 0
    for code in FENCE.finditer(markdown):
        parts += [change(markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, change(markdown[end:])])


def outside(target: str, page: str, config: Any) -> str | None:
    """The place of a link's target in the repository; None within `docs/`."""
    folder = Path(config.docs_dir).name
    place = posixpath.normpath(posixpath.join(folder, posixpath.dirname(page), target))
    return None if place.split("/")[0] == folder else place


def copied(place: str) -> str:
    """Where a picture of another folder is in the site."""
    return f"repository/{place}"


def root(config: Any) -> Path:
    """The checkout."""
    return Path(config.docs_dir).parent

"""The site of the documentation: its pages are all there, their links lead somewhere, and it asks no other host."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from browser import CHROMIUM, Browser
from pages import DOCS, PAGES, REPOSITORY
from test_docstrings import MODULES, public


CONFIG = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())


@pytest.fixture(scope="module")
def hooks() -> Any:
    spec = importlib.util.spec_from_file_location("hooks", REPOSITORY / "docs" / "site" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path) -> Any:
    """A repository with a page that can be given any text."""
    (tmp_path / "docs" / "api").mkdir(parents=True)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "plot.png").touch()
    return SimpleNamespace(docs_dir=str(tmp_path / "docs"), site_dir=str(tmp_path), repo_url="https://host/us/it/")


def page(uri: str) -> Any:
    return SimpleNamespace(file=SimpleNamespace(src_uri=uri))


def entries(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [entry for part in (nav.values() if isinstance(nav, dict) else nav) for entry in entries(part)]


def anchors(path: Path) -> set[str]:
    """Those of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)
    heads = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", head.replace("`", "").lower()).strip().replace(" ", "-") for head in heads}


def test_every_page_is_in_the_navigation():
    files = {path.relative_to(REPOSITORY / "docs").as_posix() for path in (REPOSITORY / "docs").rglob("*.md")}
    assert set(entries(CONFIG["nav"])) == files


def test_every_public_module_has_a_page():
    listed = {
        name
        for path in (REPOSITORY / "docs" / "api").glob("*.md")
        for name in re.findall(r"^::: (\S+)$", path.read_text(), re.M)
    }
    assert listed >= set(MODULES)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(hooks, page):
    here = REPOSITORY / page
    for found in hooks.links(here.read_text()):
        place = (here.parent / found["target"]).resolve()
        assert place.exists(), found[0]
        assert place.is_relative_to(REPOSITORY)
    for target, anchor in re.findall(r"\]\(([\w./-]*\.md)?#([^)\s]+)\)", here.read_text()):
        assert anchor in anchors(here.parent / target if target else here), (target, anchor)


def test_links_that_leave_the_docs_lead_to_the_repository(hooks, checkout):
    text = (
        "[b](../benchmarks) [c](compute.md#a) [d](#e) [f](https://g.h/i)\n```\n[j](../benchmarks)\n```\n"
        "![k](../benchmarks/plot.png) [l](../benchmarks/plot.png#m)"
    )
    assert hooks.on_page_markdown(text, page=page("a.md"), config=checkout) == (
        "[b](https://host/us/it/tree/main/benchmarks) [c](compute.md#a) [d](#e) [f](https://g.h/i)\n```\n"
        "[j](../benchmarks)\n```\n![k](repository/benchmarks/plot.png) "
        "[l](https://host/us/it/blob/main/benchmarks/plot.png#m)"
    )
    deeper = hooks.on_page_markdown("![k](../../benchmarks/plot.png)", page=page("api/a.md"), config=checkout)
    assert deeper == "![k](../repository/benchmarks/plot.png)"


@pytest.mark.parametrize("target", ["../benchmarks/missing.md", "../../elsewhere.md"])
def test_links_to_nothing_are_told(hooks, checkout, caplog, target):
    with caplog.at_level(logging.WARNING):
        hooks.on_page_markdown(f"[a]({target})", page=page("a.md"), config=checkout)
    assert f"a.md links to {target}" in caplog.text


@pytest.mark.parametrize(
    "name, text, told",
    [
        ("a.html", '<script src="https://cdn.host/a.js"></script>', True),
        ("a.html", "<link rel=stylesheet href=//cdn.host/a.css>", True),
        ("a.html", '<link href="https://fonts.host" rel="preconnect" crossorigin>', True),
        ("a.html", '<img alt="a" src="https://host/a.png">', True),
        ("a.css", "a { background: url(https://host/a.png) }", True),
        ("a.css", '@import "https://host/a.css";', True),
        ("a.html", '<a href="https://host">b</a><link rel="canonical" href="https://host">', False),
        ("a.html", '<img src="a.png"><script src="../a.js"></script>', False),
    ],
)
def test_what_asks_another_host_is_told(hooks, checkout, caplog, name, text, told):
    (Path(checkout.site_dir) / name).write_text(text)
    with caplog.at_level(logging.WARNING):
        hooks.on_post_build(config=checkout)
    assert ("asks another host" in caplog.text) is told


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, where the packages that make it are installed."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=REPOSITORY,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        check=True,
    )
    return folder


def test_the_site_builds(site):
    assert 'data-md-component="source"' not in (site / "index.html").read_text(), "It would ask api.github.com."
    assert not (site / "site").exists()


@pytest.mark.parametrize("name", MODULES)
def test_the_reference_has_every_public_name(site, name):
    """A function that is called like its file, as `steer`, is taken for the file and needs an entry of its own."""
    (page,) = (
        path.stem
        for path in (REPOSITORY / "docs" / "api").glob("*.md")
        if re.search(rf"^::: {re.escape(name)}$", path.read_text(), re.M)
    )
    html = (site / "api" / page / "index.html").read_text()
    # Helpers of checks and messages are left out of the page on purpose; its filter names them.
    left_out = re.search(r"!\^\((.*?)\)", (REPOSITORY / "docs" / "api" / f"{page}.md").read_text())
    names = {key for key, _ in public(importlib.import_module(name)) if "." not in key}
    names -= set(left_out[1].split("|")) if left_out else set()
    assert {key for key in names if not re.search(rf'id="[\w.]*\b{key}"', html)} == set()


@pytest.fixture(scope="module")
def served(site) -> Iterator[str]:
    """The address of the site on this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium")
@pytest.mark.parametrize("page", ["", "concepts/", "presets/", "api/search/"])
def test_pages_fit_a_phone_and_ask_no_other_host(served, page, tmp_path):
    with Browser(SimpleNamespace(as_uri=lambda: served + page), tmp_path / "profile") as browser:
        browser.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390
        assert browser.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        assert [url for url in browser.requests if not url.startswith((served, "blob:"))] == []
        assert browser.problems == []


def test_pages_are_plain_markdown_on_both(hooks):
    """A list needs an empty line before it on the site, where GitHub needs none."""
    for name in DOCS:
        lines = re.sub(r"^```.*?^```", "", (REPOSITORY / name).read_text(), flags=re.S | re.M).splitlines()
        for before, line in zip(lines, lines[1:]):
            if re.match(r"(-|\d+\.) ", line):
                assert not before or re.match(r"(-|\d+\.|  )", before), (name, line)


def test_the_makefile_builds_it():
    make = shutil.which("make")
    assert make is not None
    planned = subprocess.run(
        [make, "-n", "--always-make", "docs"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    assert "mkdocs build --strict" in planned
    assert "--constraint constraints.txt --editable '.[docs]'" in planned

"""The notebook: what it says, that it runs, and what is kept of a run."""

from __future__ import annotations

import ast
import importlib
import json
import re
from typing import Any

import pytest
from conftest import REPOSITORY
from test_project import URL


PATH = REPOSITORY / "examples" / "quickstart.ipynb"
NOTEBOOK = json.loads(PATH.read_text(encoding="utf-8"))
CELLS = [(cell["cell_type"], cell["id"], "".join(cell["source"])) for cell in NOTEBOOK["cells"]]
CODE = {name: source for kind, name, source in CELLS if kind == "code"}
TEXT = "\n\n".join(source for kind, _, source in CELLS if kind == "markdown")


def parsed(source: str) -> ast.Module:
    """A cell, with IPython's `%pip install` as a name."""
    return ast.parse(re.sub(r"%pip install .*", "install", source))


def outputs(kind: str) -> list[dict[str, Any]]:
    return [
        output
        for cell in NOTEBOOK["cells"]
        if cell["cell_type"] == "code"
        for output in cell["outputs"]
        if output["output_type"] == kind
    ]


@pytest.mark.parametrize("name", CODE)
def test_cells_compile_and_import_what_is_there(name):
    for node in ast.walk(parsed(CODE[name])):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] != "IPython":
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names)


def test_what_is_not_run_compiles_too():
    (snippet,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    tree = ast.parse(snippet)
    (names,) = [node.names for node in tree.body if isinstance(node, ast.ImportFrom)]
    fk_steer = importlib.import_module("fk_steer")
    assert all(alias.name in fk_steer.__all__ for alias in names)


def test_cells_use_names_that_those_before_define():
    known = set(dir(importlib.import_module("builtins")))
    for source in CODE.values():
        names = [node for node in ast.walk(parsed(source)) if isinstance(node, ast.Name)]
        bound = {node.id for node in names if isinstance(node.ctx, ast.Store)} | {"install"}
        for node in ast.walk(parsed(source)):
            if isinstance(node, ast.FunctionDef):
                bound |= {node.name, *(argument.arg for argument in node.args.args)}
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                bound |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        known |= bound
        assert {node.id for node in names} <= known, source


def test_it_opens_in_colab_and_installs_from_the_repository():
    path = PATH.relative_to(REPOSITORY).as_posix()
    address = f"https://colab.research.google.com/github/{URL.removeprefix('https://github.com/')}/blob/main/{path}"
    assert f"]({address})" in CELLS[0][2] and CELLS[0][0] == "markdown"
    name, install = next(iter(CODE.items()))
    assert name == "install" and f"fk-steer[reports] @ git+{URL}" in install
    # Only where something is missing.
    (condition,) = [node.test for node in parsed(install).body if isinstance(node, ast.If)]
    assert "fk_steer" in ast.unparse(condition) and "find_spec" in ast.unparse(condition)


def test_links_lead_to_pages_that_are_there():
    paths = re.findall(rf"\]\({re.escape(URL)}/blob/main/([^)#]+)", TEXT)
    assert len(paths) >= 4 and all((REPOSITORY / path).is_file() for path in paths)


def test_what_is_kept_of_a_run_is_whole_and_small():
    assert PATH.stat().st_size < 600_000
    counts = [cell["execution_count"] for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(CODE) + 1)), "run it from top to bottom, see examples/README.md"
    assert not outputs("error") and {output["name"] for output in outputs("stream")} == {"stdout"}
    assert len([one for one in outputs("display_data") if "image/png" in one["data"]]) >= 5
    html = "".join("".join(one["data"].get("text/html", [])) for one in outputs("execute_result"))
    assert html.count("<svg") >= 1 and "data:image" in html and "<th>distinct_roots" in html
    assert str(REPOSITORY) not in PATH.read_text() and "/site-packages/" not in PATH.read_text()


def test_steering_is_seen_to_help():
    (without,) = re.findall(r"not steered: \[([-0-9.]+)", json.dumps(outputs("stream")))
    (best,) = re.findall(r"\bsteered:  +\[([-0-9.]+)", json.dumps(outputs("stream")))
    assert float(best) > float(without)


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    """Where nothing can be downloaded."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    pytest.importorskip("pandas")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress")
    notebook = nbformat.read(PATH, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert not list(tmp_path.iterdir())
    budget = next(cell for cell in notebook.cells if cell.id == "budget").outputs
    assert re.search(r"'budget': 100", budget[0].text)


def test_the_kernel_is_the_usual_one():
    assert NOTEBOOK["metadata"]["kernelspec"]["name"] == "python3" and NOTEBOOK["nbformat"] == 4

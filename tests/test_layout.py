"""Where things are, and which way imports run."""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY


ALLOWED = {
    "smc": set(),
    "search": {"smc"},
    "config": {"smc", "search"},
    "pipelines": {"smc", "search", "diffusion", "rewards", "config", "report"},
}
"""Part of `fk_steer` -> the others that it may import."""

FORBIDDEN = {
    "diffusion": {"pipelines", "evaluation", "cli", "testing", "generate"},
    "rewards": {
        "diffusion", "shapes", "pipelines", "evaluation", "report", "cli", "testing", "generate", "search", "server",
    },
    "shapes": {"cli", "testing", "generate"},
    "modular": {"pipelines", "evaluation", "cli", "testing", "generate", "shapes"},
    "report": {"pipelines", "cli", "testing", "generate"},
    "evaluation": {"cli", "testing", "generate"},
    "generate": {"cli", "testing"},
    "app": {"cli", "testing"},
    "server": {"diffusion", "pipelines", "evaluation", "app", "cli", "testing", "generate"},
    "training": {"cli", "testing"},
    "cli": {"testing"},
}  # fmt: skip
"""Part -> those that it may not."""


def modules(package: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((REPOSITORY / package).rglob("*.py")):
        name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        yield name.removesuffix(".__init__"), path


def imports(name: str, path: Path, anywhere: bool = True) -> Iterator[str]:
    """What a module imports, as dotted names with what is taken from there; without `anywhere` only what is imported
    with it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if anywhere else _at_import(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = name.split(".")[: -node.level + (path.name == "__init__.py") or None] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _at_import(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        of_types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if not of_types and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield child
            yield from _at_import(child)


def part(name: str) -> str | None:
    """'smc' of 'fk_steer.smc.weights'; None for what is not of the package."""
    package, _, rest = name.partition(".")
    return rest.partition(".")[0] if package == "fk_steer" and rest else None


@pytest.mark.parametrize("package", [*ALLOWED, *FORBIDDEN])
def test_imports_run_one_way(package):
    wrong = []
    for name, path in modules("fk_steer"):
        if part(name) == package:
            for imported in imports(name, path):
                other = part(imported)
                allowed = ALLOWED.get(package, {other}) - FORBIDDEN.get(package, set())
                if other not in (None, package, *allowed):
                    wrong.append(f"{name} imports {imported}")
    assert not wrong


@pytest.mark.parametrize("package", ["smc", "search"])
def test_the_mathematics_imports_torch_only(package):
    for name, path in modules("fk_steer"):
        if part(name) == package:
            found = {imported.split(".")[0] for imported in imports(name, path)} - sys.stdlib_module_names
            assert found <= {"fk_steer", "torch"}, name


def test_the_trace_is_light():
    path = REPOSITORY / "fk_steer" / "report" / "trace.py"
    own = {imported for imported in imports("fk_steer.report.trace", path, anywhere=False) if part(imported)}
    assert {part(imported) for imported in own} <= {"files", "records", "smc"}


def test_llava_reward_stands_alone():
    for name, path in modules("llava_reward_guide"):
        assert not any(imported.split(".")[0] == "fk_steer" for imported in imports(name, path)), name


def test_no_module_imports_itself_in_a_circle():
    """Of what is imported with a module."""
    files = dict(modules("fk_steer")) | dict(modules("llava_reward_guide"))
    graph = {}
    for name, path in files.items():
        # What is taken from a package is a module of its own, or the package's.
        found = (one if one in files else one.rpartition(".")[0] for one in imports(name, path, anywhere=False))
        graph[name] = sorted({one for one in found if one in files and one != name})
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in graph[name]:
                visit(other, [*trail, name])
            done.add(name)

    for name in graph:
        visit(name, [])


def test_only_two_packages_are_installed():
    settings = configparser.ConfigParser()
    settings.read(REPOSITORY / "setup.cfg")
    assert settings["options"]["packages"] == "find:"
    assert settings["options.packages.find"]["include"].split() == ["fk_steer*", "llava_reward_guide*"]
    # An editable install is then a path, which type checkers follow; nothing is mapped from elsewhere.
    assert settings["options"]["package_dir"].split() == ["=", "."]


def loaded(code: str) -> set[str]:
    """Which heavy packages a fresh interpreter has imported after some code."""
    heavy = {"torch", "diffusers", "transformers", "matplotlib"}
    code = f"import sys\n{code}\nprint('loaded', *sorted({heavy!r} & sys.modules.keys()))"
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout
    return set(output.splitlines()[-1].split()[1:])


def command(*arguments: str) -> str:
    return f"from fk_steer.cli import app\ntry: app({[*arguments]!r})\nexcept SystemExit: pass"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import fk_steer", set()),
        ("from fk_steer import FKSteering, Schedule", {"torch"}),
        (command("--help"), set()),
        (command("generate", "--help"), set()),
        (command("presets"), {"torch"}),
        (command("presets", "fk"), {"torch"}),
    ],
    ids=["package", "settings", "help", "help of a command", "presets", "a preset"],
)
def test_import_is_lazy(code, expected):
    assert loaded(code) == expected


def test_public_names():
    import fk_steer

    assert set(fk_steer.__all__) == set(fk_steer._MODULES) <= set(dir(fk_steer))
    assert all(getattr(fk_steer, name) is not None for name in fk_steer.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        fk_steer.nope  # noqa: B018

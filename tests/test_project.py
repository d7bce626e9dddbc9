"""Files about the project agree with one another and with the code."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY

import fk_steer


SETTINGS = configparser.ConfigParser()
SETTINGS.read(REPOSITORY / "setup.cfg", encoding="utf-8")
URL = SETTINGS["metadata"]["url"]
PYTHONS = [
    one.rpartition(" ")[2] for one in re.findall(r"Python :: 3\.\d+$", SETTINGS["metadata"]["classifiers"], re.M)
]
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
EXTRAS = SETTINGS["options.extras_require"]


def text(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def pins() -> dict[str, str]:
    lines = [line.partition(";")[0].strip() for line in text("constraints.txt").splitlines()]
    return {name: version for name, _, version in (line.partition("==") for line in lines)}


def test_the_version_is_in_one_place():
    assert SETTINGS["metadata"]["version"] == "attr: fk_steer.__version__"
    assert re.fullmatch(r"\d+\.\d+\.\d+", fk_steer.__version__)
    assert yaml.safe_load(text("CITATION.cff"))["version"] == fk_steer.__version__
    heads = re.findall(r"^## \[(.+?)\]", text("CHANGELOG.md"), re.M)
    assert heads[0] == "Unreleased" and set(heads[1:]) <= {fk_steer.__version__, *heads[2:]}


def test_addresses_are_of_the_repository_that_setup_names():
    assert yaml.safe_load(text("CITATION.cff"))["repository-code"] == URL
    owned = re.compile(r"https://github\.com/[\w-]+/fk-steer\b")
    files = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob(".github/**/*.*")]
    files += [REPOSITORY / "setup.cfg", REPOSITORY / "CITATION.cff"]
    found = {address for path in files for address in owned.findall(path.read_text(encoding="utf-8"))}
    assert found == {URL}


def test_lint_before_a_commit_is_that_of_make():
    hooks = {hook["id"]: (repo, hook) for repo in yaml.safe_load(text(".pre-commit-config.yaml"))["repos"]
             for hook in repo["hooks"]}  # fmt: skip
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", text("Makefile"), re.M)
    assert recipe is not None
    assert re.findall(r"\$\(BIN\)/(.+)", recipe[1]) == ["ruff check .", "ruff format --check .", "mypy"]
    assert list(hooks) == ["ruff-check", "ruff-format", "mypy"]
    for name in ("ruff-check", "ruff-format"):
        assert hooks[name][0]["rev"] == f"v{pins()['ruff']}"
    # Installed by make, with the pins.
    assert hooks["mypy"][1]["entry"] == ".venv/bin/mypy" and "mypy" in pins()


def load(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in load(path)["jobs"].values() for step in job["steps"]]


def test_every_claimed_python_is_tested_by_a_workflow():
    (job,) = load(REPOSITORY / ".github" / "workflows" / "tests.yml")["jobs"].values()
    assert job["strategy"]["matrix"]["python"] == PYTHONS
    for path in WORKFLOWS:
        for step in steps(path):
            version = step.get("with", {}).get("python-version", PYTHONS[0])
            assert version in (*PYTHONS, "${{ matrix.python }}"), path.name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows(path):
    flow = load(path)
    # YAML takes a bare `on` for true.
    assert flow[True] and flow["permissions"] == {"contents": "read"}
    assert all("timeout-minutes" in job for job in flow["jobs"].values())
    assert flow["env"]["PIP_EXTRA_INDEX_URL"] == "https://download.pytorch.org/whl/cpu"
    for step in steps(path):
        assert ("uses" in step) != ("run" in step)
        assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step.get("uses", "a/b@v1")), step
        for target in re.findall(r"^make (\w+)", step.get("run", ""), re.M):
            if target != "docs" or "docs" in EXTRAS:
                assert re.search(rf"^{target}:", text("Makefile"), re.M), f"there is no `make {target}`"


def test_a_release_is_built_checked_and_published_without_a_token():
    flow = load(REPOSITORY / ".github" / "workflows" / "release.yml")
    assert flow[True] == {"push": {"tags": ["v*"]}}
    build = " ; ".join(step.get("run", step.get("uses")) for step in flow["jobs"]["build"]["steps"])
    for part in ("python -m build", "twine check --strict dist/*", "actions/upload-artifact"):
        assert part in build
    publish = flow["jobs"]["publish"]
    assert publish["needs"] == "build" and publish["permissions"] == {"id-token": "write"}
    assert publish["steps"][-1]["uses"].startswith("pypa/gh-action-pypi-publish@")
    assert "secrets." not in str(flow)


@pytest.mark.parametrize("name", ["bug", "idea"])
def test_issue_forms(name):
    form = load(REPOSITORY / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml")
    assert {"name", "description", "body"} <= set(form)
    assert all(item["type"] in ("textarea", "input") and item["attributes"]["label"] for item in form["body"])
    assert len({item["id"] for item in form["body"]}) == len(form["body"])


def test_the_table_of_extras():
    rows = [line.strip("| ").split(" | ") for line in text("docs/install.md").splitlines() if line.startswith("| `")]
    table = {name.strip("`"): brings for name, _, brings in rows}
    assert set(table) == set(EXTRAS)
    for extra, content in EXTRAS.items():
        lines = [line for line in content.split("\n") if line and not line.startswith("#")]
        packages = {re.split(r"[ \[]", line)[0] for line in lines} - {"fk-steer"}
        others = {name for line in lines if line.startswith("fk-steer[") for name in re.findall(r"[\w-]+", line[8:])}
        if extra != "all":
            told = set(re.findall(r"[\w-]+", table[extra])) - {"and"}
            assert told == packages | others, extra
        else:
            assert others == set(EXTRAS) - {"all", "flash", "test", "docs"} and not packages


def demo(*arguments: str) -> str:
    command = ["make", "--no-print-directory", "--dry-run", "demo", *arguments]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout
    found = re.search(r"--out (\S+)", shown)
    assert found is not None
    return found[1]


def test_each_demo_has_a_folder_of_its_own():
    asked = [
        (), ("MODEL=shapes",), ("PRESET=fk",), ("REWARD=clip-score",), ("PARTICLES=8",), ("BUDGET=8",), ("LMBDA=8",),
        ("MODEL=owner/model",), ("MODEL=shapes", "PRESET=fk", "PARTICLES=8", "LMBDA=8"),
    ]  # fmt: skip
    folders = [demo(*arguments) for arguments in asked]
    assert folders[0] == "out/demo" == demo("MODEL=shapes-xl", "REWARD=llava-reward", "BUDGET=100", "PRESET=finish")
    assert len(set(folders)) == len(folders)
    assert all(folder.count("/") == 1 for folder in folders)
    assert demo("OUT=elsewhere") == "elsewhere"


def test_make_refuses_a_python_that_is_too_old(tmp_path):
    """Before anything is made, by one line."""
    assert SETTINGS["options"]["python_requires"] == f">={PYTHONS[0]}"
    oldest = tuple(map(int, PYTHONS[0].split(".")))
    assert f"sys.version_info < {oldest}" in text("Makefile")
    for name in ("Makefile", "setup.cfg", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text(text(name))
    old = tmp_path / "old-python"
    minor = oldest[1] - 1
    pretend = f"import sys\nsys.version_info, sys.version = (3, {minor}), '3.{minor}.9 (main)'\nexec(sys.argv[2])\n"
    old.write_text(f"#!{sys.executable}\n{pretend}")
    old.chmod(0o755)
    result = subprocess.run(["make", "demo", f"PYTHON={old}"], capture_output=True, text=True, cwd=tmp_path)
    expected = f"fk-steer needs Python {PYTHONS[0]} or newer, but {old} is 3.{minor}.9."
    assert result.returncode == 2 and result.stderr.startswith(expected)
    assert not (tmp_path / ".venv").exists()

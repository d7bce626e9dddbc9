"""The folder for a Space."""

from __future__ import annotations

import configparser
import re
import runpy
from pathlib import Path

import yaml

import fk_steer.app


REPOSITORY = Path(__file__).parent.parent
SPACE = REPOSITORY / "examples" / "space"


def test_its_header_is_what_a_space_needs():
    _, header, text = (SPACE / "README.md").read_text().split("---\n", 2)
    found = yaml.safe_load(header)
    assert found["sdk"] == "gradio" and (SPACE / found["app_file"]).is_file()
    assert f"gradio=={found['sdk_version']}\n" in (REPOSITORY / "constraints.txt").read_text()
    assert len(found["short_description"]) <= 60 and text.strip()


def test_it_installs_what_the_page_needs():
    settings = configparser.ConfigParser()
    settings.read(REPOSITORY / "setup.cfg")
    extras = settings["options.extras_require"]
    wanted = "\n".join(
        [settings["options"]["install_requires"], *(extras.get(name, "") for name in ("cli", "reports"))]
    )
    listed = _names((SPACE / "requirements.txt").read_text())
    assert listed >= _names(wanted) - {"fk-steer"}
    # The Space brings its own.
    assert "gradio" not in listed


def test_its_program_lets_strangers_in_to_what_comes_along(monkeypatch):
    calls = []
    monkeypatch.setattr(fk_steer.app, "launch", lambda **options: calls.append(options))
    runpy.run_path(str(SPACE / "app.py"), run_name="__main__")
    (options,) = calls
    assert options["host"] == "0.0.0.0" and options["limits"].fixed and options["limits"].particles <= 8


def _names(lines: str) -> set[str]:
    found = re.findall(r"^([A-Za-z0-9_.-]+)", re.sub(r"^(#|--).*$", "", lines, flags=re.M), flags=re.M)
    return {name.lower().replace("_", "-") for name in found}

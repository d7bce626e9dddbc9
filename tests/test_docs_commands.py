"""Commands in the documentation are commands: their options exist and take such values."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import re
import runpy
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from pages import DOCS, PAGES, REPOSITORY, commands

from fk_steer.search import DEFAULT_PRESET, PRESETS


OTHERS = {"cd", "cp", "curl", "git", "hf", "jupyter", "mkdir", "pip", "vllm"}
"""Programs that are not ours, in whose words nothing is looked up."""

SCRIPTS_OF_PAGES = {"make_data.py", "generate.py"}
"""Files that the reader makes of a block."""


class Parsed(Exception):
    """A script's arguments have been understood."""


@cache
def command_of(module: str) -> Any:
    """The typer command of a module's name or a script's path; None for a script that parses with argparse."""
    if module.endswith(".py"):
        if "import argparse" in (REPOSITORY / module).read_text():
            return None
        names = runpy.run_path(str(REPOSITORY / module), run_name="docs")
    else:
        places = [f"{module}.cli", f"{module}.__main__", module]
        names = vars(importlib.import_module(next(place for place in places if exists(place))))
    if isinstance(names.get("app"), typer.Typer):
        return typer.main.get_command(names["app"])
    app = typer.Typer()
    app.command()(names["main"])
    return typer.main.get_command(app)


def exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def target(words: list[str]) -> tuple[str, list[str]] | None:
    """(Module or script, arguments) of a command of ours; None for other programs'."""
    program, *rest = words
    if program in OTHERS or (program == "python" and rest[:2] == ["-m", "sglang.launch_server"]):
        return None
    if program == "fk-steer":
        return "fk_steer", rest
    if program == "llava-reward":
        return "llava_reward_guide", rest
    if program in ("torchrun", "accelerate"):
        rest = rest[1:] if program == "accelerate" else rest
        while rest[0] in ("--multi_gpu", "--num_processes", "--nproc-per-node", "--config_file", "--no-python"):
            rest = rest[1:] if rest[0] in ("--multi_gpu", "--no-python") else rest[2:]
        return target(rest) if rest[0] == "fk-steer" else target(["python", *rest])
    assert program == "python", f"Nothing is known of '{program}'."
    if rest[0] == "-m":
        return rest[1], rest[2:]
    return rest[0], rest[1:]


def check(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse arguments as the command would, without running it. '...' stands for some that are left out."""
    if module in SCRIPTS_OF_PAGES:
        return
    whole = "..." not in arguments
    before = ["", *arguments]
    # After an option it stands for the value.
    arguments = [word for word, last in zip(arguments, before) if word != "..." or last.startswith("-")]
    command = command_of(module)
    if command is None:

        def parse(parser: argparse.ArgumentParser, *_: Any) -> None:
            argparse.ArgumentParser.parse_known_args(parser, arguments)
            assert parser.parse_known_args(arguments)[1] == []
            raise Parsed

        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
        with pytest.raises(Parsed):
            runpy.run_path(str(REPOSITORY / module), run_name="__main__")
        return
    while (commands := getattr(command, "commands", None)) is not None and arguments:
        assert arguments[0] in commands, f"There is no command '{arguments[0]}'."
        command, arguments = commands[arguments[0]], arguments[1:]
    if commands is not None:
        return
    try:
        parsed = command.make_context("docs", list(arguments)).params
    except Exception as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        # A page names files of the reader's, and may leave out what was said before.
        if "does not exist" in message or (not whole and "Missing" in message):
            return
        raise
    assert not isinstance(parsed.get("preset"), str) or re.split("[:@]", parsed["preset"])[0] in PRESETS


@pytest.mark.parametrize("page", PAGES)
def test_options_exist(page, monkeypatch):
    makefile = (REPOSITORY / "Makefile").read_text()
    for words in commands(page):
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.M), words
        elif (found := target(words)) is not None:
            try:
                check(*found, monkeypatch)
            except Exception as error:
                raise AssertionError(f"{' '.join(words)}: {error!r}") from error


@pytest.mark.parametrize(
    "words",
    [["fk-steer", "generate", "a", "--particle", "4"], ["fk-steer", "score", "a.png"], ["fk-steer", "make"],
     ["fk-steer", "generate", "a", "--steps", "many"], ["python", "examples/steer_sdxl.py", "--preset"],
     ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "-m", "fk_steer", "bench", "geneva"]],
)  # fmt: skip
def test_wrong_commands_are_told(words, monkeypatch):
    with pytest.raises((Exception, SystemExit)):
        check(*target(words), monkeypatch)


@pytest.mark.parametrize("page", DOCS)
def test_several_processes_are_asked_for_in_a_way_that_makes_them(page):
    """`accelerate launch --num_processes 2` alone is one process where there is no GPU."""
    for words in commands(page):
        if words[0] == "accelerate":
            assert {"--multi_gpu", "--config_file"} & set(words), words


@pytest.mark.parametrize("page", DOCS)
def test_no_lambda_is_given_where_it_is_a_limit_alone(page):
    for words in commands(page):
        preset = words[words.index("--preset") + 1] if "--preset" in words else DEFAULT_PRESET
        assert "--lmbda" not in words or preset not in ("adaptive", "finish"), words


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_installed_that_is_not_there(page):
    for words in commands(page):
        if words[0] == "pip":
            assert words[1] == "install" and words[words.index("-e") + 1].startswith("."), words


CHEAP = {
    "generate": ["--steps", "4"],
    "run": ["--limit", "6", "--steps", "2", "--samples-per-prompt", "1"],
    "prefer": ["--limit", "2", "--steps", "2"],
    "compare": ["--limit", "6", "--steps", "2", "--samples", "1"],
    "presets": [],
}
"""Fewer prompts and steps than a page asks for."""

BUNDLED = [
    words
    for page in DOCS
    for words in commands(page)
    if words[0] == "fk-steer"
    and (words[1] == "presets" or any(model in words for model in ("shapes", "shapes-xl", "shapes,shapes-xl")))
    and not {"--detector", "remote"} & set(words)
]


def test_pages_have_commands_that_need_no_download():
    assert {next(word for word in words if word in CHEAP) for words in BUNDLED} == set(CHEAP)


@pytest.mark.slow
@pytest.mark.parametrize("words", BUNDLED, ids=" ".join)
def test_commands_on_the_bundled_model_run(words, tmp_path):
    cheap = CHEAP[next(word for word in words if word in CHEAP)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(
        [sys.executable, "-m", "fk_steer", *words[1:], *cheap],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    out = words[words.index("--out") + 1] if "--out" in words else None
    assert run.stdout if out is None else any(Path(tmp_path, out).iterdir())

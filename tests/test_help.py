"""What `--help` says: of every command and option of both programs, of the benchmarks and of the examples."""

from __future__ import annotations

import argparse
import importlib
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fk_steer import search
from fk_steer.cli import app
from fk_steer.cli.options import DEFAULT_PRESET
from fk_steer.options import Help
from fk_steer.search import PRESETS
from llava_reward_guide.cli import app as llava_reward
from llava_reward_guide.data.__main__ import app as data
from llava_reward_guide.train import app as train


ROOT = Path(__file__).parents[1]
PROGRAMS = {"fk-steer": app, "llava-reward": llava_reward, "train": train, "data": data}

VERBS = {
    "Add", "Agree", "Average", "Build", "Call", "Change", "Check", "Choose", "Clip", "Compare", "Compile", "Compute",
    "Copy", "Count", "Cut", "Decode", "Denoise", "Divide", "Draw", "Drop", "Expect", "Favour", "Find", "Generate",
    "Give", "Go", "Hold", "Insist", "Judge", "Keep", "Leave", "Let", "List", "Listen", "Load", "Log", "Look", "Make",
    "Measure", "Mirror", "Move", "Normalise", "Offer", "Open", "Pass", "Prepare", "Print", "Put", "Rank", "Read",
    "Repeat", "Run", "Sample", "Save", "Say", "Scale", "Score", "Serve", "Set", "Share", "Show", "Solve", "Spend",
    "Start", "Stay", "Steer", "Stop", "Take", "Tell", "Test", "Time", "Train", "Treat", "Try", "Tune", "Use",
    "Validate", "Write",
}  # fmt: skip
"""What a text of help may begin with: it says what the option does."""


def commands(command, names=()):
    """All commands below one, and the words that call them."""
    yield names, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*names, name))


def scripts():
    """Name and app of each script of the benchmarks and the bundled world that has options."""
    for path in sorted([*ROOT.glob("benchmarks/*/*.py"), *ROOT.glob("fk_steer/shapes/*.py")]):
        text = path.read_text()
        if "import typer" not in text:
            continue
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        program = getattr(module, "app", None)
        if program is None:
            program = typer.Typer(add_completion=False)
            program.command()(module.main)
        yield f"{path.parent.name}/{path.name}", program


CASES = [(name, words) for name, one in PROGRAMS.items() for words, _ in commands(typer.main.get_command(one))]


def sentence(text):
    """Whether a text stands alone: it begins with what is to be done and ends with a full stop or question mark."""
    first = re.match(r"[A-Z][a-z]+", text)
    return bool(first) and first[0] in VERBS and text.endswith((".", "?")) and len(text.split()) >= 3


def check_command(command, where):
    own = [parameter for parameter in command.params if parameter.name != "help"]
    for parameter in own:
        assert sentence(parameter.help or ""), f"{where} {parameter.opts}: {parameter.help!r}"
        is_flag = getattr(parameter, "is_flag", False) and not parameter.secondary_opts
        shown = parameter.required or is_flag or parameter.show_default
        assert shown, f"{where} {parameter.opts} shows no default"
        if not parameter.required and not is_flag:
            unsaid = parameter.default in (None, [], "")
            assert not unsaid or isinstance(parameter.show_default, str), f"{where} {parameter.opts}: what without it?"
        # Nothing about defaults by hand.
        assert "default" not in parameter.help, f"{where} {parameter.opts}"


@pytest.mark.parametrize(("program", "words"), CASES, ids=lambda one: one if isinstance(one, str) else " ".join(one))
def test_every_command_and_option_says_what_it_does_and_what_happens_without_it(program, words):
    command = dict(commands(typer.main.get_command(PROGRAMS[program])))[words]
    assert (command.help or "").endswith((".", "?"))
    if words:
        assert sentence(re.split(r"\n\n", command.help)[0]), command.help
    check_command(command, f"{program} {' '.join(words)}")


def rows_in(text):
    """Name of an option -> what stands in its row, of a table or of a plain list."""
    rows, current = {}, None
    for line in text.splitlines():
        if found := re.match(r"(?:│ (?:\*  |   )?|  (?:-\w, )?)(--[a-z0-9-]+)", line):
            current = found[1]
        elif not line.startswith(("│", "   ")):
            current = None
        if current is not None:
            rows[current] = f"{rows.get(current, '')} {line.strip('│ ')}"
    return rows


def within(text, whole):
    """Whether the words of a text stand in this order within another, which may have others between them."""
    words = iter(whole.split())
    return all(any(word == other for other in words) for word in text.split())


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(("program", "words"), CASES, ids=lambda one: one if isinstance(one, str) else " ".join(one))
def test_nothing_of_a_help_text_is_swallowed(program, words, width):
    command = dict(commands(typer.main.get_command(PROGRAMS[program])))[words]
    # As on a terminal, where markup in a text is read.
    result = CliRunner().invoke(PROGRAMS[program], [*words, "--help"], color=True, env={"COLUMNS": str(width)})
    assert result.exit_code == 0, result.exception
    text = re.sub(r"\x1b\[[0-9;]*m", "", result.output)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert within(command.help, text)
    rows = rows_in(text)
    for parameter in command.params:
        option = next((name for name in parameter.opts if name.startswith("--")), None)
        row = text if option is None else rows[option]
        assert within(parameter.help, row), option
        if parameter.metavar:
            assert parameter.metavar in row
        if parameter.required:
            assert "[required]" in row
        elif isinstance(parameter.show_default, str):
            assert within(f"({parameter.show_default})", row.replace(")]", ") ]")), row
        elif not (getattr(parameter, "is_flag", False) and not parameter.secondary_opts):
            assert "[default:" in row, option


def test_commands_stand_in_groups_in_the_order_of_use():
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"}).output
    groups = ["Make pictures", "Score and compare", "Make a better model", "Benchmarks", "Look up"]
    found = re.findall(r"╭─ ([A-Z][a-z ]+?) ─", text)
    assert [one for one in found if one != "Options"] == groups
    places = [
        text.index(f"│ {name} ")
        for name in ("generate", "score", "compare", "judge", "prefer", "train", "bench", "eval", "presets")
    ]
    assert places == sorted(places)


def test_help_texts_explain_what_they_name():
    command = dict(commands(typer.main.get_command(app)))[("generate",)]
    helps = {parameter.name: parameter.help for parameter in command.params}
    assert "candidates" in helps["particles"]
    for kind in ("constant", "rising", "geometric", "target-ess", "upper limit"):
        assert kind in helps["lmbda"]
    everything = " ".join(helps.values())
    for term in ("NFE", "ESS", "SSP", "tilt"):
        assert term not in everything.replace("target-ess", "")


def test_the_default_preset_is_the_same_everywhere():
    assert DEFAULT_PRESET == search.DEFAULT_PRESET
    assert DEFAULT_PRESET in PRESETS
    for words in (("generate",), ("bench", "run"), ("bench", "geneval"), ("bench", "drawbench")):
        command = dict(commands(typer.main.get_command(app)))[words]
        assert next(one for one in command.params if one.name == "preset").default == DEFAULT_PRESET
    compare = dict(commands(typer.main.get_command(app)))[("compare",)]
    assert next(one for one in compare.params if one.name == "preset").show_default == DEFAULT_PRESET


def test_help_of_scripts():
    for name, program in scripts():
        for words, command in commands(typer.main.get_command(program)):
            where = f"{name} {' '.join(words)}"
            if not getattr(command, "commands", {}):
                assert sentence((command.help or "").split("\n\n")[0].replace("\n", " ")), f"{where}: {command.help!r}"
            check_command(command, where)


class _Parsed(Exception):
    pass


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*.py")), ids=lambda path: path.name)
def test_help_of_examples(path, monkeypatch):
    parsers = []

    def caught(self, *arguments, **options):
        parsers.append(self)
        raise _Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", caught)
    if "argparse" not in path.read_text():
        pytest.skip("takes no options")
    with pytest.raises(_Parsed):
        runpy.run_path(str(path), run_name="__main__")
    (parser,) = parsers
    assert parser.formatter_class is Help
    text = " ".join(parser.format_help().split())
    for action in parser._actions:
        if action.dest == "help":
            continue
        assert sentence(action.help or ""), f"{action.option_strings}: {action.help!r}"
        assert " ".join(action.help.split()) in text
        if action.default not in (None, False):
            assert f"(default: {action.default}" in text


def test_help_needs_no_pytorch():
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom fk_steer.cli import app\n"
        "assert CliRunner().invoke(app, ['generate', '--help']).exit_code == 0\n"
        "print([name for name in ('torch', 'diffusers', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

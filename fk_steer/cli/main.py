"""The command line: its commands, and what they are called."""

from __future__ import annotations

from typing import Annotated

import typer

from llava_reward_guide.terminal import print_version

from .compare import compare
from .evaluation import app as evaluation
from .generate import generate
from .generation_runs import app as runs
from .judge import judge
from .presets import presets
from .rewards import app as rewards
from .rewards import score
from .serve import serve


app = typer.Typer(
    help="Feynman-Kac steering for Hugging Face Diffusers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


@app.callback()
def main(
    show: Annotated[
        bool, typer.Option("--version", callback=print_version("fk-steer"), is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Feynman-Kac steering for Hugging Face Diffusers."""


app.add_typer(runs, name="bench")
app.add_typer(evaluation, name="eval")
app.add_typer(rewards, name="rewards")
for command in (generate, presets, score, judge, compare):
    app.command()(command)
app.command("app")(serve)

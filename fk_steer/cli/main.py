"""The command line: its commands, and what they are called."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from llava_reward_guide.terminal import flowing, print_version

from .app import page
from .compare import compare
from .evaluation import app as evaluation
from .generate import generate
from .generation_runs import app as runs
from .judge import judge
from .prefer import prefer
from .presets import presets
from .rewards import app as rewards
from .rewards import score
from .serve import serve
from .train import app as train


class InOrder(TyperGroup):
    """Commands in the order of `ORDER`; Typer lists those that have commands of their own last."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the commands."""
        return sorted(super().list_commands(ctx), key=ORDER.index)


ORDER = ["generate", "app", "score", "compare", "judge", "serve"]
ORDER += ["prefer", "train", "bench", "eval", "presets", "rewards"]

app = typer.Typer(
    cls=InOrder,
    help="Feynman-Kac steering for Hugging Face Diffusers: images that a reward likes better, without training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


@app.callback()
def main(
    show: Annotated[
        bool,
        typer.Option("--version", callback=print_version("fk-steer"), is_eager=True, help="Print the version and end."),
    ] = False,
) -> None:
    """Feynman-Kac steering for Hugging Face Diffusers: images that a reward likes better, without training.

    `fk-steer generate "a photo of three hearts"` is a first try: it needs no download.
    """


PICTURES, SCORES, BENCHMARKS, LOOK_UP = "Make pictures", "Score and compare", "Benchmarks", "Look up"
MODELS = "Make a better model"

app.command(rich_help_panel=PICTURES)(generate)
app.command("app", rich_help_panel=PICTURES)(page)
for command in (score, compare, judge, serve):
    app.command(rich_help_panel=SCORES)(command)
app.command(rich_help_panel=MODELS)(prefer)
app.add_typer(train, name="train", rich_help_panel=MODELS)
app.add_typer(runs, name="bench", rich_help_panel=BENCHMARKS)
app.add_typer(evaluation, name="eval", rich_help_panel=BENCHMARKS)
app.add_typer(rewards, name="rewards", rich_help_panel=LOOK_UP)
app.command(rich_help_panel=LOOK_UP)(presets)
flowing(app)

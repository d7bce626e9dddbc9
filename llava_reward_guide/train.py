"""`python -m llava_reward_guide.train`: a flag for every setting of `TrainingConfig`, or a YAML file with them."""

from __future__ import annotations

import json
from typing import Any

from .packages import require_for_commands


if __name__ == "__main__":
    require_for_commands()

import typer

from .cli import one_line_errors
from .settings import take_settings
from .terminal import flowing
from .training.config import TrainingConfig, load_config, shipped_configs


def main(**options: Any) -> None:
    """Train a LLaVA-Reward. A run that stopped goes on from its last checkpoint when started again."""
    with one_line_errors():
        config = load_config(options.pop("config"), {name: v for name, v in options.items() if v not in (None, [])})
        if not config.train_data:
            raise ValueError("Expected `train_data`, a file of pairs or labelled images, but got none.")
        from .report import finite
        from .training import train

        result = train(config)
    if not result.finished:
        # As a process that SIGTERM ended, so that a scheduler starts it again.
        raise typer.Exit(143)
    figures = {"checkpoint": str(result.checkpoint), "step": result.step, **finite(result.validation)}
    typer.echo(json.dumps(figures, indent=2))


take_settings(main, TrainingConfig, "Read settings from this YAML file, or from one of the recipes above")

# In a table the long names would leave the texts no room.
app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False, rich_markup_mode=None)
_MORE = (
    "On several GPUs or machines: accelerate launch -m llava_reward_guide.train ...\n\n"
    f"Recipes that come with the package: {', '.join(shipped_configs())}."
)
app.command(help=f"{main.__doc__}\n\n{_MORE}")(main)
flowing(app)


if __name__ == "__main__":
    app(prog_name="python -m llava_reward_guide.train")

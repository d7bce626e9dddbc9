"""`fk-steer train ...`."""

from __future__ import annotations

import json
import os
from typing import Any

import typer

from llava_reward_guide.settings import take_settings

from ..training.config import DPOConfig, load_config
from .options import one_line_errors, start


app = typer.Typer(help="Train a diffusion model on preferences.", no_args_is_help=True, rich_markup_mode=None)


def dpo(**options: Any) -> None:
    """Train a diffusion model on preferences between images (Diffusion-DPO).

    LoRA weights land in OUTPUT/final, for `pipe.load_lora_weights`. A run that was stopped goes on when it is started
    again. On several GPUs or machines: accelerate launch -m fk_steer train dpo ...
    """
    with one_line_errors():
        config = load_config(options.pop("config"), {name: v for name, v in options.items() if v not in (None, [])})
        if not config.data:
            raise ValueError("Expected `data`, preferences to train on, but got none: --data FOLDER.")
        start(os.environ.get("RANK", "0") == "0")
        from ..training.trainer import train_dpo

        result = train_dpo(config)
    if not result.finished:
        # As a process that SIGTERM ended, so that a scheduler starts it again.
        raise typer.Exit(143)
    if os.environ.get("RANK", "0") == "0":
        typer.echo(json.dumps({"weights": str(result.weights), "step": result.step}, indent=2))


take_settings(dpo, DPOConfig, "Read settings from this YAML file")
app.command("dpo")(dpo)


@app.callback()
def train() -> None:
    """Train a diffusion model on preferences."""

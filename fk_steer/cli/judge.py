"""`fk-steer judge ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..options import reward_options
from .options import Device, one_line_errors


def judge(
    data: Annotated[
        Path,
        typer.Argument(
            help="Judgements: LLaVA-Reward's, MJ-Bench's, GenAI-Bench's, ImageReward's or TIFA160's file, or hf:NAME."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for scores and tables; one for all rewards on the same data.")],
    reward: Annotated[str, typer.Option(help="Reward to test; see `fk-steer rewards`.")] = "clip-score",
    reward_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Option of the reward, for example path=FOLDER.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Name in the table. [default: the reward's]")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the images. [default: that of DATA]")] = None,
    human: Annotated[Path | None, typer.Option(help="TIFA160's human answers (CSV).")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Judgements (pairs, for instance) scored at a time.")] = 16,
    tie_threshold: Annotated[float, typer.Option(min=0.0, help="Rewards that differ by no more are a tie.")] = 0.0,
    temperature: Annotated[float, typer.Option(help="Of the probabilities rounded to bfloat16.")] = 0.1,
    label_threshold: Annotated[float, typer.Option(help="Rewards from here on mean the label 1.")] = 0.0,
    device: Device = None,
) -> None:
    """How well a reward agrees with human judgements.

    Run again it scores what is missing. Rewards tested in the same folder share a table.
    """
    with one_line_errors():
        from ..loading import quiet_libraries

        quiet_libraries()
        from ..evaluation.judge.run import run

        run(
            data,
            out,
            reward,
            reward_options(reward_option or [], reward, [reward]),
            label=label,
            images=images,
            human=human,
            batch_size=batch_size,
            tie_threshold=tie_threshold,
            temperature=temperature,
            label_threshold=label_threshold,
            device=device,
        )

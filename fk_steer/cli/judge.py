"""`fk-steer judge ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..options import reward_options
from .options import DEFAULT_REWARD, Device, one_line_errors, start


def judge(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Read people's judgements from this file: LLaVA-Reward's, MJ-Bench's, GenAI-Bench's, ImageReward's, "
            "TIFA160's, VL-RewardBench's, VideoGen-RewardBench's or MMRB2's, or hf:OWNER/NAME of a data set on the "
            "hub, with /CONFIG and :SPLIT after it where it has several.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Write scores and tables to this folder, one for all rewards on the same data.")
    ],
    reward: Annotated[str, typer.Option(help="Test this reward; `fk-steer rewards` lists them.")] = DEFAULT_REWARD,
    reward_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Set an option of the reward, for example path=FOLDER.",
            show_default="the reward's own",
        ),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Call it by this name in the table.", show_default="the reward's")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Look for the images or videos in this folder.", show_default="that of DATA")
    ] = None,
    human: Annotated[
        Path | None, typer.Option(help="Read TIFA160's human answers from this CSV file.", show_default="none")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Score this many judgements (pairs, for instance) at a time.")
    ] = 16,
    tie_threshold: Annotated[
        float, typer.Option(min=0.0, help="Take rewards that differ by no more than this for a tie.")
    ] = 0.0,
    temperature: Annotated[
        float,
        typer.Option(help="Divide rewards by this before they become probabilities, which are rounded to bfloat16."),
    ] = 0.1,
    label_threshold: Annotated[
        float, typer.Option(help="Take rewards of this and more for the label 1, good or safe.")
    ] = 0.0,
    device: Device = None,
) -> None:
    """Measure how well a reward agrees with human judgements.

    Run again it scores what is missing. Rewards tested in the same folder share a table.
    """
    with one_line_errors():
        start()
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

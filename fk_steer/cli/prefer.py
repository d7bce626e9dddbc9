"""`fk-steer prefer`."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..console import console, stoppable
from ..options import options_of, read_assignments
from .options import (
    DEFAULT_MODEL,
    DEFAULT_PRESET,
    DEFAULT_REWARD,
    MAKE,
    REWARD_FORMS,
    RUN,
    SAMPLE,
    STEER,
    Budget,
    Device,
    Frames,
    GuidanceScale,
    Height,
    Lmbda,
    Lora,
    MaxRows,
    NumSteps,
    Particles,
    Pipeline,
    Precision,
    Preset,
    Repair,
    RewardOption,
    Scheduler,
    Set,
    Width,
    one_line_errors,
    start,
    warn_of_lmbda,
)


DECIDE = "What decides"


class Rule(str, Enum):
    best_worst = "best-worst"
    all_pairs = "all-pairs"
    fixed_pairs = "fixed-pairs"
    unified_reward = "unified-reward"


def prefer(
    out: Annotated[Path, typer.Option(help="Write the dataset and all verdicts to this folder.")],
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FOLDER...",
            help="Take candidates from here: runs of `generate` or `bench`, other folders in GenEval's layout, folders "
            "of images with a metadata.jsonl or metadata.csv, or a list of answers to questions about images (.jsonl).",
            show_default="made for --prompts",
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="Let this reward or judge decide; `fk-steer rewards` lists them. It may be a combination, as with"
            " --reward.",
            show_default="the rewards that images got when they were made",
            rich_help_panel=DECIDE,
        ),
    ] = None,
    judge_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME:]KEY=VALUE",
            help="Set an option of the judge, for example variant=pair.",
            show_default="the judge's own",
            rich_help_panel=DECIDE,
        ),
    ] = None,
    rule: Annotated[
        Rule,
        typer.Option(
            help="Keep these pairs of each prompt: the best and the worst candidate; all pairs; the first and second "
            "candidate, third and fourth, and so on; or by UnifiedReward's recipe the best winner and the worst loser "
            "of those.",
            rich_help_panel=DECIDE,
        ),
    ] = Rule.best_worst,
    margin: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Keep pairs that differ by this much at least: in the judge's scores, or where it compares two in "
            "their probabilities to be better.",
            rich_help_panel=DECIDE,
        ),
    ] = 0.0,
    most: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Keep this many pairs of a prompt at most, those that differ most.",
            show_default="all",
            rich_help_panel=DECIDE,
        ),
    ] = None,
    judge_batch_size: Annotated[
        int,
        typer.Option(
            min=1,
            help="Judge this many candidates or pairs at a time; what only compares gets all of a prompt.",
            rich_help_panel=RUN,
        ),
    ] = 16,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Take this many prompts: of --prompts spread evenly over the tasks or categories, of folders the "
            "first.",
            show_default="all",
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="Make candidates for this list: shapes, geneval, drawbench, or a file with one prompt a line, or JSON "
            "lines (.jsonl) or a table (.csv, .tsv) with a 'prompt' each.",
            show_default="the file of --prompts-file",
            rich_help_panel=MAKE,
        ),
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            help="Make candidates for the prompts in this file: a list of your own, or beside --prompts geneval or "
            "drawbench a copy of that list.",
            show_default="the published lists are fetched once",
            rich_help_panel=MAKE,
        ),
    ] = None,
    model: Pipeline = DEFAULT_MODEL,
    lora: Lora = None,
    seeds: Annotated[
        int,
        typer.Option(min=1, help="Make the candidates of a prompt this often, with other noise.", rich_help_panel=MAKE),
    ] = 1,
    seed: Annotated[
        int, typer.Option(help="Draw noise from this seed first, then from the following ones.", rich_help_panel=SAMPLE)
    ] = 0,
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
    reward: Annotated[
        str,
        typer.Option(help=f"Steer candidates by this reward. {REWARD_FORMS}", rich_help_panel=STEER),
    ] = DEFAULT_REWARD,
    reward_option: RewardOption = None,
    preset: Preset = DEFAULT_PRESET,
    particles: Particles = None,
    budget: Budget = None,
    lmbda: Lmbda = None,
    changes: Set = None,
    scheduler: Scheduler = None,
    steps: NumSteps = None,
    guidance: GuidanceScale = None,
    dtype: Precision = "auto",
    batch_size: MaxRows = None,
    device: Device = None,
    repair: Repair = False,
) -> None:
    """Make preference data: pairs of candidates of a prompt of which one is better, as a dataset to train on.

    The candidates are those of folders, or made first: steered for --prompts, or with --preset best-of-n left as they
    come. Any reward or judge decides; one that compares two is asked in both orders, and must say the same.

    Run again it does what is missing. `datasets.load_dataset(OUT)` opens what it makes.
    """
    with stoppable(), one_line_errors():
        judged_by = options_of(judge_option or [], judge) if judge is not None else {}
        if judge is None and judge_option:
            raise ValueError("--judge-option needs a --judge.")
        guide_options = options_of(reward_option or [], reward)
        start()
        from ..evaluation.prompts import evenly, prompt_list
        from ..generate import Generation
        from ..prefer.run import Fresh, Preference, told
        from ..prefer.run import prefer as run

        fresh = None
        if prompts is not None or prompts_file is not None:
            name, copy = (str(prompts_file), None) if prompts is None else (prompts, prompts_file)
            entries = prompt_list(name, copy)
            # A prompt that comes twice would get the same images again.
            texts = list(dict.fromkeys(entries[index]["prompt"] for index in evenly(entries, limit)))
            warn_of_lmbda(preset, lmbda)
            runs = {
                f"seed-{number}": Generation.of(
                    texts,
                    model,
                    reward=reward,
                    reward_options=guide_options,
                    preset=preset,
                    particles=particles,
                    budget=budget,
                    lmbda=lmbda,
                    changes=read_assignments(changes or []),
                    scheduler=scheduler,
                    steps=steps,
                    guidance=guidance,
                    height=height,
                    width=width,
                    frames=frames,
                    seed=number,
                    dtype=dtype,
                    lora=lora,
                )
                for number in range(seed, seed + seeds)
            }
            fresh = Fresh(runs, batch_size)
        elif not folders:
            raise ValueError("Expected folders of candidates, or prompts to make them for by --prompts.")
        preference = Preference(judge, judged_by, rule.value, margin, most, limit)
        summary = run(
            folders or [],
            out,
            preference,
            fresh=fresh,
            batch_size=judge_batch_size,
            device=device,
            repair=repair,
        )
        settings = json.loads((out / "settings.json").read_text())
        for line in (*told(summary, settings), f"Dataset in {out}: datasets.load_dataset({str(out)!r})"):
            console.print(line, markup=False, highlight=False, soft_wrap=True)

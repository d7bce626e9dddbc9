"""`fk-steer compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..combinations import combination
from ..console import console, stoppable
from ..options import options_of, read_assignments, reward_options
from .options import (
    DEFAULT_PRESET,
    MAKE,
    REWARD_FORMS,
    RUN,
    STEER,
    Device,
    GuidanceScale,
    MaxRows,
    NumSteps,
    Repair,
    Set,
    one_line_errors,
    start,
)


def compare(
    study: Annotated[
        Path | None,
        typer.Argument(
            metavar="STUDY",
            help="Read the study from this YAML file; options go before what it says.",
            show_default="the options say all",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write images, scores, tables and report to this folder.",
            show_default="STUDY without .yaml",
            rich_help_panel=MAKE,
        ),
    ] = None,
    rewards: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME,...",
            help=f"Compare these rewards as guides; none is the stock pipeline. {REWARD_FORMS}",
            show_default="those of STUDY",
            rich_help_panel=MAKE,
        ),
    ] = None,
    reward_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME:]KEY=VALUE",
            help="Set an option of a guide, or its own preset, particles, budget or lmbda; without NAME of all guides.",
            show_default="the rewards' own",
            rich_help_panel=MAKE,
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME,...",
            help="Draw with these pipelines: sd21, sdxl, shapes, shapes-xl, hub ids or folders.",
            show_default="those of STUDY",
            rich_help_panel=MAKE,
        ),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME,...",
            help="Take these lists of prompts: geneval, drawbench, shapes, or files.",
            show_default="those of STUDY",
            rich_help_panel=MAKE,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Take this many prompts of each list, spread evenly over its tasks.",
            show_default="all",
            rich_help_panel=MAKE,
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Make this many images of each prompt.", show_default="4", rich_help_panel=MAKE),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:VARIANT][=PATH]",
            help="Score all images by these rewards, as `fk-steer eval panel` does.",
            show_default="its panel and the guides",
            rich_help_panel=MAKE,
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="Show how much every guide gains over this one, prompt by prompt.",
            show_default="none, the stock pipeline",
            rich_help_panel=MAKE,
        ),
    ] = None,
    report_prompts: Annotated[
        int,
        typer.Option(min=0, help="Show the images of this many prompts of each list.", rich_help_panel=MAKE),
    ] = 24,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Let all guides steer by these settings; `fk-steer presets` lists them.",
            show_default=DEFAULT_PRESET,
            rich_help_panel=STEER,
        ),
    ] = None,
    particles: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Let all guides choose among this many candidates of each image (particles).",
            show_default="4",
            rich_help_panel=STEER,
        ),
    ] = None,
    changes: Set = None,
    steps: NumSteps = None,
    guidance: GuidanceScale = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Put this many images into one steered call of the pipeline.",
            show_default="4",
            rich_help_panel=RUN,
        ),
    ] = None,
    max_rows: MaxRows = None,
    metric_batch_size: Annotated[
        int, typer.Option(min=1, help="Let a metric score this many images at a time.", rich_help_panel=RUN)
    ] = 8,
    processes: Annotated[
        int,
        typer.Option(
            min=1, help="Generate with this many workers, on one thread or one GPU each.", rich_help_panel=RUN
        ),
    ] = 1,
    repair: Repair = False,
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Generate nothing: list where the results differ from those in FOLDER, of the same study, in what "
            "is reproducible.",
            show_default="none",
            rich_help_panel=RUN,
        ),
    ] = None,
    device: Device = None,
) -> None:
    """Compare rewards as guides: how right and how liked are the images that each of them makes of the same prompts?

    Writes a report (report.html), tables (LaTeX, CSV) and results.json: GenEval's accuracy by task, and means of
    metrics. Stopped at any point and run again it does what is missing; a finished study is only printed. What fails is
    reported and the rest goes on; the exit status is then 1. With --check it is 1 if the two folders differ.
    """
    with stoppable(), one_line_errors():
        start()
        config = _config(study)
        named = config.pop("out", None)
        if named is not None and not isinstance(named, str):
            raise ValueError(f"Expected 'out' of a study to be a folder, but got {named!r}.")
        folder = out or (Path(named) if named else None) or (study and study.with_suffix(""))
        if folder is None:
            raise ValueError("Expected a folder for the results by --out.")
        if check is not None:
            from ..evaluation.comparison.check import differences

            found = differences(folder, check)
            for line in found or [f"{folder} and {check} agree in all that is reproducible."]:
                console.print(line, markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(1 if found else 0)
        overrides: dict[str, Any] = {"models": _names(model), "prompts": _names(prompts), "baseline": baseline}
        names = _names(rewards)
        if reward_option and not names:
            raise ValueError("Expected --reward-option with --rewards; a study's file holds the options of its own.")
        overrides["rewards"] = {name: guide_options(reward_option or [], name, names) for name in names}
        if metric:
            overrides["metrics"] = metric
        config |= {name: value for name, value in overrides.items() if value}

        generation = {
            "preset": preset,
            "particles": particles,
            "changes": read_assignments(changes) if changes else None,
            "samples_per_prompt": samples,
            "limit": limit,
            "steps": steps,
            "guidance": guidance,
            "batch_size": batch_size,
            "max_rows": max_rows,
        }
        given = {name: value for name, value in generation.items() if value is not None}
        from ..evaluation.comparison.run import run
        from ..evaluation.comparison.study import mapping_in

        config["generation"] = {**mapping_in(config, "generation"), **given}

        failures = run(
            config,
            folder,
            device=device,
            processes=processes,
            metric_batch_size=metric_batch_size,
            report_prompts=report_prompts,
            repair=repair,
        )
        if failures:
            raise typer.Exit(1)


def _config(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    if not file.is_file():
        raise FileNotFoundError(f"Expected a study at {file}, a YAML file, but there is none.")
    from llava_reward_guide.texts import read_yaml

    config = read_yaml(file)
    if not isinstance(config, dict):
        raise ValueError(f"Expected {file} to hold a mapping with models, rewards and prompts, but it does not.")
    return config


OWN = ("preset", "particles", "budget", "lmbda")
"""Settings of a guide among the options."""


def guide_options(pairs: list[str], name: str, names: list[str]) -> dict[str, Any]:
    """Options of a guide, and its settings, as a study has them."""
    if name == "none" or combination(name).single:
        everyone = [*names, *(part for one in names if one != "none" for part in combination(one).names)]
        return reward_options(pairs, name, everyone)
    # Those of a combination are by reward, its settings its own.
    settings = [pair for pair in pairs if pair.partition("=")[0].rpartition(":")[2] in OWN]
    own = [pair for pair in pairs if pair not in settings]
    among = [one for one in names if one != "none"]
    return {**reward_options(settings, name, names), **options_of(own, name, among)}


def _names(texts: list[str] | None) -> list[str]:
    return [name.strip() for text in texts or [] for name in text.split(",") if name.strip()]

"""`fk-steer compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..console import console, stoppable
from ..options import reward_options
from .options import Device, Repair, one_line_errors


def compare(
    study: Annotated[
        Path | None, typer.Argument(help="YAML file that describes the study; options go before it.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for everything. [default: that of STUDY, without .yaml]")
    ] = None,
    rewards: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME,...", help="Guides; 'none' is no steering. See `fk-steer rewards`."),
    ] = None,
    reward_option: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME:]KEY=VALUE", help="Option of a guide, or its preset, particles or lmbda."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME,...", help="'sd21', 'sdxl', 'shapes', 'shapes-xl', hub ids or folders."),
    ] = None,
    prompts: Annotated[
        list[str] | None, typer.Option(metavar="NAME,...", help="'geneval', 'drawbench', 'shapes', or files.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:VARIANT][=PATH],...", help="As for `fk-steer eval panel`. [default: its and the guides]"
        ),
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="Guide that differences are to. [default: none]")] = None,
    preset: Annotated[str | None, typer.Option(help="Of all guides. [default: adaptive]")] = None,
    particles: Annotated[int | None, typer.Option(min=1, help="Of all guides. [default: 4]")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Images per prompt. [default: 4]")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Prompts of each list. [default: all]")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps. [default: 50; bundled models 25]")] = None,
    guidance: Annotated[float | None, typer.Option(help="[default: 7.5; bundled models 3]")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per steered call. [default: 4]")] = None,
    max_rows: Annotated[
        int | None,
        typer.Option(min=1, help="Denoiser rows, latents and images scored at a time. [default: all]"),
    ] = None,
    metric_batch_size: Annotated[int, typer.Option(min=1, help="Images scored at a time by a metric.")] = 8,
    report_prompts: Annotated[
        int, typer.Option(min=0, help="Prompts of each list shown with images in the report.")
    ] = 24,
    processes: Annotated[int, typer.Option(min=1, help="Workers that generate, one thread or GPU each.")] = 1,
    repair: Repair = False,
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Generate nothing: compare the results with those in FOLDER, of the same study, in all that is "
            "reproducible.",
        ),
    ] = None,
    device: Device = None,
) -> None:
    """Compare rewards as guides: GenEval accuracy by task and metric means for each guide, model and list of prompts.

    Writes a report (report.html), tables (LaTeX, CSV) and results.json. Stopped at any point and run again it does
    what is missing; a finished study is only printed. What fails is reported and the rest goes on; the exit status is
    then 1. With --check it is 1 if the two folders differ, and the differences are listed.
    """
    with stoppable(), one_line_errors():
        from ..loading import quiet_libraries

        quiet_libraries()
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
        overrides["rewards"] = {name: reward_options(reward_option or [], name, names) for name in names}
        if metric:
            overrides["metrics"] = metric
        config |= {name: value for name, value in overrides.items() if value}
        generation = {
            "preset": preset,
            "particles": particles,
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
    from llava_reward_guide.texts import read_yaml

    config = read_yaml(file)
    if not isinstance(config, dict):
        raise ValueError(f"Expected {file} to hold a mapping with models, rewards and prompts, but it does not.")
    return config


def _names(texts: list[str] | None) -> list[str]:
    return [name.strip() for text in texts or [] for name in text.split(",") if name.strip()]

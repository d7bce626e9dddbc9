"""A LoRA of the bundled model from preferences between its own images, and what of steering's gain it keeps.

`make` is the one command from nothing to a LoRA: candidate images of training prompts, preferences by a judge,
Diffusion-DPO. `tune` looks at weights on tuning prompts, `held-out` makes the tables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image

from benchmarks.compute.run import strategy_of
from benchmarks.dpo.candidates import MODEL, REWARDS, make_candidates, read_candidates
from benchmarks.dpo.pairs import JUDGES, write_pairs
from fk_steer.bundled import bundled_options
from fk_steer.cli.options import BatchSize, Half, PerTask, Processes, ResultsFolder, Seeds, one_line_errors
from fk_steer.evaluation.statistics import mean_by
from fk_steer.evaluation.world import Record, Row, differences, folder_of, measure_all, setup_of, summarize, write_table
from fk_steer.files import write_json
from fk_steer.loading import load_guide, quiet_libraries
from fk_steer.shapes.captions import evaluation_prompts
from fk_steer.training import load_config, train_dpo


SETTINGS = Path(__file__).with_name("settings.yaml")
SINGLE = "best-of-n@50/25/ddim"
"""One image in 25 steps, as unsteered."""
BEST_OF_4 = "best-of-n@200/25/ddim"
DEFAULT = "finish@200"
"""The default preset at the cost of four images in 25 steps."""

app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)

PromptCount = Annotated[int, typer.Option(min=1, help="Make candidates of this many training prompts.")]
Judge = Annotated[str, typer.Option(help=f"Let this decide which image is better: {', '.join(JUDGES)}.")]
PairsEach = Annotated[int, typer.Option(min=1, help="Take at most this many pairs of a prompt.")]
Margin = Annotated[float, typer.Option(min=0.0, help="Leave out pairs whose scores differ by less.")]
TrainingSeed = Annotated[int, typer.Option(help="Train from this seed.")]


@app.command()
def make(
    out: ResultsFolder,
    prompts: PromptCount = 944,
    each: Annotated[int, typer.Option(min=2, help="Make this many images of each.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Take this many steps of DPM-Solver++.")] = 10,
    judge: Judge = "ensemble",
    pairs: PairsEach = 1,
    margin: Margin = 0.0,
    seed: TrainingSeed = 0,
    settings: Annotated[Path, typer.Option(help="Train with the settings of this YAML file.")] = SETTINGS,
    lora: Annotated[
        str | None, typer.Option(help="Let the model with this LoRA draw, and go on from it.", show_default="none")
    ] = None,
) -> None:
    """Make candidates, preferences and a LoRA, OUT/lora-SEED/final; what is there is not made again."""
    quiet_libraries()
    with one_line_errors():
        make_candidates(out / "candidates", prompts, each, steps, lora)
        folder = out / "preferences" / f"{judge}-{prompts}-{pairs}-{margin:g}"
        if not (folder / "statistics.json").exists():
            lines, stored = read_candidates(out / "candidates", prompts)
            write_json(folder / "statistics.json", write_pairs(folder, lines, stored, judge, pairs, margin))
        typer.echo(json.dumps(json.loads((folder / "statistics.json").read_text())))
        place = out / f"lora-{seed}"
        overrides = {"data": str(folder), "model": MODEL, "output": str(place), "seed": seed, "lora": lora}
        typer.echo(train_dpo(load_config(settings, overrides)).weights)


@app.command()
def tune(
    out: ResultsFolder,
    lora: Annotated[list[str], typer.Option(help="Look at these folders of LoRA; may be repeated.")],
    per_task: PerTask = 20,
    seeds: Seeds = 2,
    batch_size: BatchSize = 24,
    processes: Processes = 1,
    half: Half = False,
) -> None:
    """Draw single images of tuning prompts, with each LoRA and without."""
    quiet_libraries()
    with one_line_errors():
        found = {
            "base": measured(out / "tuning", None, [SINGLE], "tuning", per_task, seeds, batch_size, processes, half)
        }
        for folder in lora:
            place = out / "tuning" / folder.strip("/").replace("/", "-")
            found[folder] = measured(place, folder, [SINGLE], "tuning", per_task, seeds, batch_size, processes, half)
        base = found["base"][SINGLE]
        write_table(out / "tuning-table", {name: summarize(some[SINGLE], base) for name, some in found.items()})


@app.command("held-out")
def held_out(
    out: ResultsFolder,
    training_seed: Annotated[
        list[int] | None, typer.Option(help="Take the LoRA of these seeds.", show_default="0, 1 and 2")
    ] = None,
    steered_seed: Annotated[
        list[int] | None, typer.Option(help="Steer the model with the LoRA of these seeds too.", show_default="none")
    ] = None,
    steered_repeats: Annotated[
        int, typer.Option(min=1, help="Steer the model with a LoRA on this many of the noises.")
    ] = 1,
    per_task: PerTask = 40,
    seeds: Seeds = 3,
    batch_size: BatchSize = 24,
    processes: Processes = 1,
    half: Half = False,
) -> None:
    """Measure base model and tuned ones on held-out prompts, from the same noise: one image, best of 4, the default."""
    quiet_libraries()
    with one_line_errors():
        split = "held-out"
        runs = [SINGLE, BEST_OF_4, DEFAULT]
        base = measured(out / split, None, runs, split, per_task, seeds, batch_size, processes, half)
        records = {f"base, {run}": some for run, some in base.items()}
        judged = {"base": other_rewards(out / split, SINGLE, per_task, seeds)}
        tuned: list[Record] = []
        for seed in training_seed or [0, 1, 2]:
            lora = str(out / f"lora-{seed}" / "final")
            place = out / f"{split}-lora-{seed}"
            found = measured(place, lora, [SINGLE], split, per_task, seeds, batch_size, processes, half)
            if seed in (steered_seed or []):
                found |= measured(place, lora, runs[1:], split, per_task, steered_repeats, batch_size, processes, half)
            records |= {f"tuned {seed}, {run}": some for run, some in found.items()}
            judged[f"tuned {seed}"] = other_rewards(place, SINGLE, per_task, seeds)
            tuned += found[SINGLE]
        records[f"tuned, mean, {SINGLE}"] = tuned
        write_table(out / "held-out-table", {name: summarize(some) for name, some in records.items()})
        single = base[SINGLE]
        rows = {
            f"{name} less {other}": differences(some, records[other])
            for name, some in records.items()
            if name.startswith("tuned")
            for other in (f"base, {run}" for run in runs)
        }
        rows |= {f"base, {run} less base, {SINGLE}": differences(base[run], single) for run in runs[1:]}
        write_table(out / "differences", rows)
        write_table(out / "rewards", judged, scores=list(REWARDS))
        write_json(out / "kept.json", kept(tuned, base))


def measured(
    out: Path,
    lora: str | None,
    runs: Sequence[str],
    split: str,
    per_task: int,
    seeds: int,
    batch_size: int,
    processes: int,
    half: bool,
) -> dict[str, list[Record]]:
    """Records of some runs of the model, with a LoRA or without."""
    setup = {**setup_of(MODEL, "clip-score", per_task, None, None, split, half), "steps": None}
    if lora is not None:
        setup["lora"] = lora
    return measure_all({run: strategy_of(run) for run in runs}, setup, out, seeds, batch_size, processes)


def kept(tuned: Sequence[Record], base: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, float]]:
    """Run of the base model -> measure -> share of its gain over one image that one image of a tuned model has."""
    gain = differences(tuned, base[SINGLE])
    return {
        run: {name: value[0] / differences(some, base[SINGLE])[name][0] for name, value in gain.items()}
        for run, some in base.items()
        if run != SINGLE
    }


@torch.no_grad()
def other_rewards(out: Path, run: str, per_task: int, seeds: int) -> Row:
    """What the rewards that may decide on pairs say of a run's images."""
    folder = folder_of(out, run, strategy_of(run))
    lines = evaluation_prompts(per_task)
    row: Row = {}
    for name, options in REWARDS.items():
        reward = load_guide(name, "cpu", **bundled_options(MODEL, name), **options)
        values = []
        for seed in range(seeds):
            paths = [folder / "images" / f"{seed:03d}" / f"{index:05d}.png" for index in range(len(lines))]
            for start in range(0, len(paths), 48):
                some = slice(start, start + 48)
                images = [Image.open(path).convert("RGB") for path in paths[some]]
                scores = torch.as_tensor(reward(images, [line["prompt"] for line in lines[some]])).tolist()
                values += list(zip(range(start, start + len(images)), scores))
        row[name] = mean_by(values)
    return row


if __name__ == "__main__":
    app()

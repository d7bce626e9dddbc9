"""Steps against particles on real checkpoints: the same denoiser rows, spent on 10 to 100 steps."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from torch import Tensor

from fk_steer.bundled import bundled_options
from fk_steer.cli.options import AnyModel, BatchSize, Device, Guidance, Guide, Seeds, one_line_errors
from fk_steer.console import console, progress_bar
from fk_steer.diffusion import steer
from fk_steer.evaluation.prompts import evenly, prompt_list
from fk_steer.evaluation.statistics import Estimate, mean_by
from fk_steer.evaluation.world import write_table
from fk_steer.files import check_settings, png, record_settings, write_atomically, write_json
from fk_steer.loading import load_guide, load_pipeline, quiet_libraries
from fk_steer.records import read_record
from fk_steer.rewards.base import RewardFunction
from fk_steer.rewards.images import to_uint8
from fk_steer.rewards.loading import default_device
from fk_steer.search import Strategy, preset


Records = list[dict[str, Any]]
"""Of images: 'index' of the prompt, 'seed', 'guide', a score for each judge, 'nfe', 'reward calls', 'seconds'."""

COSTS = ("nfe", "reward calls", "seconds")


def settings_of(name: str, rows: int, steps: int, sampler: str | None, guided: bool) -> Strategy | None:
    """A preset within a budget; None if that is too small for one particle."""
    settings = preset(name, steps=steps, sampler=sampler).within(calls=rows // (2 if guided else 1))
    try:
        settings.resolved(steps)
    except ValueError:
        return None
    return settings


def measure(
    pipe: Any,
    guide: RewardFunction,
    judges: Mapping[str, RewardFunction],
    settings: Strategy,
    prompts: Sequence[tuple[int, str]],
    seed: int,
    folder: Path,
    **call: Any,
) -> Records:
    """Images of some prompts, from noise that depends on prompt and seed alone, and what guide and judges say of them.

    Args:
        prompts: (index, text).
        folder: the images go here.
    """
    texts = [text for _, text in prompts]
    generators = [torch.Generator().manual_seed(1_000_003 * seed + index) for index, _ in prompts]
    output = steer(pipe, guide, settings)(texts, generator=generators, output_type="pt", **call)
    assert isinstance(output.rewards, Tensor)
    opinions = {name: torch.as_tensor(judge(output.images, texts)).tolist() for name, judge in judges.items()}
    records = []
    for number, ((index, _), pixels) in enumerate(zip(prompts, to_uint8(output.images, "cpu"))):
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        write_atomically(folder / f"{index:05d}-{seed}.png", png(image))
        records.append(
            {
                "index": index,
                "seed": seed,
                "guide": float(output.rewards[number, 0]),
                **{name: values[number] for name, values in opinions.items()},
                "nfe": output.trace.nfe / len(prompts),
                "reward calls": output.trace.reward_calls / len(prompts),
                "seconds": output.trace.seconds["total"] / len(prompts),
            }
        )
    return records


def summary(records: Records, first: Records) -> dict[str, Estimate]:
    """Column -> mean and standard error over prompts; differences to the first run are paired by prompt and seed."""
    before = {(r["index"], r["seed"]): r for r in first}
    scores = [name for name in records[0] if name not in ("index", "seed", *COSTS)]
    row: dict[str, Estimate] = {name: mean_by((r["index"], r[name]) for r in records) for name in scores}
    row |= {
        f"{name} - first": mean_by((r["index"], r[name] - before[r["index"], r["seed"]][name]) for r in records)
        for name in scores
    }
    return row | {name: (mean_by((r["index"], r[name]) for r in records)[0], None) for name in COSTS}


app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)


@app.command()
def main(
    out: Annotated[
        Path,
        typer.Option(help="Write images, records and the table to this folder. Run again it makes what is missing."),
    ],
    model: AnyModel,
    reward: Guide = "image-reward",
    judge: Annotated[
        list[str] | None,
        typer.Option(help="Score the images by these rewards, which do not guide.", show_default="hps, clip-score"),
    ] = None,
    preset: Annotated[
        list[str] | None,
        typer.Option(
            help="Steer by these settings; `fk-steer presets` lists them.",
            show_default="best-of-n, fk-paper, adaptive, finish, refine",
        ),
    ] = None,
    steps: Annotated[
        list[int] | None,
        typer.Option(help="Spend the rows on loops of so many steps each.", show_default="10, 15, 25, 50, 100"),
    ] = None,
    sampler: Annotated[
        list[str] | None, typer.Option(help="Sample with these schedulers.", show_default="dpmsolver++ and ddim")
    ] = None,
    rows: Annotated[
        int, typer.Option(min=1, help="Spend this many denoiser rows on an image, guidance's counted.")
    ] = 400,
    prompts: Annotated[
        str, typer.Option(help="Take this list of prompts: geneval, drawbench, shapes or a file.")
    ] = "geneval",
    limit: Annotated[int, typer.Option(min=1, help="Take this many prompts, spread evenly over the tasks.")] = 120,
    seeds: Seeds = 1,
    guidance: Guidance = None,
    batch_size: BatchSize = 4,
    dtype: Annotated[
        str, typer.Option(help="Compute the pipeline in float32, float16, bfloat16, or auto: float16 on CUDA devices.")
    ] = "auto",
    device: Device = None,
) -> None:
    """Spend the same denoiser rows on few steps or many, by several presets, and let held-out rewards judge."""
    quiet_libraries()
    with one_line_errors():
        place = default_device(device)
        entries = prompt_list(prompts)
        chosen = [(index, str(entries[index]["prompt"])) for index in evenly(entries, limit)]
        pipe = load_pipeline(model, dtype=dtype, device=place)
        pipe.set_progress_bar_config(disable=True)
        guide = load_guide(reward, place, **bundled_options(model, reward))
        judges = {
            name: load_guide(name, place, **bundled_options(model, name)) for name in judge or ("hps", "clip-score")
        }
        call = {} if guidance is None else {"guidance_scale": guidance}
        setup = {"model": model, "reward": reward, "judges": [*judges], "prompts": prompts, "guidance": guidance}
        check_settings(out, setup)
        record_settings(out, setup)
        grid = itertools.product(
            preset or ("best-of-n", "fk-paper", "adaptive", "finish", "refine"),
            steps or (10, 15, 25, 50, 100),
            sampler or ("dpmsolver++", "ddim"),
        )
        results: dict[str, Records] = {}
        with progress_bar() as bar:
            for name, count, kind in grid:
                settings = settings_of(name, rows, count, kind, guided=guidance is None or guidance > 1)
                if settings is None:
                    console.print(f"{name}: {rows} rows are too few for {count} steps", markup=False)
                    continue
                run = f"{name}@{rows}/{count}/{kind}"
                folder = out / run.replace("/", "-")
                task = bar.add_task(run, total=seeds * len(chosen))
                results[run] = []
                for seed, start in itertools.product(range(seeds), range(0, len(chosen), batch_size)):
                    some = chosen[start : start + batch_size]
                    path = folder / "records" / f"{seed}-{'-'.join(str(index) for index, _ in some)}.json"
                    if not path.exists():
                        done = measure(pipe, guide, judges, settings, some, seed, folder / "images", **call)
                        write_json(path, {"records": done})
                    results[run] += read_record(path, lambda record: record["records"])
                    bar.advance(task, len(some))
        first = next(iter(results.values()))
        rows_of = {run: summary(records, first) for run, records in results.items()}
        write_table(out / "table", rows_of, scores={name.replace("-", "_") for name in ("guide", *judges)})


if __name__ == "__main__":
    app()

"""`fk-steer bench ...`."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fk_steer.console import console, one_line_errors

from .generation_cli import drawbench, geneval, run, scaling


if TYPE_CHECKING:
    from fk_steer.config import FKSteering

    from .shapes import Record


app = typer.Typer(help="Benchmarks.", no_args_is_help=True)
for command in (run, geneval, drawbench, scaling):
    app.command()(command)

# Options that several benchmarks share.
Model = Annotated[str, typer.Option(help="'shapes' or 'shapes-xl'.")]
Guide = Annotated[str, typer.Option(help="Guide.")]
Seeds = Annotated[int, typer.Option(min=1, help="Repeats with other noise.")]
PerTask = Annotated[int, typer.Option(min=1, help="Held-out prompts per task.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Denoising steps. [default: the model's]")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale. [default: the model's]")]
BatchSize = Annotated[int, typer.Option(min=1, help="Prompts per call.")]
Processes = Annotated[int, typer.Option(min=1, help="Repeats at a time, one thread each.")]
FullSize = Annotated[
    str | None, typer.Option(help="'sd21' or 'sdxl': an architecture of published size instead of a bundled model.")
]
RandomWeights = Annotated[
    bool, typer.Option("--random-weights", help="What --full-size runs on; costs do not depend on the weights.")
]


@app.command()
def shapes(
    out: Annotated[Path, typer.Option(help="Folder for images, records and tables.")],
    preset: Annotated[
        list[str],
        typer.Option(
            help="PRESET, PRESET:PARTICLES, or PRESET@BUDGET for as many particles as cost that many trajectories. "
            "Several make a row each, compared with the first."
        ),
    ],
    model: Model = "shapes",
    reward: Guide = "clip-score",
    particles: Annotated[int | None, typer.Option(help="Particles, where not given with the preset.")] = None,
    lmbda: Annotated[float | None, typer.Option(help="Strength of the tilt. [default: the reward's]")] = None,
    seeds: Seeds = 3,
    per_task: PerTask = 40,
    steps: Steps = None,
    guidance: Guidance = None,
    batch_size: BatchSize = 8,
    processes: Processes = 1,
    against: Annotated[
        Path | None, typer.Option(help="Folder of the same presets with another guide, to compare with.")
    ] = None,
) -> None:
    """GenEval's six tasks on the bundled world's held-out prompts, judged by exact detection."""
    from .shapes import differences, read_records, summarize

    with one_line_errors():
        setup = _setup(model, reward, per_task, steps, guidance)
        steerings = [_sized(name, setup["steps"], num_particles=particles, lmbda=lmbda) for name in preset]
        named = {
            f"{_preset(name)}, k = {settings.num_particles}": settings for name, settings in zip(preset, steerings)
        }
        records = _measure(named, setup, out, seeds, batch_size, processes)
        first = next(iter(records.values()))
        rows = {name: summarize(some, None if some is first else first) for name, some in records.items()}
        if against is not None:
            for name, settings in named.items():
                others = read_records(_folder(against, name, settings))
                found = differences(records[name], others)
                # Rewards of different guides have different scales.
                rows[name] |= {
                    f"{measure} - {against.name}": found[measure] for measure in found if measure != "reward"
                }
        _write_table(out / "table", rows)


@app.command()
def compute(
    out: Annotated[Path, typer.Option(help="Folder for images, records, tables and plots.")],
    preset: Annotated[
        list[str] | None, typer.Option(help="PRESET, at every budget, or PRESET@BUDGET. [default: all presets]")
    ] = None,
    budget: Annotated[list[float] | None, typer.Option(help="In trajectories. [default: 1, 2, 4, 8, 16]")] = None,
    model: Model = "shapes",
    reward: Guide = "clip-score",
    seeds: Seeds = 3,
    per_task: PerTask = 40,
    steps: Steps = None,
    guidance: Guidance = None,
    batch_size: BatchSize = 8,
    processes: Processes = 1,
    timing: Annotated[
        Path | None,
        typer.Option(help="table.json of a run on an idle machine, whose seconds are taken in place of these."),
    ] = None,
) -> None:
    """Presets side by side at equal denoiser compute, from the same initial noise. Runs are shared with `bench shapes`
    in the same folder."""
    from fk_steer.config import PRESETS
    from fk_steer.files import write_atomically
    from fk_steer.report import figure_png

    from .compute import difference_columns, plot, with_seconds_of
    from .shapes import summarize

    with one_line_errors():
        setup = _setup(model, reward, per_task, steps, guidance)
        budgets = sorted(budget or (1.0, 2.0, 4.0, 8.0, 16.0))
        presets = preset or list(PRESETS)
        names = [f"{name}@{size:g}" for size in budgets for name in presets if "@" not in name]
        names += [name for name in presets if "@" in name]
        named = {name: _sized(name, setup["steps"]) for name in names}
        records = _measure(named, setup, out, seeds, batch_size, processes)
        rows = {name: summarize(some) for name, some in records.items()}
        if timing is not None:
            rows = with_seconds_of(rows, json.loads(timing.read_text()))
        _write_table(out / "table", rows)
        _write_table(out / "differences", difference_columns(records))
        write_atomically(out / "compute.png", figure_png(plot(rows)))


@app.command()
def ablation(
    out: Annotated[Path, typer.Option(help="Folder for images, records and tables.")],
    model: Model = "shapes",
    reward: Guide = "clip-score",
    seeds: Seeds = 3,
    per_task: PerTask = 40,
    steps: Steps = None,
    guidance: Guidance = None,
    batch_size: BatchSize = 8,
    processes: Processes = 1,
) -> None:
    """From the published settings to ours, one change at a time, each compared with the settings before it."""
    from .ablation import steps as changes
    from .shapes import differences, summarize

    with one_line_errors():
        setup = _setup(model, reward, per_task, steps, guidance)
        chain = changes()
        records = _measure({step.name: step.settings for step in chain}, setup, out, seeds, batch_size, processes)
        rows = {}
        for step in chain:
            rows[step.name] = summarize(records[step.name])
            if step.before is not None:
                gains = differences(records[step.name], records[step.before])
                rows[step.name] |= {f"{measure} - before": value for measure, value in gains.items()}
        _write_table(out / "ablation", rows)


@app.command()
def llava(
    preferences: Annotated[Path, typer.Option(help="Folder made by fk_steer.shapes.preferences.")],
    out: Annotated[Path, typer.Option(help="Folder for runs and tables.")],
    backbone: Annotated[
        Path | None, typer.Option(help="Multimodal LLM to train on. [default: the bundled one]")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each variant.")] = 3,
    processes: Annotated[int, typer.Option(min=1, help="Runs at a time, one thread each.")] = 1,
) -> None:
    """LLaVA-Reward without its parts, one at a time, on the bundled world's preferences, beside the world's CLIPs."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    import torch

    with one_line_errors():
        from fk_steer.shapes import BUNDLED_LLAVA_REWARD

        from .llava_world import CLIPS, VARIANTS, judged_by_clip, over_seeds, run

        backbone = backbone or BUNDLED_LLAVA_REWARD / "backbone"
        jobs = [
            (preferences, backbone, out / f"{name.replace(',', '').replace(' ', '-')}-{seed}", seed, changes)
            for name, changes in VARIANTS.items()
            for seed in range(seeds)
        ]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            results = list(pool.map(run, *zip(*jobs)))
        rows = {
            name: over_seeds(results[first : first + seeds], results[:seeds] if first else None)
            for name, first in zip(VARIANTS, range(0, len(results), seeds))
        }
        for name, clip in CLIPS.items():
            rows[name] = over_seeds([judged_by_clip(preferences, clip)])
        _write_table(out / "llava-reward", rows)


@app.command()
def speed(
    out: Annotated[Path, typer.Option(help="JSON file for seconds, ratios and peak memory.")],
    model: Model = "shapes",
    full_size: FullSize = None,
    random_weights: RandomWeights = False,
    preset: Annotated[str, typer.Option(help="PRESET, PRESET:PARTICLES or PRESET@BUDGET.")] = "adaptive",
    prompts: Annotated[int, typer.Option(min=1, help="Prompts per steered call.")] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements, after a warm-up.")] = 5,
    steps: Steps = None,
    previews: Annotated[
        bool, typer.Option("--previews", help="Decode x0 predictions with the bundled preview decoder.")
    ] = False,
    decode_batch_size: Annotated[
        int | None, typer.Option(min=1, help="Latents per call of the decoder. [default: all]")
    ] = None,
    memory: Annotated[bool, typer.Option(help="Measure peak memory too, with up to 64 particles.")] = True,
    size: Annotated[int | None, typer.Option(min=64, help="Height and width in pixels. [default: the model's]")] = None,
    device: Annotated[str | None, typer.Option(help="[default: cuda if there is one, else cpu]")] = None,
) -> None:
    """Seconds of a steered call over those of its models' bare work, and of a plain loop over the steered call's; peak
    memory by number of particles."""
    with one_line_errors():
        from fk_steer.loading import load_preview, quiet_libraries

        quiet_libraries()
        from fk_steer.files import write_json

        from .speed import machine, measure, subject

        if (full_size is not None) != random_weights:
            raise ValueError("Expected --full-size and --random-weights together, or neither.")
        pipe, guide, call = subject(model, full_size, device, steps, size)
        if previews and full_size is not None:
            raise ValueError("There is no preview decoder of random weights: leave out --previews or --full-size.")
        decoder = load_preview(model, pipe) if previews else None
        sizes = {"decode_batch_size": decode_batch_size}
        steering = _sized(preset, call["num_inference_steps"], preview_decoder=decoder, **sizes)
        measured = measure(pipe, guide, steering, prompts=prompts, repeats=repeats, memory=memory, **call)
        setup = {
            "model": full_size or model,
            "preset": preset,
            "previews": previews,
            "prompts": prompts,
            **sizes,
            **call,
            "machine": machine(device),
        }
        write_json(out, {**setup, **measured})
        for name in ("overhead", "bookkeeping", "speed-up"):
            console.print(f"{name}: {measured[name]:.3f}", highlight=False)
        for way, value in measured["reward"].items():
            console.print(f"reward, {way}: {value:.4f}", highlight=False)
        for way, peaks in measured["peak bytes"].items():
            listed = ", ".join(f"{peak / 2**20:.1f} MiB with {number}" for number, peak in peaks.items())
            console.print(f"peak memory, {way}: {listed}", highlight=False)


@app.command()
def parallel(
    out: Annotated[Path, typer.Option(help="JSON file for seconds, the speed-up and peak memory.")],
    model: Model = "shapes",
    full_size: FullSize = None,
    random_weights: RandomWeights = False,
    preset: Annotated[str, typer.Option(help="PRESET, PRESET:PARTICLES or PRESET@BUDGET.")] = "adaptive:8",
    prompts: Annotated[int, typer.Option(min=1, help="Prompts per repeat, one call each.")] = 4,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements, after a warm-up.")] = 5,
    steps: Steps = None,
    size: Annotated[int | None, typer.Option(min=64, help="Height and width in pixels. [default: the model's]")] = None,
    device: Annotated[str | None, typer.Option(help="[default: cuda if there is one, else cpu]")] = None,
) -> None:
    """Seconds and peak memory of a particle-parallel call and of the same call by one process, in turn. Start with
    `torchrun --nproc-per-node N --no-python`."""
    with one_line_errors():
        from fk_steer.loading import join_processes, quiet_libraries

        quiet_libraries()
        from fk_steer.files import write_json

        from .parallel import measure
        from .speed import machine, subject

        if (full_size is not None) != random_weights:
            raise ValueError("Expected --full-size and --random-weights together, or neither.")
        processes = join_processes(device)
        pipe, guide, call = subject(model, full_size, processes.device, steps, size)
        steering = _sized(preset, call["num_inference_steps"])
        measured = measure(pipe, guide, steering, processes, prompts=prompts, repeats=repeats, **call)
        if measured is None:
            return
        setup = {"model": full_size or model, "preset": preset, "prompts": prompts, **call}
        write_json(out, {**setup, "machine": machine(processes.device), **measured})
        console.print(f"speed-up by {measured['processes']} processes: {measured['speed-up']:.3f}", highlight=False)
        for way, peak in measured["peak bytes"].items():
            console.print(f"peak memory, {way}: {peak / 2**20:.1f} MiB", highlight=False)


@app.command()
def preview(
    out: Annotated[Path, typer.Option(help="JSON file for the table.")],
    model: Annotated[str, typer.Option(help="Hub id or folder of a pipeline, or a bundled one.")] = "shapes",
    decoder: Annotated[
        str | None,
        typer.Option(help="Hub id or folder of an AutoencoderTiny, for example madebyollin/taesd. [default: bundled]"),
    ] = None,
    reward: Guide = "clip-score",
    prompt: Annotated[
        list[str] | None, typer.Option(help="[default: 24 of the bundled world's held-out prompts]")
    ] = None,
    images: Annotated[int, typer.Option(min=2, help="Per prompt.")] = 8,
    steps: Steps = None,
    guidance: Guidance = None,
    device: Annotated[str | None, typer.Option(help="[default: cuda if there is one, else cpu]")] = None,
) -> None:
    """Rank correlation of rewards of previews with those of the full autoencoder's images, along the loop."""
    from fk_steer.loading import load_guide, load_pipeline, quiet_libraries

    with one_line_errors():
        quiet_libraries()
        from fk_steer.files import write_json
        from fk_steer.loading import load_preview
        from fk_steer.rewards.loading import default_device
        from fk_steer.shapes import BUNDLED, BUNDLED_REWARDS, GUIDANCE_SCALE, NUM_INFERENCE_STEPS
        from fk_steer.shapes.captions import evaluation_prompts

        from .preview import agreement

        bundled, target = model in BUNDLED, default_device(device)
        pipe = load_pipeline(model, device=target)
        pipe.set_progress_bar_config(disable=True)
        options = {"path": model} if bundled and reward in BUNDLED_REWARDS else {}
        call: dict[str, Any] = {
            "num_inference_steps": steps or (NUM_INFERENCE_STEPS if bundled else 50),
            "guidance_scale": guidance if guidance is not None else (GUIDANCE_SCALE if bundled else 7.5),
        }
        rows = agreement(
            pipe,
            load_guide(reward, target, **options),
            load_preview(decoder or model, pipe),
            prompt or [line["prompt"] for line in evaluation_prompts(4)],
            images=images,
            **call,
        )
        write_json(
            out, {"model": model, "decoder": decoder or model, "reward": reward, "images": images, **call, "rows": rows}
        )
        shown = Table(*rows[0], box=None)
        for row in rows:
            shown.add_row(*(f"{value:.2f}" for value in row.values()))
        console.print(shown)


@app.command()
def rewards(
    out: Annotated[Path, typer.Option(help="Folder for the table.")],
    reward: Annotated[
        list[str] | None,
        typer.Option(help="NAME or NAME:VARIANT as in the table. [default: all; on a CPU the small ones]"),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="[default: 16; on a CPU 4]")] = None,
    size: Annotated[int, typer.Option(min=1, help="Height and width of the images.")] = 512,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements, after a warm-up.")] = 3,
    dtype: Annotated[str | None, typer.Option(help="[default: float16; on a CPU float32]")] = None,
    device: Annotated[str | None, typer.Option(help="[default: cuda if there is one, else cpu]")] = None,
) -> None:
    """Images per second of rewards at full size with random weights, a batch against one by one, and peak memory."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    from fk_steer.files import write_json
    from fk_steer.rewards.loading import default_device

    from .rewards import FULL_SIZE, SMALL, measure

    with one_line_errors():
        target = default_device(device)
        on_cpu = target.type == "cpu"
        names: list[str] = []
        for wanted in reward or (SMALL if on_cpu else FULL_SIZE):
            found = [name for name in FULL_SIZE if wanted in (name, name.split(":")[0])]
            if not found:
                raise ValueError(f"Unknown reward {wanted!r}. Known: {', '.join(FULL_SIZE)}.")
            names += found
        settings: dict[str, Any] = {
            "device": str(target),
            "dtype": dtype or ("float32" if on_cpu else "float16"),
            "batch_size": batch_size or (4 if on_cpu else 16),
            "size": size,
            "repeats": repeats,
        }
        measured = {}
        table = Table(
            "reward", "parameters", "batched /s", "one by one /s", "ratio", "peak memory", "TFLOP each", box=None
        )
        for name in names:
            # A process each, for memory to be its own.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                row = pool.submit(measure, name, **settings).result()
            measured[name] = row
            write_json(out / "rewards.json", {"settings": settings, "rewards": measured})
            table.add_row(
                name,
                f"{row['parameters'] / 1e6:.0f}M",
                f"{row['batched']:.3g}",
                f"{row['one by one']:.3g}",
                f"{row['ratio']:.2f}",
                f"{row['peak memory'] / 2**30:.2f} GiB",
                f"{row['TFLOP per image']:.1f}" if "TFLOP per image" in row else "",
            )
        console.print(table)


def _setup(model: str, reward: str, per_task: int, steps: int | None, guidance: float | None) -> dict[str, Any]:
    """What all runs of a benchmark share."""
    from fk_steer.loading import quiet_libraries

    quiet_libraries()
    from fk_steer.shapes import BUNDLED, GUIDANCE_SCALE, NUM_INFERENCE_STEPS

    if model not in BUNDLED:
        raise ValueError(f"Unknown bundled model {model!r}. Known: {', '.join(BUNDLED)}.")
    return {
        "model": model,
        "reward": reward,
        "per_task": per_task,
        "steps": steps or NUM_INFERENCE_STEPS,
        "guidance": GUIDANCE_SCALE if guidance is None else guidance,
    }


def _measure(
    steerings: dict[str, FKSteering], setup: dict[str, Any], out: Path, seeds: int, batch_size: int, processes: int
) -> dict[str, list[Record]]:
    """Records of each run, over all seeds; a folder named by preset and number of particles in `out` keeps them."""
    from fk_steer.files import check_settings, record_settings

    from .shapes import Job, run_all

    folders = {name: _folder(out, name, steering) for name, steering in steerings.items()}
    # Names may share a folder.
    jobs: dict[tuple[Path, int], Job] = {}
    for name, folder in folders.items():
        settings = {**setup, "steering": steerings[name].to_dict()}
        check_settings(folder, settings)
        record_settings(folder, settings)
        for seed in range(seeds):
            jobs[folder, seed] = Job(steering=steerings[name], seed=seed, out=folder, batch_size=batch_size, **setup)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("prompts", total=len(jobs) * 6 * setup["per_task"])
        results = dict(zip(jobs, run_all(list(jobs.values()), processes, lambda done: bar.advance(task, done))))
    return {
        name: [record for seed in range(seeds) for record in results[folder, seed]] for name, folder in folders.items()
    }


def _folder(out: Path, name: str, steering: FKSteering) -> Path:
    return out / f"{_preset(name)}-{steering.num_particles}"


def _preset(name: str) -> str:
    return re.split("[:@,]", name)[0]


def _sized(name: str, num_steps: int, **overrides: Any) -> FKSteering:
    """A preset by name, with its particles or its budget: 'fk', 'fk:8', 'psp@4'."""
    from fk_steer.config import FKSteering

    count, budget = (re.search(f"{mark}([^:@]+)", name) for mark in ":@")
    if count:
        overrides["num_particles"] = int(count[1])
    overrides = {field: value for field, value in overrides.items() if value is not None}
    steering = FKSteering.preset(_preset(name), **overrides)
    return steering.within(float(budget[1]), num_steps) if budget else steering


def _write_table(path: Path, rows: dict[str, dict[str, tuple[float, float | None]]]) -> None:
    """Write the rows as PATH.json, PATH.md and PATH.csv, and show them."""
    from fk_steer.files import write_atomically, write_json

    from .shapes import markdown, table

    lines = table(rows)
    write_json(path.with_suffix(".json"), rows)
    write_atomically(path.with_suffix(".md"), markdown(lines).encode())
    buffer = io.StringIO()
    csv.writer(buffer).writerows(lines)
    write_atomically(path.with_suffix(".csv"), buffer.getvalue().encode())
    # On its side: there are more columns than fit a terminal.
    header, *body = zip(*lines)
    shown = Table(*header, box=None)
    for line in body:
        shown.add_row(*line)
    console.print(shown)

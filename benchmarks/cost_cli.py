"""`fk-steer bench ...`: seconds, memory and what previews are worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from fk_steer.console import Device, console, one_line_errors

from .options import FullSize, Guidance, Guide, Model, RandomWeights, Repeats, Size, Steps, sized


def speed(
    out: Annotated[Path, typer.Option(help="JSON file for seconds, ratios and peak memory.")],
    model: Model = "shapes",
    full_size: FullSize = None,
    random_weights: RandomWeights = False,
    preset: Annotated[str, typer.Option(help="PRESET, PRESET:PARTICLES or PRESET@BUDGET.")] = "adaptive",
    prompts: Annotated[int, typer.Option(min=1, help="Prompts per steered call.")] = 8,
    repeats: Repeats = 5,
    steps: Steps = None,
    previews: Annotated[
        bool, typer.Option("--previews", help="Decode x0 predictions with the bundled preview decoder.")
    ] = False,
    decode_batch_size: Annotated[
        int | None, typer.Option(min=1, help="Latents per call of the decoder. [default: all]")
    ] = None,
    memory: Annotated[bool, typer.Option(help="Measure peak memory too, with up to 64 particles.")] = True,
    size: Size = None,
    device: Device = None,
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
        steering = sized(preset, call["num_inference_steps"], preview_decoder=decoder, **sizes)
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


def parallel(
    out: Annotated[Path, typer.Option(help="JSON file for seconds, the speed-up and peak memory.")],
    model: Model = "shapes",
    full_size: FullSize = None,
    random_weights: RandomWeights = False,
    preset: Annotated[str, typer.Option(help="PRESET, PRESET:PARTICLES or PRESET@BUDGET.")] = "adaptive:8",
    prompts: Annotated[int, typer.Option(min=1, help="Prompts per repeat, one call each.")] = 4,
    repeats: Repeats = 5,
    steps: Steps = None,
    size: Size = None,
    device: Device = None,
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
        steering = sized(preset, call["num_inference_steps"])
        measured = measure(pipe, guide, steering, processes, prompts=prompts, repeats=repeats, **call)
        if measured is None:
            return
        setup = {"model": full_size or model, "preset": preset, "prompts": prompts, **call}
        write_json(out, {**setup, "machine": machine(processes.device), **measured})
        console.print(f"speed-up by {measured['processes']} processes: {measured['speed-up']:.3f}", highlight=False)
        for way, peak in measured["peak bytes"].items():
            console.print(f"peak memory, {way}: {peak / 2**20:.1f} MiB", highlight=False)


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
    device: Device = None,
) -> None:
    """Rank correlation of rewards of previews with those of the full autoencoder's images, along the loop."""
    from fk_steer.loading import load_guide, load_pipeline, quiet_libraries

    with one_line_errors():
        quiet_libraries()
        from fk_steer.bundled import bundled_options
        from fk_steer.files import write_json
        from fk_steer.loading import load_preview
        from fk_steer.rewards.loading import default_device
        from fk_steer.shapes import BUNDLED, GUIDANCE_SCALE, NUM_INFERENCE_STEPS
        from fk_steer.shapes.captions import evaluation_prompts

        from .preview import agreement

        bundled, target = model in BUNDLED, default_device(device)
        pipe = load_pipeline(model, device=target)
        pipe.set_progress_bar_config(disable=True)
        call: dict[str, Any] = {
            "num_inference_steps": steps or (NUM_INFERENCE_STEPS if bundled else 50),
            "guidance_scale": guidance if guidance is not None else (GUIDANCE_SCALE if bundled else 7.5),
        }
        rows = agreement(
            pipe,
            load_guide(reward, target, **bundled_options(model, reward)),
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


def rewards(
    out: Annotated[Path, typer.Option(help="Folder for the table.")],
    reward: Annotated[
        list[str] | None,
        typer.Option(help="NAME or NAME:VARIANT as in the table. [default: all; on a CPU the small ones]"),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="[default: 16; on a CPU 4]")] = None,
    size: Annotated[int, typer.Option(min=1, help="Height and width of the images.")] = 512,
    repeats: Repeats = 3,
    dtype: Annotated[str | None, typer.Option(help="[default: float16; on a CPU float32]")] = None,
    device: Device = None,
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

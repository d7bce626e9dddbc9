"""The command line, `fk-steer`."""

from __future__ import annotations

import inspect
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table


if TYPE_CHECKING:
    from PIL.Image import Image

    from .config import FKSteering

app = typer.Typer(
    help="Feynman-Kac steering for Hugging Face Diffusers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
console = Console()


class PipelineKind(str, Enum):
    auto = "auto"
    sd = "sd"
    sdxl = "sdxl"


class DType(str, Enum):
    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


@app.command()
def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to generate.")],
    model: Annotated[str, typer.Option(help="Hub id or folder of a pipeline.")],
    pipeline: Annotated[PipelineKind, typer.Option(help="Class of the pipeline.")] = PipelineKind.auto,
    reward: Annotated[str, typer.Option(help="Reward to steer by; see `fk-steer rewards`.")] = "clip-score",
    reward_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Option of the reward, for example path=FOLDER.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Settings to start from; see `fk-steer presets`.")] = "fk",
    particles: Annotated[int | None, typer.Option(help="Particles per prompt. [default: the preset's]")] = None,
    lmbda: Annotated[float | None, typer.Option(help="Strength of the tilt. [default: the reward's]")] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            help="Scheduler class, for example EulerAncestralDiscreteScheduler. [default: the model's; DDIM if the "
            "settings make copies of particles and the model's adds no noise]"
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 50,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance scale.")] = 7.5,
    negative_prompt: Annotated[str | None, typer.Option(help="What to keep out of the images.")] = None,
    height: Annotated[int | None, typer.Option(help="In pixels. [default: the model's]")] = None,
    width: Annotated[int | None, typer.Option(help="In pixels. [default: the model's]")] = None,
    seed: Annotated[int, typer.Option(help="Of the noise and the resampling.")] = 0,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Denoiser rows, latents decoded and images scored at a time. [default: all]"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("out"),
    dtype: Annotated[DType, typer.Option(help="Of the pipeline; auto is float16 on CUDA devices.")] = DType.auto,
    device: Annotated[str | None, typer.Option(help="[default: cuda if there is one, else cpu]")] = None,
) -> None:
    """Generate images steered by a reward, best first, with a contact sheet and a trace of every scoring event.

    Run again with the same settings it does what is missing; a folder made with other settings is left alone.
    """
    with one_line_errors():
        settings = {
            "model": model,
            "reward": reward,
            "reward_options": _options(reward_option or []),
            "scheduler": scheduler,
            "steering": _steering(preset, particles, lmbda, batch_size).to_dict(),
            "steps": steps,
            "guidance": guidance,
            "negative_prompt": negative_prompt,
            "height": height,
            "width": width,
            "seed": seed,
            "dtype": dtype.value,
            "prompts": prompts,
        }
        _check_record(out, settings)
        missing = [index for index in range(len(prompts)) if not (out / f"{index:03d}" / "trace.json").exists()]
        if missing:
            _generate_missing(out, settings, missing, pipeline, device)
        _contact_sheet(out, prompts)
        console.print(f"Results in {out}", highlight=False)


@app.command()
def rewards() -> None:
    """List the rewards that can be steered by."""
    from .rewards import available_rewards

    with one_line_errors():
        table = Table("name", "what it is", "options", box=None, padding=(0, 2))
        for name, entry_point in sorted(available_rewards().items()):
            factory = entry_point.load()
            summary = (inspect.getdoc(factory) or "").split("\n\n")[0].replace("\n", " ")
            table.add_row(name, summary, ", ".join(inspect.signature(factory).parameters))
        console.print(table)


@app.command()
def presets(
    name: Annotated[str | None, typer.Argument(help="Print all settings of one preset as JSON.")] = None,
) -> None:
    """List the presets, or print the settings of one."""
    from .config import PRESETS, FKSteering

    with one_line_errors():
        if name is not None:
            console.print_json(json.dumps(FKSteering.preset(name).to_dict()))
            return
        default = _flat(PRESETS["fk"].settings.to_dict())
        table = Table("name", "what it is", "settings that differ from 'fk'", box=None, padding=(0, 2))
        for key, preset in PRESETS.items():
            settings = _flat(preset.settings.to_dict())
            differences = [f"{field} {value}" for field, value in settings.items() if value != default.get(field)]
            table.add_row(key, preset.summary, "\n".join(differences))
        console.print(table)


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for field, value in settings.items():
        flat |= {f"{field}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {field: value}
    return flat


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn the errors a user can act on into one line and exit status 1."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


def _generate_missing(
    out: Path, settings: dict[str, Any], missing: list[int], kind: PipelineKind, device: str | None
) -> None:
    import torch

    from .config import FKSteering
    from .diffusion import steer
    from .rewards import load_reward
    from .rewards.loading import default_device
    from .trace import write_atomically

    _quiet_libraries()
    target = default_device(device)
    steering = FKSteering.from_dict(settings["steering"])
    reward = load_reward(settings["reward"], device=target, **settings["reward_options"])
    pipe = _load_pipeline(settings["model"], kind, settings["dtype"], target)
    _set_scheduler(pipe, settings["scheduler"], steering)
    call = {
        "num_inference_steps": settings["steps"],
        "guidance_scale": settings["guidance"],
        "negative_prompt": settings["negative_prompt"],
        "height": settings["height"],
        "width": settings["width"],
    }
    steered = steer(pipe, reward, steering)
    write_atomically(out / "settings.json", json.dumps(settings, indent=2).encode())
    for index in missing:
        prompt = settings["prompts"][index]
        console.print(f"[bold]{index:03d}[/bold] {prompt}", highlight=False)
        generator = torch.Generator().manual_seed(settings["seed"])
        output = steered(
            prompt, generator=generator, **{name: value for name, value in call.items() if value is not None}
        )
        folder = out / f"{index:03d}"
        for rank, image in enumerate(output.images):
            write_atomically(folder / f"{rank:02d}.png", _png(image))
        plot = io.BytesIO()
        output.trace.plot().savefig(plot, format="png", dpi=120)
        write_atomically(folder / "lineage.png", plot.getvalue())
        # Written last: its presence says that the prompt is done.
        output.trace.save(folder / "trace.json")
        ess = " ".join(f"{event.ess[0]:.1f}" for event in output.trace.events)
        best = " ".join(f"{value:.3f}" for value in output.rewards[0].tolist())
        console.print(
            f"    rewards {best}\n    ESS {ess}, distinct roots {output.trace.events[-1].distinct_roots[0]}, "
            f"NFE {output.trace.nfe}, {output.trace.seconds['total']:.1f} s",
            highlight=False,
        )


def _quiet_libraries() -> None:
    """Keep what matters visible: no notes about optional packages, no bars for loading weights."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.logging.set_verbosity_error()
        library.logging.disable_progress_bar()


def _load_pipeline(model: str, kind: PipelineKind, dtype: str, device: Any) -> Any:
    import torch
    from diffusers import DiffusionPipeline

    from .pipelines import FKStableDiffusionPipeline, FKStableDiffusionXLPipeline

    if kind is PipelineKind.auto:
        name = DiffusionPipeline.load_config(model).get("_class_name", "")
        plain = name.removeprefix("FK")
        kinds = {"StableDiffusionPipeline": PipelineKind.sd, "StableDiffusionXLPipeline": PipelineKind.sdxl}
        kind = kinds.get(plain, PipelineKind.auto)
    pipeline_class = {
        PipelineKind.auto: DiffusionPipeline,
        PipelineKind.sd: FKStableDiffusionPipeline,
        PipelineKind.sdxl: FKStableDiffusionXLPipeline,
    }[kind]
    if dtype == "auto":
        dtype = "float16" if device.type == "cuda" else "float32"
    return pipeline_class.from_pretrained(model, dtype=getattr(torch, dtype)).to(device)


def _set_scheduler(pipe: Any, name: str | None, steering: FKSteering) -> None:
    import diffusers

    from .diffusion.schedulers import adds_noise

    if name is not None:
        scheduler_class = getattr(diffusers, name, None)
        if scheduler_class is None or not hasattr(scheduler_class, "step"):
            raise ValueError(f"Unknown scheduler {name!r}. Expected a Diffusers class, such as DDIMScheduler.")
        pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config)
    elif steering.may_duplicate({0: steering.num_particles}) and not adds_noise(pipe.scheduler, steering.eta):
        console.print(
            f"{type(pipe.scheduler).__name__} adds no noise, so copies of a particle would stay identical; sampling "
            f"with DDIMScheduler at eta {steering.eta:g}. Choose another with --scheduler.",
            highlight=False,
        )
        pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)


def _steering(preset: str, particles: int | None, lmbda: float | None, batch_size: int | None) -> FKSteering:
    from .config import FKSteering

    overrides: dict[str, Any] = {"num_particles": particles, "lmbda": lmbda}
    overrides |= {f"{part}_batch_size": batch_size for part in ("reward", "decode", "denoise")}
    return FKSteering.preset(preset, **{name: value for name, value in overrides.items() if value is not None})


def _options(pairs: list[str]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise ValueError(f"Expected --reward-option as KEY=VALUE, but got {pair!r}.")
    return dict(pair.split("=", 1) for pair in pairs)


def _check_record(out: Path, settings: dict[str, Any]) -> None:
    """Make sure that a folder with results was made with these settings."""
    record = out / "settings.json"
    if not record.exists():
        return
    before = json.loads(record.read_text())
    differing = [name for name in settings if before.get(name) != settings[name]]
    if differing:
        name = differing[0]
        raise ValueError(
            f"{out} was made with another `{name}` ({before.get(name)!r} instead of {settings[name]!r}). "
            "Choose another --out."
        )


def _contact_sheet(out: Path, prompts: list[str]) -> None:
    from PIL import Image

    from .report import contact_sheet
    from .trace import Trace, write_atomically

    rows = []
    for index, prompt in enumerate(prompts):
        folder = out / f"{index:03d}"
        rewards = sorted(Trace.load(folder / "trace.json").events[-1].rewards[0], reverse=True)
        images = [Image.open(folder / f"{rank:02d}.png") for rank in range(len(rewards))]
        rows.append((prompt, [(image, f"{reward:.3f}") for image, reward in zip(images, rewards)]))
    write_atomically(out / "contact_sheet.png", _png(contact_sheet(rows)))


def _png(image: Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()

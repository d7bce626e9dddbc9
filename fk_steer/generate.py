"""What `fk-steer generate` does: steered images for a few prompts, to be looked at.

A folder is the record of a run:

    settings.json               what the images were made with
    000/00.png, 01.png, ...     of the first prompt, the images of all particles, best first
    000/00.webp, 01.webp, ...   of a pipeline of videos, in their place animations that keep every pixel
    000/trace.json              its `Trace`, with small pictures of the x0 predictions; written last, its presence says
                                that the prompt is done
    000/lineage.png             its lineage plot
    000/unsteered-*             the same without steering, from the same noise, if asked for
    contact_sheet.png, report.html
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .bundled import BUNDLED, bundled_options
from .console import console
from .diffusion import Execution, steer
from .diffusion.budgets import choose
from .diffusion.components import makes_videos
from .files import FPS, alone, check_settings, png, record_settings, webp, write_atomically
from .loading import find_model, join_processes, load_guide, load_pipeline, set_scheduler
from .records import (
    Misplaced,
    UnreadableFile,
    check_folder,
    check_png,
    check_webp,
    say_set_aside,
    set_aside,
    unreadable,
)
from .report.figures import figure_png
from .report.page import html_report
from .report.results import VIDEO, picture_path, results_in, summarize
from .report.sheet import contact_sheet
from .report.trace import Trace, told
from .rewards import FrameReward
from .rewards.base import as_reward
from .rewards.chat import check_recordable
from .rewards.loading import default_device
from .search import DEFAULT_PRESET, Strategy
from .search import preset as settings_of
from .search.presets import asked
from .shapes import GUIDANCE_SCALE, NUM_INFERENCE_STEPS
from .smc.checks import integer, real


@dataclass(frozen=True)
class Generation:
    """Everything that the images depend on.

    Attributes:
        prompts: a population of particles each.
        model: hub id or folder of a pipeline, or the name of a bundled one.
        reward, reward_options: the guide, see `load_reward`.
        steering: the settings, `Strategy.to_dict()`.
        scheduler: name of a sampler or Diffusers class; None for the model's, or DDIM if that adds no noise and the
            settings need some, or what the settings or a budget choose.
        steps: of the denoising loop; None for what the settings or a budget choose.
        guidance, negative_prompt, height, width, frames: of the call; None for the pipeline's own.
        seed: of the noise and the resampling.
        compare: whether as many images are made without steering, from the same noise.
        dtype: of the pipeline: 'float32', 'float16', 'bfloat16' or 'auto'.
    """

    model: str
    reward: str
    reward_options: dict[str, Any]
    scheduler: str | None
    steering: dict[str, Any]
    steps: int | None
    guidance: float
    negative_prompt: str | None
    height: int | None
    width: int | None
    seed: int
    compare: bool
    dtype: str
    prompts: list[str]
    frames: int | None = None

    @classmethod
    def of(
        cls,
        prompts: Sequence[str],
        model: str,
        *,
        reward: str = "clip-score",
        reward_options: Mapping[str, Any] | None = None,
        preset: str = DEFAULT_PRESET,
        particles: int | None = None,
        budget: int | None = None,
        lmbda: float | None = None,
        scheduler: str | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        negative_prompt: str | None = None,
        height: int | None = None,
        width: int | None = None,
        frames: int | None = None,
        seed: int = 0,
        compare: bool = False,
        dtype: str = "auto",
    ) -> Generation:
        """With what is left open filled in: a bundled model's steps, guidance scale and reward, a preset's settings.

        Args:
            budget: denoiser calls per image, which choose the particles, and the steps and sampler that are left open.

        Raises:
            ValueError: for an unknown preset, a value out of range, particles beside a budget, or a password among the
                options of the reward.
        """
        bundled = model in BUNDLED
        options = dict(reward_options or {})
        check_recordable(options)
        options = {**bundled_options(model, reward), **options}
        chosen = asked(preset, particles=particles, budget=budget, lmbda=lmbda)
        usual = NUM_INFERENCE_STEPS if bundled else 50
        return cls(
            model=model,
            reward=reward,
            reward_options=options,
            scheduler=scheduler,
            steering=chosen.to_dict(),
            steps=integer("steps", steps, 1, optional=True) or (usual if chosen.steps_are_usual else None),
            guidance=real("guidance", (GUIDANCE_SCALE if bundled else 7.5) if guidance is None else guidance),
            negative_prompt=negative_prompt,
            height=integer("height", height, 1, optional=True),
            width=integer("width", width, 1, optional=True),
            frames=integer("frames", frames, 1, optional=True),
            seed=seed,
            compare=compare,
            dtype=dtype,
            prompts=list(prompts),
        )


def generate_into(
    out: Path,
    settings: Generation,
    *,
    kind: str = "auto",
    batch_size: int | None = None,
    device: str | None = None,
    particle_parallel: bool = False,
    repair: bool = False,
) -> None:
    """Make what is missing in a folder, and its report.

    Args:
        kind: class of the pipeline, see `load_pipeline`.
        batch_size: denoiser rows, latents decoded and images scored at a time; None for all.
        device: None for CUDA if there is a device, else the CPU.
        particle_parallel: share the particles of each prompt between the processes that torchrun or accelerate has
            started; the first one writes.
        repair: set aside what cannot be read, in `.unreadable` within the folder, and make it anew.

    Raises:
        ValueError: if the folder was made with other settings, naming the first that differs, or another command is at
            work in it; `UnreadableFile` for broken files, unless `repair`.
        OSError: if a file cannot be written. What was finished is there.
    """
    plain = asdict(settings)
    writes = True
    if particle_parallel:
        from accelerate.utils import broadcast_object_list

        processes = join_processes(device)
        device, writes = str(processes.device), processes.is_main_process
        console.quiet = not writes
    if writes and repair:
        _repair(out, settings)
    elif not repair:
        _check(out, settings)
    missing = _missing(out, settings)
    if particle_parallel:
        (missing,) = broadcast_object_list([missing])
    if missing:
        with alone(out) if writes else nullcontext():
            if not particle_parallel:
                # Another command may have been at it just before.
                missing = _missing(out, settings)
                check_settings(out, plain)
            _generate(out, settings, missing, kind, batch_size, device, particle_parallel, writes)
    if writes:
        results = results_in(out, plain)
        _update(out / "contact_sheet.png", png(contact_sheet(results)))
        _update(out / "report.html", html_report(results, plain).encode())
        for what, reward, correct in summarize(results):
            text = f"{what}: mean reward {reward}" + (f", {correct} correct" if correct else "")
            console.print(text, highlight=False)


def _update(path: Path, content: bytes) -> None:
    """Write a file unless it is like that already: a finished folder may be read-only."""
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)


def _prefixes(settings: Generation) -> tuple[str, ...]:
    return ("", "unsteered-") if settings.compare else ("",)


def _missing(out: Path, settings: Generation) -> list[int]:
    """Numbers of the prompts of which something is not there."""
    return [index for index in range(len(settings.prompts)) if not _has(out / f"{index:03d}", settings)]


def _has(folder: Path, settings: Generation) -> bool:
    if not (folder / "lineage.png").exists():
        return False
    for prefix in _prefixes(settings):
        try:
            images = len(Trace.load(folder / f"{prefix}trace.json").rewards[0])
        except FileNotFoundError:
            return False
        if not all(picture_path(folder, f"{prefix}{rank:02d}").exists() for rank in range(images)):
            return False
    return True


def _check(out: Path, settings: Generation) -> None:
    check_settings(out, asdict(settings))
    if found := _unreadable(out, settings):
        raise UnreadableFile(found[0].path, found[0].problem, len(found) - 1)
    if not (out / "settings.json").exists() and next(out.glob("[0-9]*/*trace.json"), None) is not None:
        raise ValueError(
            f"{out} holds images, but not the settings they were made with ({out / 'settings.json'}). Choose another "
            "folder, or, if they are of this command, take them over with --repair."
        )


def _repair(out: Path, settings: Generation) -> None:
    """Set aside what `_check` would find. Without readable settings those of the command are written, if no trace
    speaks against them."""
    if not out.is_dir():
        return
    with alone(out):
        found = []
        try:
            check_settings(out, asdict(settings))
        except UnreadableFile as error:
            found.append(error)
        lost = bool(found) or not (out / "settings.json").exists()
        problems = _unreadable(out, settings)
        if lost and (strange := [one for one in problems if isinstance(one, Misplaced)]):
            raise ValueError(
                f"{out / 'settings.json'} cannot be read, and {strange[0].path} is not of this command: give the "
                "prompts and settings that the folder was made with, or choose another."
            )
        for problem in [*found, *problems]:
            # Unless something above it has been set aside already.
            with suppress(FileNotFoundError, NotADirectoryError):
                set_aside(problem.path, out)
                say_set_aside(problem)
        if lost:
            record_settings(out, asdict(settings))


def _unreadable(out: Path, settings: Generation) -> list[UnreadableFile]:
    looks: list[tuple[Path, Callable[[Path], object]]] = []
    for index, prompt in enumerate(settings.prompts):
        folder = out / f"{index:03d}"
        looks.append((folder, check_folder))
        looks += [(folder / f"{one}trace.json", partial(_check_trace, prompt=prompt)) for one in _prefixes(settings)]
        looks += [(path, check_png) for path in sorted(folder.glob("*.png"))]
        looks += [(path, check_webp) for path in sorted(folder.glob(f"*{VIDEO}"))]
    # Made anew from the rest each time.
    looks += [(out / name, _check_file) for name in ("contact_sheet.png", "report.html")]
    return unreadable(looks)


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise UnreadableFile(path, "a folder in the place of a file")


def _check_trace(path: Path, prompt: str) -> None:
    trace = Trace.load(path)
    if not trace.rewards or not trace.rewards[0]:
        raise UnreadableFile(path, "the trace of a run without an end")
    if trace.prompts != [prompt]:
        raise Misplaced(path, "the trace of another prompt")


def _generate(
    out: Path,
    settings: Generation,
    missing: Sequence[int],
    kind: str,
    batch_size: int | None,
    device: str | None,
    particle_parallel: bool,
    writes: bool,
) -> None:
    find_model(settings.model)
    target = default_device(device)
    steering = Strategy.from_dict(settings.steering)
    reward = load_guide(settings.reward, target, **settings.reward_options)
    pipe = load_pipeline(settings.model, kind, settings.dtype, target)
    pipe.set_progress_bar_config(leave=False, disable=not writes)
    if makes_videos(pipe) and not as_reward(reward).takes_videos:
        reward = FrameReward(reward)
    unsteered_scheduler = pipe.scheduler
    if note := set_scheduler(pipe, settings.scheduler, steering, settings.steps):
        console.print(f"{note} Choose another with --scheduler.", highlight=False)
    elif settings.scheduler:
        unsteered_scheduler, steering = pipe.scheduler, steering.replace(sampler=settings.scheduler)
    call: dict[str, Any] = {
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance,
        "negative_prompt": settings.negative_prompt,
        "height": settings.height,
        "width": settings.width,
        "num_frames": settings.frames,
        "output_type": "pil",  # of some pipelines arrays are what they give unasked
    }
    call = {name: value for name, value in call.items() if value is not None}
    choice = choose(pipe, steering, call)
    if choice.chosen:
        console.print(f"{told(choice.chosen)}.", highlight=False)
    runs = {"": (steering, pipe.scheduler)}
    if settings.compare:
        alike = {name: getattr(choice.strategy, name) for name in ("num_particles", "seed", "steps", "sampler")}
        unsteered = settings_of("best-of-n", **alike)
        runs = {"unsteered-": (unsteered, unsteered_scheduler), **runs}
    if writes:
        record_settings(out, asdict(settings))

    def write_new(path: Path, content: bytes) -> None:
        # What an earlier run finished stays as it is.
        if not path.exists():
            write_atomically(path, content)

    for index in missing:
        prompt, folder = settings.prompts[index], out / f"{index:03d}"
        console.print(f"[bold]{index:03d}[/bold] {prompt}", highlight=False)
        for prefix, (run_settings, pipe.scheduler) in runs.items():
            generator = torch.Generator().manual_seed(settings.seed)
            steered = steer(pipe, reward, run_settings, Execution.in_batches(batch_size))
            output = steered(
                prompt,
                generator=generator,
                particle_parallel=particle_parallel,
                keep_predictions=not prefix,
                **call,
            )
            if not writes:
                continue
            for rank, image in enumerate(output.particles[0]):
                if isinstance(image, list):
                    write_new(folder / f"{prefix}{rank:02d}{VIDEO}", webp(image, FPS))
                else:
                    write_new(folder / f"{prefix}{rank:02d}.png", png(image))
            if not prefix:
                write_new(folder / "lineage.png", figure_png(output.trace.plot()))
            best = " ".join(f"{value:.3f}" for value in output.rewards[0].tolist())
            console.print(f"    {prefix.rstrip('-') or 'steered':9} rewards {best}", highlight=False)
            # Written last: its presence says that the prompt is done.
            if not (folder / f"{prefix}trace.json").exists():
                output.trace.save(folder / f"{prefix}trace.json")
        known = [f"{event.ess[0]:.1f}" for event in output.trace.events if not math.isnan(event.ess[0])]
        ess = f"ESS {' '.join(known)}, " if known else ""
        console.print(
            f"    {ess}distinct roots {output.trace.events[-1].distinct_roots[0]}, NFE {output.trace.nfe}, "
            f"{output.trace.seconds['total']:.1f} s",
            highlight=False,
        )

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

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .bundled import BUNDLED, fitted_options
from .combinations import by_reward
from .console import console, duration
from .defaults import DEFAULT_REWARD
from .diffusion import Execution, steer
from .files import alone, check_settings, png, record_settings, write_atomically
from .loading import find_model, join_processes, load_guide, load_pipeline
from .preparation import prepare, write_images
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
from .report.results import UNSTEERED, VIDEO, picture_path, results_in, summarize
from .report.sheet import contact_sheet
from .report.trace import Trace
from .rewards.chat import check_recordable
from .rewards.loading import default_device
from .running import Watched, costs_with, looks_of, loop_of, say_loading, show_costs
from .search import DEFAULT_PRESET
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
        lora: weights of LoRA for the pipeline, see `load_pipeline`; None for none.
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
    lora: str | None = None

    @classmethod
    def of(
        cls,
        prompts: Sequence[str],
        model: str,
        *,
        reward: str = DEFAULT_REWARD,
        reward_options: Mapping[str, Any] | None = None,
        preset: str = DEFAULT_PRESET,
        particles: int | None = None,
        budget: int | None = None,
        lmbda: float | None = None,
        changes: Mapping[str, Any] | None = None,
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
        lora: str | None = None,
    ) -> Generation:
        """With what is left open filled in: a bundled model's steps, guidance scale and reward, a preset's settings.

        Args:
            budget: denoiser calls per image, which choose the particles, and the steps and sampler that are left open.
            changes: further settings in place of the preset's, dotted for parts of them: {'schedule.at': (0.4, 0.6)}.

        Raises:
            ValueError: for an unknown preset, a value out of range, particles beside a budget, a setting given in two
                ways, or a password among the options of the reward.
        """
        bundled = model in BUNDLED
        options = dict(reward_options or {})
        for own in by_reward(reward, options).values():
            check_recordable(own)
        options = fitted_options(model, reward, options)
        elsewhere = {"steps": steps, "sampler": scheduler}
        chosen = asked(
            preset,
            particles=particles,
            budget=budget,
            lmbda=lmbda,
            changes=changes,
            elsewhere=[name for name, value in elsewhere.items() if value is not None],
        )
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
            height=integer("height", height, 8, optional=True),
            width=integer("width", width, 8, optional=True),
            frames=integer("frames", frames, 1, optional=True),
            seed=seed,
            compare=compare,
            dtype=dtype,
            prompts=list(prompts),
            lora=lora,
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
    pages: bool = True,
) -> None:
    """Make what is missing in a folder, and its report.

    Args:
        kind: class of the pipeline, see `load_pipeline`.
        batch_size: denoiser rows, latents decoded and images scored at a time; None for all.
        device: None for CUDA if there is a device, else the CPU.
        particle_parallel: share the particles of each prompt between the processes that torchrun or accelerate has
            started; the first one writes.
        repair: set aside what cannot be read, in `.unreadable` within the folder, and make it anew.
        pages: whether to make the report and what is only for it: the contact sheet, lineage plots and pictures in
            traces, which long lists of prompts would make huge.

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
    missing = _missing(out, settings, pages)
    if particle_parallel:
        (missing,) = broadcast_object_list([missing])
    if missing:
        with alone(out) if writes else nullcontext():
            if not particle_parallel:
                # Another command may have been at it just before.
                missing = _missing(out, settings, pages)
                check_settings(out, plain)
            _generate(out, settings, missing, kind, batch_size, device, particle_parallel, writes, pages)
    if writes and pages:
        results = results_in(out, plain)
        _update(out / "contact_sheet.png", png(contact_sheet(results)))
        _update(out / "report.html", html_report(results, plain).encode())
        for what, reward, correct in summarize(results):
            text = f"{what}: reward {reward}" + (f", correct {correct}" if correct else "")
            console.print(text, highlight=False)


def _update(path: Path, content: bytes) -> None:
    """Write a file unless it is like that already: a finished folder may be read-only."""
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)


def _prefixes(settings: Generation) -> tuple[str, ...]:
    return ("", UNSTEERED) if settings.compare else ("",)


def _missing(out: Path, settings: Generation, pages: bool) -> list[int]:
    """Numbers of the prompts of which something is not there."""
    return [index for index in range(len(settings.prompts)) if not _has(out / f"{index:03d}", settings, pages)]


def _has(folder: Path, settings: Generation, pages: bool) -> bool:
    if pages and not (folder / "lineage.png").exists():
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
    pages: bool,
) -> None:
    place = find_model(settings.model)
    target = default_device(device)
    say_loading(place, settings.reward, settings.reward_options)
    reward = load_guide(settings.reward, target, **settings.reward_options)
    pipe = load_pipeline(settings.model, kind, settings.dtype, target, settings.lora)
    prepared = prepare(pipe, reward, settings)
    if prepared.scheduler_note:
        note = f"{prepared.scheduler_note} Choose another with --scheduler."
        console.print(note, highlight=False, soft_wrap=True)
    if prepared.choice_note:
        console.print(prepared.choice_note, highlight=False, soft_wrap=True)
    if writes:
        record_settings(out, asdict(settings))
    choice = prepared.choice
    show_costs(costs_with(pipe, choice.strategy, choice.arguments, len(missing), batch_size))

    def write_new(path: Path, content: bytes) -> None:
        # What an earlier run finished stays as it is.
        if not path.exists():
            write_atomically(path, content)

    looks = looks_of(choice.strategy, loop_of(pipe, choice.strategy, choice.arguments))
    with Watched(len(missing), len(prepared.runs), writes, looks) as watched, watched.steps_of(pipe):
        for index in missing:
            prompt, folder = settings.prompts[index], out / f"{index:03d}"
            best = {}
            for prefix, (run_settings, pipe.scheduler) in prepared.runs.items():
                generator = torch.Generator().manual_seed(settings.seed)
                steered = steer(pipe, prepared.reward, run_settings, Execution.in_batches(batch_size))
                output = steered(
                    prompt,
                    generator=generator,
                    particle_parallel=particle_parallel,
                    keep_predictions=pages and not prefix,
                    on_event=None if prefix else watched.see,
                    **prepared.call,
                )
                if not writes:
                    continue
                write_images(folder, prefix, output, write_new)
                if pages and not prefix:
                    write_new(folder / "lineage.png", figure_png(output.trace.plot()))
                best[prefix] = output.rewards[0].max().item()
                # Written last: its presence says that the prompt is done.
                if not (folder / f"{prefix}trace.json").exists():
                    output.trace.save(folder / f"{prefix}trace.json")
            watched.done(f"{index:03d} {prompt}: {_summary(best, output.trace)}" if writes else "")


def _summary(best: Mapping[str, float], trace: Trace) -> str:
    """What became of a prompt, in a line.

    Args:
        best: prefix of a run -> its best reward.
        trace: of the steered run.
    """
    unsteered = f" ({best[UNSTEERED]:.3f} without steering)" if UNSTEERED in best else ""
    first = len(trace.events[0].rewards[0])
    left = trace.events[-1].distinct_roots[0]
    parts = [
        f"best reward {best['']:.3f}{unsteered}",
        f"{left} of {first} first particles live on" if first > 1 else "",
        f"{trace.nfe} denoiser rows",
        duration(trace.seconds["total"]),
    ]
    return ", ".join(part for part in parts if part)

"""What a run is made with once its models are loaded, and the images it leaves: for the command and the app alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .diffusion.budgets import Choice, choose
from .diffusion.components import makes_videos
from .diffusion.steer import SteeredOutput
from .files import FPS, png, webp
from .loading import set_scheduler
from .report.results import UNSTEERED, VIDEO
from .report.trace import told
from .rewards import FrameReward
from .rewards.functions import as_reward
from .search import Strategy, preset


if TYPE_CHECKING:
    from .generate import Generation


@dataclass(frozen=True)
class Prepared:
    """What a run is made with.

    Attributes:
        reward: that of single images, frame by frame, where the pipeline makes videos.
        call: arguments of the pipeline's call, those that are left to it left out.
        choice: what the budget, or the settings, chose.
        scheduler_note: what was set in place of the pipeline's own scheduler unasked, in a sentence; None for nothing.
        choice_note: what the budget chose, in a sentence; None for nothing.
        runs: what files of a run begin with -> (settings, scheduler), in the order in which they are made.
    """

    reward: Any
    call: Mapping[str, Any]
    choice: Choice
    scheduler_note: str | None
    choice_note: str | None
    runs: Mapping[str, tuple[Strategy, Any]]


def prepare(pipe: Any, reward: Any, settings: Generation) -> Prepared:
    """Make a pipeline and a reward ready for the run that some settings ask for. It sets the pipeline's scheduler.

    Args:
        pipe: loaded by `settings.model`.
        reward: loaded by `settings.reward`.
        settings: of the run.

    Raises:
        ValueError: for settings that do not fit the pipeline or the budget.
    """
    if makes_videos(pipe) and not as_reward(reward).takes_videos:
        reward = FrameReward(reward)
    steering, unsteered_scheduler = Strategy.from_dict(settings.steering), pipe.scheduler
    scheduler_note = set_scheduler(pipe, settings.scheduler, steering, settings.steps)
    if settings.scheduler:
        unsteered_scheduler, steering = pipe.scheduler, steering.replace(sampler=settings.scheduler)
    arguments: dict[str, Any] = {
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance,
        "negative_prompt": settings.negative_prompt,
        "height": settings.height,
        "width": settings.width,
        "num_frames": settings.frames,
        "output_type": "pil",  # of some pipelines arrays are what they give unasked
    }
    call = {name: value for name, value in arguments.items() if value is not None}
    choice = choose(pipe, steering, call)
    runs = {"": (steering, pipe.scheduler)}
    if settings.compare:
        alike = {name: getattr(choice.strategy, name) for name in ("num_particles", "seed", "steps", "sampler")}
        runs = {UNSTEERED: (preset("best-of-n", **alike), unsteered_scheduler), **runs}
    choice_note = f"{told(choice.chosen)}." if choice.chosen else None
    return Prepared(reward, call, choice, scheduler_note, choice_note, runs)


def write_images(folder: Path, prefix: str, output: SteeredOutput, write: Callable[[Path, bytes], None]) -> None:
    """Write the particles of the first prompt, best first: 00.png, 01.png, ...; videos as animations.

    Args:
        folder: of the prompt.
        prefix: what the names begin with.
        output: of a run.
        write: is given each path and the content of its file.
    """
    for rank, image in enumerate(output.particles[0]):
        if isinstance(image, list):
            write(folder / f"{prefix}{rank:02d}{VIDEO}", webp(image, FPS))
        else:
            write(folder / f"{prefix}{rank:02d}.png", png(image))

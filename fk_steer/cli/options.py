"""Options that several commands share, and errors as one line.

Each says in a full sentence what it does; what happens without it is its default, or `show_default`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer

from llava_reward_guide.terminal import errors_as_lines, usable_device

from ..defaults import DEFAULT_MODEL, DEFAULT_PRESET, DEFAULT_REWARD


__all__ = ["DEFAULT_MODEL", "DEFAULT_PRESET", "DEFAULT_REWARD"]

MAKE = "What to make"
STEER = "Steering"
SAMPLE = "Sampling"
RUN = "Running"
"""Groups of options in `--help`."""

Device = Annotated[
    str | None,
    typer.Option(
        callback=usable_device,
        help="Run on this device: cpu, cuda, cuda:1 or mps.",
        show_default="cuda if there is one, else cpu",
        rich_help_panel=RUN,
    ),
]
Repair = Annotated[
    bool,
    typer.Option(
        "--repair",
        help="Move files of an earlier run that cannot be read into the folder .unreadable, and make them anew.",
        rich_help_panel=RUN,
    ),
]

Pipeline = Annotated[
    str,
    typer.Option(
        help="Draw with this pipeline: a hub id, a folder, or a bundled one, shapes or shapes-xl.",
        rich_help_panel=MAKE,
    ),
]
Height = Annotated[
    int | None,
    typer.Option(help="Make images of this height in pixels.", show_default="the model's", rich_help_panel=MAKE),
]
Width = Annotated[
    int | None,
    typer.Option(help="Make images of this width in pixels.", show_default="the model's", rich_help_panel=MAKE),
]
Lora = Annotated[
    str | None,
    typer.Option(
        help="Add these weights of LoRA to the pipeline: a folder, such as `fk-steer train dpo` leaves, a file or a hub"
        " id.",
        show_default="none",
        rich_help_panel=MAKE,
    ),
]
Frames = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Make videos of this many frames, with a pipeline of videos.",
        show_default="the model's",
        rich_help_panel=MAKE,
    ),
]

# Sampling.
Scheduler = Annotated[
    str | None,
    typer.Option(
        help="Sample with this scheduler: ddim, dpmsolver++, euler, or a class of Diffusers such as "
        "EulerAncestralDiscreteScheduler.",
        show_default="the model's, or DDIM where copies of particles need noise and it adds none; with --budget "
        "DPM-Solver++",
        rich_help_panel=SAMPLE,
    ),
]
NumSteps = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Take this many denoising steps.",
        show_default="50, bundled models 25, or what the preset or budget chooses",
        rich_help_panel=SAMPLE,
    ),
]
GuidanceScale = Annotated[
    float | None,
    typer.Option(
        help="Use this scale of classifier-free guidance.",
        show_default="7.5, bundled models 3",
        rich_help_panel=SAMPLE,
    ),
]

# Running.
Precision = Annotated[
    str,
    typer.Option(
        help="Compute the pipeline in float32, float16 or bfloat16; auto is float16 on CUDA devices.",
        rich_help_panel=RUN,
    ),
]
MaxRows = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Denoise, decode and score at most this many rows at a time, where memory is short. It changes no image.",
        show_default="all",
        rich_help_panel=RUN,
    ),
]

# Steering, of `generate` and of runs over lists of prompts.
REWARD_FORMS = (
    "'a+b' takes the mean of two rewards, each brought to mean 0 and spread 1 over a prompt's images (z-scores); "
    "'2*a+b' weighs it; 'a+b-0.5*sd' takes half their standard deviation off; 'a|b|c' lets them vote on every pair; "
    "'a>b' guides by a and lets b choose among the final images."
)
RewardOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME:]KEY=VALUE",
        help="Set an option of the reward, for example path=FOLDER. With several combined, NAME says which one is "
        "meant.",
        show_default="the reward's own",
        rich_help_panel=STEER,
    ),
]
RewardsOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME:]KEY=VALUE",
        help="Set an option of a reward, for example clip-score:path=FOLDER; without NAME of all of them.",
        show_default="the rewards' own",
    ),
]
Preset = Annotated[
    str,
    typer.Option(help="Start from these settings; `fk-steer presets` lists them.", rich_help_panel=STEER),
]
Particles = Annotated[
    int | None,
    typer.Option(
        help="Denoise this many candidates of each image side by side (particles); the best one is kept.",
        show_default="the preset's",
        rich_help_panel=STEER,
    ),
]
Budget = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="CALLS",
        help="Spend at most this many denoiser calls on an image, guidance not counted, in place of --particles. It "
        "chooses the particles, and the steps and sampler that are left open.",
        show_default="none",
        rich_help_panel=STEER,
    ),
]
LMBDA_MEANING = (
    "Favour an image of reward r by exp(lambda x r). Where lambda is solved for (tempering target-ess, as in adaptive "
    "and finish) this is an upper limit alone, and a low one steers less; tempering constant keeps to it, rising and "
    "geometric reach it, or a multiple of it, at the end of the loop."
)
Lmbda = Annotated[
    float | None,
    typer.Option(
        help=LMBDA_MEANING,
        show_default="no limit where it is solved for, else the reward's own",
        rich_help_panel=STEER,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Change any other setting of the preset, dotted for a part of one: --set schedule.at=0.4,0.6 or --set "
        "tempering=constant. `fk-steer presets NAME` prints them all. It may be repeated.",
        show_default="the preset's",
        rich_help_panel=STEER,
    ),
]

# Of benchmarks.
Model = Annotated[str, typer.Option(help="Draw with this bundled pipeline, shapes or shapes-xl.")]
AnyModel = Annotated[str, typer.Option(help="Draw with this pipeline: a hub id, a folder, or a bundled one.")]
Guide = Annotated[str, typer.Option(help=f"Steer by this reward; `fk-steer rewards` lists them. {REWARD_FORMS}")]
Seeds = Annotated[int, typer.Option(min=1, help="Repeat everything this often, with other noise each time.")]
PerTask = Annotated[int, typer.Option(min=1, help="Take this many prompts of each of GenEval's six tasks.")]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Take this many denoising steps.", show_default="the model's usual number")
]
Guidance = Annotated[
    float | None,
    typer.Option(help="Use this scale of classifier-free guidance.", show_default="the model's usual scale"),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Put this many prompts into one call of the pipeline.")]
Processes = Annotated[int, typer.Option(min=1, help="Run this many repeats at a time, on one thread each.")]
Workers = Annotated[int, typer.Option(min=1, help="Start this many workers, on one thread or one GPU each.")]
Samples = Annotated[int, typer.Option(min=1, help="Make this many images of each prompt.")]
Limit = Annotated[
    int | None,
    typer.Option(min=1, help="Take this many prompts, spread evenly over the tasks or categories.", show_default="all"),
]
FullSize = Annotated[
    str | None,
    typer.Option(
        help="Measure an architecture of published size, sd21 or sdxl, in place of a bundled model.",
        show_default="the bundled model",
    ),
]
RandomWeights = Annotated[
    bool,
    typer.Option(
        "--random-weights", help="Agree to the random weights that --full-size runs on; costs do not depend on them."
    ),
]
Repeats = Annotated[int, typer.Option(min=1, help="Measure this often, after a warm-up that does not count.")]
Size = Annotated[
    int | None,
    typer.Option(min=64, help="Make images of this height and width in pixels.", show_default="the model's own"),
]
Half = Annotated[
    bool,
    typer.Option("--half", help="Compute denoiser and decoder in bfloat16, compiled: a third of the time on CPUs."),
]
SizedPreset = Annotated[
    str,
    typer.Option(
        help="Take these settings: PRESET, PRESET:PARTICLES, or PRESET@LOOPS for as many particles as cost that many "
        "whole loops."
    ),
]
ResultsFolder = Annotated[Path, typer.Option(help="Write images, records and tables to this folder.")]


def one_line_errors() -> AbstractContextManager[None]:
    """Turn errors into one line and exit status 1."""
    return errors_as_lines("error:")


def start(speaks: bool = True) -> None:
    """Say at once that something is being done, and import what takes seconds to.

    Args:
        speaks: whether to say it: one of several processes does, and none whose output is data.
    """
    from ..console import say

    if speaks:
        say("Loading PyTorch and Diffusers ...")
    from ..loading import quiet_libraries

    quiet_libraries()


def warn_of_lmbda(preset: str, lmbda: float | None) -> None:
    """Warn that a preset finds its lambda by itself, where one is given."""
    import warnings

    from ..search import PRESETS
    from ..smc import TargetESS

    settings = PRESETS[preset].settings if preset in PRESETS else None
    solved = isinstance(getattr(settings, "tempering", None), TargetESS)
    if lmbda is not None and solved:
        warnings.warn(
            f"The preset '{preset}' solves for lambda, so --lmbda {lmbda:g} is an upper limit alone: below what would "
            "be found it steers less. Leave it out, or choose a preset that keeps to a given lambda, --preset fk.",
            stacklevel=2,
        )

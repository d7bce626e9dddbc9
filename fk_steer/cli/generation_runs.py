"""`fk-steer bench run`, `geneval`, `drawbench` and other published lists: generation runs."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..console import console, progress_bar, stoppable
from ..options import options_of, read_assignments
from .options import (
    DEFAULT_PRESET,
    DEFAULT_REWARD,
    MAKE,
    REWARD_FORMS,
    RUN,
    STEER,
    Budget,
    Device,
    GuidanceScale,
    Height,
    Lmbda,
    Lora,
    MaxRows,
    NumSteps,
    Particles,
    Pipeline,
    Precision,
    Preset,
    Repair,
    RewardOption,
    Scheduler,
    Set,
    Width,
    one_line_errors,
    start,
    warn_of_lmbda,
)


app = typer.Typer(help="Make images for whole lists of prompts: GenEval, DrawBench, your own.", no_args_is_help=True)


class Engine(str, Enum):
    local = "local"
    ray = "ray"


def run(
    out: Annotated[Path, typer.Option(help="Write images and records to this folder.", rich_help_panel=MAKE)],
    model: Pipeline,
    lora: Lora = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="Take this list: shapes, geneval, drawbench, dpg, geneval2, t2i-compbench, unigenbench (or "
            "unigenbench-long, unigenbench-zh, unigenbench-zh-long), oneig, tiif (or tiif-long), wise, or a file with "
            "one prompt a line, or JSON lines (.jsonl) or a table (.csv, .tsv) with a 'prompt' each.",
            show_default="the file of --prompts-file",
            rich_help_panel=MAKE,
        ),
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            help="Read the prompts from this file: a list of your own, or beside --prompts with the name of a "
            "published list a copy of that.",
            show_default="published lists ship or are fetched once, where their terms allow it",
            rich_help_panel=MAKE,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Take this many prompts, spread evenly over the tasks or categories.",
            show_default="all",
            rich_help_panel=MAKE,
        ),
    ] = None,
    samples_per_prompt: Annotated[
        int,
        typer.Option(
            min=1,
            help="Make this many images of each prompt, each the best of a steered call of its own.",
            rich_help_panel=MAKE,
        ),
    ] = 4,
    seeds: Annotated[
        int, typer.Option(min=1, help="Repeat all samples this often, with other noise.", rich_help_panel=MAKE)
    ] = 1,
    height: Height = None,
    width: Width = None,
    reward: Annotated[
        str,
        typer.Option(
            help=f"Steer by this reward; none makes images of the stock pipeline. {REWARD_FORMS}",
            rich_help_panel=STEER,
        ),
    ] = DEFAULT_REWARD,
    reward_option: RewardOption = None,
    preset: Preset = DEFAULT_PRESET,
    particles: Particles = None,
    budget: Budget = None,
    lmbda: Lmbda = None,
    changes: Set = None,
    steps: NumSteps = None,
    guidance: GuidanceScale = None,
    scheduler: Scheduler = None,
    batch_size: Annotated[
        int,
        typer.Option(
            min=1,
            help="Put this many samples (prompts x samples of each) into one call of the pipeline.",
            rich_help_panel=RUN,
        ),
    ] = 4,
    max_rows: MaxRows = None,
    dtype: Precision = "auto",
    device: Device = None,
    processes: Annotated[
        int,
        typer.Option(min=1, help="Start this many workers, on one thread or one GPU each.", rich_help_panel=RUN),
    ] = 1,
    engine: Annotated[
        Engine, typer.Option(help="Run the workers on this machine or on a Ray cluster.", rich_help_panel=RUN)
    ] = Engine.local,
    repair: Repair = False,
) -> None:
    """Make steered images for any list of prompts, in GenEval's layout, with a record beside each image.

    Run again it makes what is missing. Under `accelerate launch`, or started several times, the processes share the
    work.
    """
    with stoppable(), one_line_errors():
        if prompts is None:
            if prompts_file is None:
                raise ValueError("Expected a list of prompts by --prompts, or a file of them by --prompts-file.")
            prompts, prompts_file = str(prompts_file), None
        steered = reward != "none"
        options = options_of(reward_option or [], reward) if steered else {}
        speaks = os.environ.get("RANK", "0") == "0"
        start(speaks)
        from ..evaluation.generation import GenerationSettings, generate, read_records
        from ..evaluation.statistics import mean_by, plus_minus
        from ..report.trace import Trace, told

        settings = GenerationSettings(
            model=model,
            prompts=prompts,
            prompts_file=prompts_file,
            limit=limit,
            reward=reward if steered else None,
            reward_options=options,
            preset=preset,
            particles=particles,
            budget=budget,
            lmbda=lmbda,
            changes=read_assignments(changes or []),
            samples_per_prompt=samples_per_prompt,
            seeds=tuple(range(seeds)),
            steps=steps,
            guidance=guidance,
            scheduler=scheduler,
            height=height,
            width=width,
            batch_size=batch_size,
            max_rows=max_rows,
            dtype=dtype,
            lora=lora,
        )
        if steered:
            warn_of_lmbda(preset, lmbda)
        best = Best(out)
        with progress_bar(speaks) as bar:
            task = bar.add_task("samples", total=None)

            def progress(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total, note=best.so_far() if steered and speaks else "")

            generate(
                settings,
                out,
                processes=processes,
                engine=engine.value,
                device=device,
                repair=repair,
                progress=progress,
                before=show_plan if speaks else lambda plan: None,
            )
        if speaks:
            records = read_records(out)
            text = f"{len(records)} images in {out}"
            if steered:
                mean = mean_by((one.prompt_index, one.reward) for one in records if one.reward is not None)
                text += f", mean reward {plus_minus(mean, '.4f')}"
                # All calls of a run are alike.
                first = next(out.glob("*/traces/*.json"), None)
                if first is not None and (choice := told(Trace.load(first).chosen)):
                    text += f"; {choice}"
            console.print(text, highlight=False, soft_wrap=True)


class Best:
    """The best and the mean reward of a run, by the records that are there.

    Args:
        out: the run's folder.
    """

    def __init__(self, out: Path) -> None:
        self._out, self._rewards = out, dict[Path, float]()

    def so_far(self) -> str:
        """Both in a few words; nothing before the first."""
        from ..evaluation.generation import SampleRecord
        from ..records import read_record

        for path in self._out.glob("*/records/*.json"):
            if path not in self._rewards and (reward := read_record(path, SampleRecord.from_dict).reward) is not None:
                self._rewards[path] = reward
        if not self._rewards:
            return ""
        found = self._rewards.values()
        return f"reward: mean {sum(found) / len(found):.3f}, best {max(found):.3f}"


def show_plan(plan: Any) -> None:
    """What a run loads and costs, before it begins."""
    from ..loading import find_model
    from ..running import costs, say_loading, show_costs

    settings, steering = plan.settings, plan.settings.steering()
    say_loading(find_model(settings.model), settings.reward, settings.reward_options)
    if steering is not None:
        steps = settings.steps or steering.steps or 50
        guided = settings.guidance > 1
        together = min(settings.batch_size, plan.num_samples)
        show_costs(costs(steering, steps, guided, plan.num_samples, settings.max_rows, together=together))


ListFile = Annotated[
    Path | None,
    typer.Option(
        help="Read the published list from this copy of it.",
        show_default="the one that ships, or fetched once",
        rich_help_panel=MAKE,
    ),
]


def _of(prompts: str, doc: str) -> Callable[..., None]:
    """`run` with its list of prompts chosen."""

    @functools.wraps(run)
    def command(**options: Any) -> None:
        run(prompts=prompts, **options)

    whole = inspect.signature(run, eval_str=True)
    rest = [
        parameter.replace(annotation=ListFile) if name == "prompts_file" else parameter
        for name, parameter in whole.parameters.items()
        if name != "prompts"
    ]
    command.__signature__ = whole.replace(parameters=rest)  # type: ignore[attr-defined]
    command.__name__, command.__doc__ = prompts, f"{doc}\n\n    Otherwise as `fk-steer bench run`.\n"
    return command


LISTED = {
    "geneval": "Make steered images for GenEval's prompts, as its evaluator and `fk-steer eval geneval` take them.",
    "drawbench": "Make steered images for DrawBench's prompts, in GenEval's layout.",
    "dpg": "Make steered images for the 1,065 long prompts of DPG-Bench, for `fk-steer eval dpg`.",
    "geneval2": "Make steered images for GenEval 2's prompts, read from your copy, for `fk-steer eval geneval2`.",
    "t2i-compbench": "Make steered images for the prompts of T2I-CompBench++, for `fk-steer eval t2i-compbench`.",
    "unigenbench": "Make steered images for UniGenBench++'s short English prompts, for `fk-steer eval unigenbench`.",
    "oneig": "Make steered images for OneIG-Bench's prompts, read from your copy, for `fk-steer eval oneig`.",
    "tiif": "Make steered images for TIIF-Bench's short prompts, read from your copy, for `fk-steer eval tiif`.",
    "wise": "Make steered images for WISE's prompts, read from your copy, for `fk-steer eval wise`.",
}
"""List of prompts -> what its command does."""

app.command()(run)
for name, doc in LISTED.items():
    app.command(name)(_of(name, doc))

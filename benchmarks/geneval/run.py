"""GenEval's prompts, steered by a reward and not, by GenEval's official rules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fk_steer.cli.options import (
    DEFAULT_MODEL,
    DEFAULT_PRESET,
    DEFAULT_REWARD,
    AnyModel,
    Device,
    Guide,
    Limit,
    Samples,
    Steps,
    Workers,
    one_line_errors,
)
from fk_steer.console import console
from fk_steer.evaluation.generation import GenerationSettings, generate
from fk_steer.evaluation.geneval.accuracy import detector_settings, evaluate_folders
from fk_steer.evaluation.geneval.evaluator import lines
from fk_steer.files import write_json
from fk_steer.loading import quiet_libraries
from fk_steer.shapes import BUNDLED


app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Write images, verdicts and geneval.json to this folder.")],
    model: AnyModel = DEFAULT_MODEL,
    reward: Guide = DEFAULT_REWARD,
    preset: Annotated[
        list[str] | None,
        typer.Option(
            help="Steer by these settings, a run each; `fk-steer presets` lists them.", show_default=DEFAULT_PRESET
        ),
    ] = None,
    particles: Annotated[int, typer.Option(min=1, help="Denoise this many candidates of each image (particles).")] = 4,
    samples: Samples = 4,
    limit: Limit = None,
    steps: Steps = None,
    processes: Workers = 1,
    device: Device = None,
) -> None:
    """Measure accuracy by task without steering and with it; bundled models get the bundled world's prompts."""
    quiet_libraries()
    with one_line_errors():
        world = model in BUNDLED
        stock = GenerationSettings(
            model, "shapes" if world else "geneval", reward=None, limit=limit, samples_per_prompt=samples, steps=steps
        )
        runs = {"none": stock}
        for name in preset or [DEFAULT_PRESET]:
            runs[f"{reward}, {name}"] = replace(stock, reward=reward, preset=name, particles=particles)
        folders = {name: out / name.replace(", ", "-") for name in runs}
        for name, settings in runs.items():
            generate(settings, folders[name], processes=processes, device=device)
        judged = [(folder, folder / "evaluation") for folder in folders.values()]
        summaries = evaluate_folders(judged, detector_settings("shapes" if world else "mask2former"), device)
        for name, summary in zip(runs, summaries):
            console.rule(name)
            console.print("\n".join(lines(summary)), highlight=False)
        rows = {name: {**one.tasks, "overall": one.overall} for name, one in zip(runs, summaries)}
        write_json(out / "geneval.json", {"model": model, "reward": reward, "runs": rows})


if __name__ == "__main__":
    app()

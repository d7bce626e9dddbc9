"""GenEval's prompts, steered by a reward and not, by GenEval's official rules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fk_steer.cli.options import Device, one_line_errors
from fk_steer.console import console
from fk_steer.evaluation.generation import GenerationSettings, generate
from fk_steer.evaluation.geneval.accuracy import detector_settings, evaluate_folders
from fk_steer.evaluation.geneval.evaluator import lines
from fk_steer.files import write_json
from fk_steer.loading import quiet_libraries
from fk_steer.search import DEFAULT_PRESET
from fk_steer.shapes import BUNDLED


app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder for images, verdicts and geneval.json.")],
    model: Annotated[str, typer.Option(help="Hub id or folder of a pipeline, or a bundled one.")] = "shapes",
    reward: Annotated[str, typer.Option(help="Guide.")] = "clip-score",
    preset: Annotated[list[str] | None, typer.Option(help="Of the steered runs. [default: adaptive]")] = None,
    particles: Annotated[int, typer.Option(min=1)] = 4,
    samples: Annotated[int, typer.Option(min=1, help="Images per prompt.")] = 4,
    limit: Annotated[int | None, typer.Option(min=1, help="Prompts, evenly over the tasks. [default: all]")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps. [default: 50; bundled models 25]")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Workers: one thread each, or a GPU in turn.")] = 1,
    device: Device = None,
) -> None:
    """Accuracy by task of the stock pipeline and of steered ones; bundled models get the bundled world's prompts."""
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

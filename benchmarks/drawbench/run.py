"""DrawBench's prompts, steered by a reward and not, by a panel of other rewards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fk_steer.cli.options import Device, one_line_errors
from fk_steer.console import show_on_its_side
from fk_steer.evaluation.folders import read_items
from fk_steer.evaluation.generation import GenerationSettings, generate
from fk_steer.evaluation.panel.panel import chosen, score_all
from fk_steer.evaluation.panel.scores import summarize_panel
from fk_steer.evaluation.statistics import plus_minus
from fk_steer.files import write_json
from fk_steer.loading import quiet_libraries
from fk_steer.shapes import BUNDLED


app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder for images, scores and drawbench.json.")],
    model: Annotated[str, typer.Option(help="Hub id or folder of a pipeline, or a bundled one.")] = "shapes",
    reward: Annotated[str, typer.Option(help="Guide.")] = "clip-score",
    preset: Annotated[str, typer.Option(help="Of the steered run.")] = "finish",
    particles: Annotated[int, typer.Option(min=1)] = 4,
    samples: Annotated[int, typer.Option(min=1, help="Images per prompt.")] = 4,
    limit: Annotated[int | None, typer.Option(min=1, help="Prompts, evenly over categories. [default: all]")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps. [default: 50; bundled models 25]")] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="As for `fk-steer eval panel`. [default: its; bundled models the world's]")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images scored at a time by a metric.")] = 8,
    processes: Annotated[int, typer.Option(min=1, help="Workers: one thread each, or a GPU in turn.")] = 1,
    device: Device = None,
) -> None:
    """Metric means of the stock pipeline and of a steered one; bundled models get the bundled world's prompts."""
    quiet_libraries()
    with one_line_errors():
        world = model in BUNDLED
        stock = GenerationSettings(
            model, "shapes" if world else "drawbench", reward=None, limit=limit, samples_per_prompt=samples, steps=steps
        )
        runs = {"none": stock, reward: replace(stock, reward=reward, preset=preset, particles=particles)}
        for name, settings in runs.items():
            generate(settings, out / name, processes=processes, device=device)
        metrics = chosen(metric, None, None, world)
        items = {name: read_items(out / name) for name in runs}
        failures = score_all([(items[name], out / name / "panel") for name in runs], metrics, batch_size, device)
        rows = {name: summarize_panel(items[name], out / name / "panel", metrics) for name in runs}
        write_json(out / "drawbench.json", {"model": model, "guide": reward, "runs": rows, "failures": failures})
        # A single image a prompt has no diversity.
        labels = [metric.label for metric in metrics if all(metric.label in row for row in rows.values())]
        cells = {
            name: [plus_minus((row[label]["mean"], row[label]["standard_error"]), ".4f") for label in labels]
            for name, row in rows.items()
        }
        show_on_its_side([["guide", *labels], *([name, *row] for name, row in cells.items())])
    if failures:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()

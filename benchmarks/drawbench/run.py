"""DrawBench's prompts, steered by a reward and not, by a panel of other rewards."""

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
    Preset,
    Samples,
    Steps,
    Workers,
    one_line_errors,
)
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
    out: Annotated[Path, typer.Option(help="Write images, scores and drawbench.json to this folder.")],
    model: AnyModel = DEFAULT_MODEL,
    reward: Guide = DEFAULT_REWARD,
    preset: Preset = DEFAULT_PRESET,
    particles: Annotated[int, typer.Option(min=1, help="Denoise this many candidates of each image (particles).")] = 4,
    samples: Samples = 4,
    limit: Limit = None,
    steps: Steps = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Score by these rewards, as `fk-steer eval panel` does.", show_default="its, or the bundled world's"
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Let a metric score this many images at a time.")] = 8,
    processes: Workers = 1,
    device: Device = None,
) -> None:
    """Score the stock pipeline and a steered one by other rewards; bundled models get the bundled world's prompts."""
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

"""Rewards as guides, side by side: GenEval's tasks and a panel of metrics, on one model or several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fk_steer.cli.options import Device, Limit, Samples, Steps, Workers, one_line_errors
from fk_steer.evaluation.comparison.run import run
from fk_steer.loading import quiet_libraries
from fk_steer.shapes import BUNDLED


app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Write images, scores, tables and report to this folder.")],
    model: Annotated[
        list[str] | None,
        typer.Option(help="Draw with these pipelines: sd21, sdxl, or bundled ones.", show_default="the bundled ones"),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            help="Compare these rewards as guides; none is the stock pipeline.",
            show_default="none, clip-score, image-reward, llava-reward",
        ),
    ] = None,
    limit: Limit = None,
    samples: Samples = 4,
    steps: Steps = None,
    report_prompts: Annotated[
        int, typer.Option(min=0, help="Show the images of this many prompts in the report.")
    ] = 24,
    processes: Workers = 1,
    device: Device = None,
) -> None:
    """Tell what each guide is worth, by accuracy and by the other guides; `fk-steer compare` takes every detail."""
    quiet_libraries()
    with one_line_errors():
        models = model or list(BUNDLED)
        generation = {"limit": limit, "samples_per_prompt": samples, "steps": steps}
        config: dict[str, Any] = {
            "models": models,
            "rewards": {name: {} for name in reward or ("none", "clip-score", "image-reward", "llava-reward")},
            "prompts": ["shapes"] if set(models) <= set(BUNDLED) else ["geneval", "drawbench"],
            "generation": {name: value for name, value in generation.items() if value is not None},
        }
        failures = run(config, out, device=device, processes=processes, report_prompts=report_prompts)
    if failures:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()

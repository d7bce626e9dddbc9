"""Rewards as guides, side by side: GenEval's tasks and a panel of metrics, on one model or several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fk_steer.cli.options import Device, one_line_errors
from fk_steer.evaluation.comparison.run import run
from fk_steer.loading import quiet_libraries
from fk_steer.shapes import BUNDLED


app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder for images, scores, tables and report.")],
    model: Annotated[list[str] | None, typer.Option(help="'sd21', 'sdxl', or bundled. [default: bundled ones]")] = None,
    reward: Annotated[
        list[str] | None, typer.Option(help="Guides. [default: none, clip-score, image-reward, llava-reward]")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Prompts of each list. [default: all]")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Images per prompt.")] = 4,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps. [default: 50; bundled models 25]")] = None,
    report_prompts: Annotated[int, typer.Option(min=0, help="Prompts shown with images in the report.")] = 24,
    processes: Annotated[int, typer.Option(min=1, help="Workers: one thread each, or a GPU in turn.")] = 1,
    device: Device = None,
) -> None:
    """What each guide is worth, by accuracy and by the other guides; `fk-steer compare` takes every detail."""
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

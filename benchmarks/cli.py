"""`fk-steer bench ...`."""

from __future__ import annotations

import typer

from .cost_cli import parallel, preview, rewards, speed
from .generation_cli import drawbench, geneval, run, scaling
from .shapes_cli import ablation, compute, llava, shapes


app = typer.Typer(help="Benchmarks.", no_args_is_help=True)
for command in (run, geneval, drawbench, scaling, shapes, compute, ablation, llava, speed, parallel, preview, rewards):
    app.command()(command)

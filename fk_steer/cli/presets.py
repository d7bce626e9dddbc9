"""`fk-steer presets`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from ..console import console
from .options import one_line_errors


def presets(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="Print all settings of this preset as JSON.", show_default="list all presets"
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of the docs, in Markdown.")] = False,
) -> None:
    """List the presets, or print the settings of one."""
    from ..search import DEFAULT_PRESET, PRESETS
    from ..search import preset as settings_of
    from ..search.presets import markdown_table

    with one_line_errors():
        if name is not None:
            console.print_json(json.dumps(settings_of(name).to_dict()))
            return
        if markdown:
            print(markdown_table(), end="")
            return
        default = _flat(PRESETS[DEFAULT_PRESET].settings.to_dict())
        table = Table("name", "what it is", f"settings that differ from '{DEFAULT_PRESET}'", box=None, padding=(0, 2))
        for key, preset in PRESETS.items():
            settings = _flat(preset.settings.to_dict())
            differences = [f"{field} {value}" for field, value in settings.items() if value != default.get(field, ...)]
            table.add_row(key, f"{preset.summary}\n[dim]{preset.use_when}[/dim]", "\n".join(differences))
        console.print(table)


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for field, value in settings.items():
        flat |= {f"{field}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {field: value}
    return flat

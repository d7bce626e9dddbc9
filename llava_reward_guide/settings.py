"""Settings of training runs: fields of a dataclass, which a YAML file or the flags of a command give."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from .packages import require
from .texts import read_yaml


Settings = TypeVar("Settings")


def option(default: Any, help: str, without: str | None = None) -> Any:
    """A setting, a field of a dataclass.

    Args:
        default: of it.
        help: what it does, in a sentence.
        without: what happens by default, where the default does not say it.
    """
    return dataclasses.field(default=default, metadata={"help": help, "without": without})


def read_settings(kind: type[Settings], path: Path | None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings from a YAML file.

    Args:
        kind: their dataclass.
        path: of the file; None for the defaults.
        overrides: settings in place of the file's.

    Raises:
        ValueError: for unknown settings, or values of the wrong type.
    """
    values: dict[str, Any] = {}
    if path is not None:
        loaded = read_yaml(path) or {}
        if not isinstance(loaded, dict):
            raise ValueError(f"Expected `name: value` in '{path}', but got {type(loaded).__name__}.")
        values.update(loaded)
    values.update(overrides or {})
    types = get_type_hints(kind)
    if unknown := sorted(set(values) - set(types)):
        raise ValueError(f"Unknown settings {', '.join(unknown)}. Known: {', '.join(types)}.")
    return kind(**{name: _typed(name, value, types[name]) for name, value in values.items()})


def _typed(name: str, value: Any, wanted: Any) -> Any:
    """YAML reads 2e-4 as text and 1 as an integer."""
    kinds = get_args(wanted) if isinstance(wanted, UnionType) else (wanted,)
    if value is None and type(None) in kinds:
        return None
    several = next((kind for kind in kinds if get_origin(kind) is list), None)
    if several is not None and isinstance(value, (list, tuple)):
        return [_typed(name, one, get_args(several)[0]) for one in value]
    kind = next(kind for kind in kinds if kind is not type(None))
    if kind is several:
        raise ValueError(f"Expected a list for `{name}`, but got {value!r}.")
    try:
        if kind is float and not isinstance(value, bool):
            return float(value)
    except ValueError:
        pass
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"Expected `{name}` to be {kind.__name__}, but got {value!r}.")
    return value


def take_settings(command: Callable[..., None], kind: type[Any], config_help: str) -> None:
    """Give a command a flag for every setting, and `--config` for a file with them; what is not given is None.

    Args:
        command: takes keyword arguments of any name.
        kind: dataclass of the settings.
        config_help: what `--config` reads, a sentence without its end.
    """
    require("typer")
    import typer

    only = inspect.Parameter.KEYWORD_ONLY
    known = f"{config_help}; options go before it."
    config = Annotated[str | None, typer.Option("--config", "-c", help=known, show_default="none")]
    parameters = [inspect.Parameter("config", only, default=None, annotation=config)]
    types = get_type_hints(kind)
    for item in dataclasses.fields(kind):
        # A flag that may be repeated stands for a list.
        several = next((one for one in get_args(types[item.name]) if get_origin(one) is list), None)
        # The default itself is None: only what is given goes before a file.
        # One that is off can only be turned on, which leaves the help text its room.
        names = [f"--{item.name.replace('_', '-')}"] if item.default is False else []
        flag = typer.Option(
            *names, help=item.metadata["help"], show_default=item.metadata["without"] or _shown(item.default)
        )
        annotation = Annotated[(several or types[item.name]) | None, flag]  # type: ignore[valid-type]
        parameters.append(inspect.Parameter(item.name, only, default=None, annotation=annotation))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"{default:g}" if isinstance(default, float) else str(default)

"""What the command lines share: errors and warnings as one line, texts that flow, devices, and options of several
commands."""

from __future__ import annotations

import functools
import inspect
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from .packages import PACKAGES, missing


try:
    import typer
except ImportError as error:
    raise missing("typer") from error


TRACEBACK = "FK_STEER_TRACEBACK"
"""Environment variable that has errors shown with where they come from."""

_OF_USERS = (ValueError, OSError, ImportError, ArithmeticError)
"""What is raised, with a message that says what to do, for what a user can do something about."""


@contextmanager
def errors_as_lines(prefix: str) -> Iterator[None]:
    """Turn errors into one line and exit status 1, warnings into one line.

    Args:
        prefix: of errors.
    """
    shown_before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {_on_a_line(message)}\n"
    try:
        yield
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        if isinstance(error, ModuleNotFoundError) and (error.name or "") in PACKAGES:
            error = missing(str(error.name))
        text = _on_a_line(error)
        if isinstance(error, OSError) and text.startswith("[Errno"):
            # Numbers are for programs.
            text = text.partition("] ")[2]
        if not isinstance(error, _OF_USERS):
            text = f"{type(error).__name__}: {text} (With {TRACEBACK}=1 it is shown where this comes from.)"
        typer.secho(prefix, err=True, fg=typer.colors.RED, nl=False)
        typer.echo(f" {text}", err=True)
        raise typer.Exit(1) from error
    finally:
        warnings.formatwarning = shown_before


def print_version(program: str) -> Callable[[bool], None]:
    """The callback of a `--version` option, which prints it and ends."""

    def show(asked: bool) -> None:
        if asked:
            typer.echo(f"{program} {version('fk-steer')}")
            raise typer.Exit

    return show


def flowing(app: typer.Typer) -> typer.Typer:
    """Let each paragraph of the commands' texts flow: `--help` breaks lines where a terminal ends, not the source."""
    for command in app.registered_commands:
        command.help = _paragraphs(command.help or getattr(command.callback, "__doc__", None))
    if app.registered_callback is not None:
        callback = app.registered_callback
        callback.help = _paragraphs(callback.help or getattr(callback.callback, "__doc__", None))
    for group in app.registered_groups:
        if group.typer_instance is not None:
            flowing(group.typer_instance)
    return app


def _paragraphs(text: object) -> str | None:
    if not isinstance(text, str):
        return None
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def taking(kind: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the fields of a dataclass as options, in the place of its first parameter, which gets an instance.
    Commands that share options so declare them once.

    Args:
        kind: a dataclass whose annotations are those of options.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        first, *own = inspect.signature(function, eval_str=True).parameters.values()
        shared = inspect.signature(kind, eval_str=True).parameters

        @functools.wraps(function)
        def command(**options: Any) -> None:
            given = kind(**{name: options.pop(name) for name in shared})
            function(given, **options)

        parameters = [one.replace(kind=one.KEYWORD_ONLY) for one in (*shared.values(), *own)]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        return command

    return decorate


def usable_device(device: str | None) -> str | None:
    """A device as it is given, if PyTorch can use it here; for options.

    Raises:
        typer.BadParameter: saying which devices there are.
    """
    if device is None:
        return None
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        wanted = torch.device(device)
        # Asking for memory would start CUDA, in a process whose workers are those that need it.
        if wanted.type == "cuda" and (wanted.index or 0) >= count:
            raise ValueError(device)
        if wanted.type != "cuda":
            torch.zeros(1, device=wanted).item()
    # Each kind of device has an error of its own for not being there.
    except Exception as error:
        there = ["cpu", *(["cuda"] if count else []), *[f"cuda:{index}" for index in range(count)]]
        if torch.backends.mps.is_available():
            there.append("mps")
        raise typer.BadParameter(f"{device!r} cannot be used here. There is: {', '.join(there)}.") from error
    return device


def _on_a_line(message: object) -> str:
    return " ".join(str(message).split()) or type(message).__name__

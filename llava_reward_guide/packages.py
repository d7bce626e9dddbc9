"""Optional packages: what each is for, which extra of the installation brings it, and the line for a missing one."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping


PACKAGES: Mapping[str, tuple[str, str]] = {
    "typer": ("cli", "The command line"),
    "rich": ("cli", "The command line"),
    "jinja2": ("reports", "A report page"),
    "matplotlib": ("reports", "A plot"),
    "scipy": ("benchmarks", "Judging the bundled shapes and computing agreement"),
    "peft": ("llava", "Keeping LoRA apart from the weights"),
    "datasets": ("train", "A Hugging Face dataset"),
    "pyarrow": ("train", "A dataset in Parquet"),
    "av": ("video", "Reading a film"),
    "rapidfuzz": ("train", "Filtering by edit distance"),
    "tensorboard": ("train", "Logging to TensorBoard"),
    "openai": ("chat", "A chat judge, which asks an OpenAI-compatible server,"),
    "fastapi": ("server", "The server of rewards"),
    "uvicorn": ("server", "The server of rewards"),
    "python_multipart": ("server", "The server of rewards"),
    "prometheus_client": ("server", "The server of rewards"),
    "flash_attn": ("flash", "FlashAttention 2"),
    "bitsandbytes": ("quantize", "Quantization"),
    "ray": ("ray", "The engine 'ray'"),
    "gradio": ("app", "The app"),
    "pandas": ("pandas", "`Trace.to_dataframe`"),
}
"""Module -> the extra that brings it, and what needs it. Nothing of these is needed to steer."""


def require(module: str, what: str | None = None, extra: str | None = None) -> None:
    """Look for an optional package before it is imported.

    Args:
        module: one of `PACKAGES`.
        what: needs it, as a sentence begins; None for what `PACKAGES` says.
        extra: that brings it too, with what else is needed there; None for the one that `PACKAGES` says.

    Raises:
        ImportError: if it is not installed; one line with the command that installs it.
    """
    try:
        found = importlib.util.find_spec(module) is not None
    # What stands in the way of a module may raise instead of finding nothing.
    except (ImportError, ValueError):
        found = module in sys.modules and sys.modules[module] is not None
    if not found:
        raise missing(module, what, extra)


def missing(module: str, what: str | None = None, extra: str | None = None) -> ImportError:
    """The error for an optional package that is not installed; see `require`."""
    usual_extra, usual = PACKAGES[module]
    return ImportError(
        f'{what or usual} needs {module}, which is not installed: pip install -e ".[{extra or usual_extra}]" in the '
        "folder of fk-steer.",
        name=module,
    )


def require_for_commands() -> None:
    """End a command line, with one line and exit status 1, unless all packages of its extra are installed: some are
    needed when the work is done."""
    try:
        for module in ("typer", "rich", "jinja2", "matplotlib", "scipy"):
            require(module, "The command line", "cli")
    except ImportError as error:
        raise SystemExit(f"Error: {error}") from None

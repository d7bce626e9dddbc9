"""Reading tensors from files, and writing files."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


class CheckpointError(OSError):
    """A checkpoint that cannot be loaded; the message says what was expected."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A file of tensors: safetensors, or a pickle of which nothing but tensors is loaded.

    Raises:
        CheckpointError: if it cannot be read, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
            raise ValueError(f"it holds a {type(found).__name__}, not tensors by name")
        return dict(found)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"Could not read tensors from '{path}'. Expected safetensors, or a file of torch.save with nothing but "
            f"tensors. ({reason})"
        ) from error


def load_exactly(module: nn.Module, weights: Mapping[str, Tensor], source: str, wanted: str) -> None:
    """`load_state_dict` with one error for names and shapes.

    Raises:
        CheckpointError: unless the weights are those of the module, all of them and no others.
    """
    own = module.state_dict()
    missing, unexpected = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
        for name in sorted(own.keys() & weights.keys())
        if own[name].shape != weights[name].shape
    ]
    if missing or unexpected or shapes:
        raise CheckpointError(
            f"Expected {wanted} in '{source}', but got: missing {', '.join(missing) or 'nothing'}; unexpected "
            f"{', '.join(unexpected) or 'nothing'}; shapes {', '.join(shapes) or 'right'}. Load it with the backbone "
            f"and the settings it was trained with."
        )
    module.load_state_dict(dict(weights))


def write_whole(path: Path, text: str) -> None:
    """Write a text file, complete or not at all."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def on_cpu(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that can be saved."""
    return {name: value.detach().cpu().contiguous() for name, value in weights.items()}

"""Reading tensors from files."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


class CheckpointError(OSError):
    """A checkpoint that cannot be loaded; the message says what was expected."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A file of tensors: safetensors, or a pickle of which nothing but tensors is loaded.

    Raises:
        CheckpointError: if it cannot be read.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(f"Could not read tensors from '{path}': {error}") from error

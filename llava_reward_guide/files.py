"""Reading tensors from files, and writing files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


class CheckpointError(OSError):
    """A checkpoint that cannot be loaded; the message says what was expected."""


# What training scripts put the weights under, beside the state of the optimiser.
_HOLDERS = ("module", "state_dict", "model", "model_state_dict")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A file of tensors: safetensors, or a pickle of which nothing but tensors is loaded.

    Raises:
        CheckpointError: if it cannot be read, holds something else, or tensors that were not gathered.
    """
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
            for holder in _HOLDERS:
                if isinstance(found, Mapping) and isinstance(found.get(holder), Mapping):
                    found = found[holder]
            if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
                raise ValueError(f"it holds a {type(found).__name__}, not tensors by name")
    except Exception as error:  # broken and hostile pickles raise errors of every kind
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"Could not read tensors from '{path}'. Expected safetensors, or a file of torch.save with nothing but "
            f"tensors. ({reason})"
        ) from error
    refuse_empty({str(name): tuple(value.shape) for name, value in found.items() if not value.numel()}, path)
    return dict(found)


def refuse_empty(empty: Mapping[str, tuple[int, ...]], path: object) -> None:
    """Refuse a file of which tensors are empty.

    Args:
        empty: name -> shape of those that are.

    Raises:
        CheckpointError: if there are any.
    """
    if empty:
        some = ", ".join(f"{name} {shape}" for name, shape in list(empty.items())[:3])
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        raise CheckpointError(
            f"Expected whole tensors in '{path}', but these are empty: {some}{more}. DeepSpeed's ZeRO stage 3 leaves "
            f"such where weights are saved without being gathered. Make them whole with the zero_to_fp32.py that lies "
            f"in the folder of the training checkpoint, and save those of this file again."
        )


def is_local(name: str | Path) -> bool:
    """Whether a name can only be meant as a folder or file here: by its form, or as its parent is here."""
    path = Path(name)
    first = str(name).replace("\\", "/").split("/")[0]
    return path.is_absolute() or first in (".", "..", "~") or len(path.parts) > 1 and path.parent.is_dir()


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

"""Multimodal LLMs under the reward. `register` adds one."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ..attention import check_attention
from ..files import CheckpointError, is_local
from ..hub import locate
from ..options import read_mapping
from .base import Backbone, BackboneInputs, BackboneOutput, Row, load_weights
from .text import read_config


_CLASSES: dict[str, str | type[Backbone]] = {
    "phi3_v": "phi3v:Phi3V",
    "qwen2_5_vl": "qwen2_5_vl:Qwen25VL",
    "llava_next": "llava_next:LlavaNext",
}


def register(backbone: type[Backbone]) -> type[Backbone]:
    """Make a backbone known by its `model_type`; usable as a decorator.

    Raises:
        ValueError: if another has that type.
    """
    if _CLASSES.get(backbone.model_type, backbone) is not backbone:
        raise ValueError(f"There is a backbone of type {backbone.model_type!r} already.")
    _CLASSES[backbone.model_type] = backbone
    return backbone


def backbone_class(model_type: str) -> type[Backbone]:
    """The class for a `model_type`.

    Raises:
        ValueError: for an unknown one.
    """
    if model_type not in _CLASSES:
        raise ValueError(f"Expected a backbone of type {', '.join(_CLASSES)}, but got {model_type!r}.")
    found = _CLASSES[model_type]
    if isinstance(found, str):
        module, _, name = found.partition(":")
        found = getattr(import_module(f".{module}", __name__), name)
    return found


def backbone_of(path: str | Path, revision: str | None = None) -> type[Backbone]:
    """The class for the model in a folder or hub repository, by its config.json.

    Raises:
        CheckpointError: if there is none, files are missing beside it, or it is a model of another type.
    """
    _check_files(path, ("config.json",))
    try:
        place = locate(str(path), "backbone", revision)
        config = read_config(place, revision)
        kind = backbone_class(str(config.get("model_type", "")))
        if not config.keys() & {"hidden_size", "text_config"}:
            # Otherwise built at the default sizes, which are those of the largest.
            raise ValueError("Expected the sizes of the model, hidden_size or text_config, in its config.json.")
    except Exception as error:  # the hub, its cache and what is in the file each bring their own
        raise _not_loaded(path, error) from error
    _check_files(place, kind.files)
    _check_weights(Path(place))
    return kind


def load_backbone(path: str | Path, revision: str | None = None, **options: Any) -> Backbone:
    """A backbone from a folder or hub id; `options` are those of `from_pretrained` in `transformers`.

    Raises:
        CheckpointError: if it cannot be loaded, or lacks weights.
        ImportError: if an option needs a package that is not installed.
        ValueError: for an unknown implementation of attention.
    """
    check_attention(options.get("attn_implementation", "sdpa"))
    kind = backbone_of(path, revision)
    try:
        return kind.from_pretrained(locate(str(path), "backbone", revision), revision=revision or "main", **options)
    except (CheckpointError, ImportError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # broken files bring errors of many kinds
        raise _not_loaded(path, error) from error


def _check_files(path: str | Path, names: Sequence[str]) -> None:
    """Look for files of a backbone that is a folder here; an id on the hub passes."""
    folder = Path(path)
    if not folder.is_dir():
        if folder.is_file() or is_local(path):
            what = "which is a file" if folder.is_file() else "but there is no such folder"
            raise CheckpointError(f"Could not load the backbone from '{path}'. Expected a folder, {what}.")
    elif missing := [name for name in names if not (folder / name).is_file()]:
        raise CheckpointError(
            f"Could not load the backbone from '{path}'. Expected {missing[0]} in that folder, but it is missing. A "
            f"backbone has config.json, tokenizer.json and weights."
        )


def _check_weights(folder: Path) -> None:
    """Look for all files of weights of a backbone that is a folder here."""
    if not folder.is_dir():
        return
    indices = [folder / f"{stem}.index.json" for stem in ("model.safetensors", "pytorch_model.bin")]
    whole = [folder / name for name in ("model.safetensors", "pytorch_model.bin")]
    index = next((file for file in indices if file.is_file()), None)
    if any(file.is_file() for file in whole):
        return
    if index is None:
        raise CheckpointError(
            f"Could not load the backbone from '{folder}'. Expected its weights in that folder (model.safetensors, or "
            f"model.safetensors.index.json with the files it names), but they are missing."
        )
    shards = read_mapping(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"Expected a `weight_map` in '{index}', which names the files of the weights.")
    missing = sorted({str(name) for name in shards.values() if not (folder / str(name)).is_file()})
    if missing:
        raise CheckpointError(
            f"Could not load the backbone from '{folder}'. Expected the files that {index.name} names, but "
            f"{', '.join(missing[:3])}{f' and {len(missing) - 3} more' if len(missing) > 3 else ''} "
            f"{'is' if len(missing) == 1 else 'are'} missing. Fetch the folder again."
        )


def _not_loaded(path: str | Path, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ValueError) and reason.startswith("Expected"):
        return CheckpointError(f"Could not load the backbone from '{path}'. {reason}")
    return CheckpointError(
        f"Could not load the backbone from '{path}'. Expected a folder with config.json, tokenizer.json and weights, "
        f"or the id of such a repository on the hub. ({reason})"
    )


__all__ = [
    "Backbone",
    "BackboneInputs",
    "BackboneOutput",
    "Row",
    "backbone_class",
    "backbone_of",
    "load_backbone",
    "load_weights",
    "register",
]

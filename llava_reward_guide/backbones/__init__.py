"""Multimodal LLMs under the reward. `register` adds one."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from ..files import CheckpointError
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
        CheckpointError: if there is none.
        ValueError: for a model of another type.
    """
    try:
        config = read_config(str(path), revision)
    except (OSError, ValueError) as error:
        raise _not_loaded(path, error) from error
    return backbone_class(config.get("model_type", ""))


def load_backbone(path: str | Path, revision: str | None = None, **options: Any) -> Backbone:
    """A backbone from a folder or hub id; `options` are those of `from_pretrained` in `transformers`.

    Raises:
        CheckpointError: if it cannot be loaded, or lacks weights.
        ValueError: for a model of another type.
    """
    kind = backbone_of(path, revision)
    try:
        return kind.from_pretrained(str(path), revision=revision or "main", **options)
    except OSError as error:
        raise _not_loaded(path, error) from error


def _not_loaded(path: str | Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"Could not load the backbone from '{path}'. Expected a folder with config.json, tokenizer.json and weights, "
        f"or the id of such a repository on the hub. ({error})"
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

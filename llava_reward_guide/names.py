"""Names of weights without what training frameworks wrap around a model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .files import CheckpointError


# In front of a name: DistributedDataParallel and DeepSpeed (module), DeepSpeed's engine, peft, torch.compile, FSDP, the
# `model` that most classes of `transformers` keep their layers in, and what trainers call the whole.
_OUTER = frozenset(
    {
        "module", "_forward_module", "base_model", "model", "_orig_mod", "_fsdp_wrapped_module", "_fpw_module",
        "_checkpoint_wrapped_module", "reward_model", "state_dict",
    }
)  # fmt: skip

# Anywhere in a name: compiled, sharded or checkpointed parts of a model.
_INNER = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module"})

# peft keeps a trained copy of a module beside the original.
_TRAINED_COPY, _ORIGINAL = "modules_to_save", "original_module"


def bare(name: str) -> str:
    """A name, or a prefix that ends in a dot, without wrappers.

    `module.model.layers.0.mlp`, `base_model.model.model.layers.0.mlp` and `layers.0.mlp` are one.
    """
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in _OUTER:
        del parts[0]
    if _TRAINED_COPY in parts[:-1]:
        # Followed by the name of the adapter.
        at = parts.index(_TRAINED_COPY)
        del parts[at : at + 2]
    return ".".join(part for part in parts if part not in _INNER)


def bare_weights(weights: Mapping[str, Tensor], source: object) -> dict[str, Tensor]:
    """Weights under their bare names.

    Args:
        source: the file, for messages.

    Raises:
        CheckpointError: if two that differ have one name.
    """
    found: dict[str, Tensor] = {}
    first: dict[str, str] = {}
    for key, value in weights.items():
        if _ORIGINAL in key.split("."):
            continue
        name = bare(key)
        if name in found and not (found[name].shape == value.shape and torch.equal(found[name], value)):
            raise CheckpointError(
                f"Expected one weight '{name}' in '{source}', but found two that differ, '{first[name]}' and '{key}'. "
                f"Keep the one that was trained."
            )
        found.setdefault(name, value)
        first.setdefault(name, key)
    return found

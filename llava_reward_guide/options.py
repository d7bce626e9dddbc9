"""What the small files of a checkpoint say about its reward: read, or refused, but never passed over."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from .config import RewardConfig
from .files import CheckpointError
from .texts import read_text


NEEDED = ("general_preference_tau", "value_head_dim", "add_cross_attention", "is_general_preference")
"""What every published configuration states."""

LAST_LAYER = 32
"""The `layer_id` that the released code takes for the last hidden state after its norm."""

# Arguments of the released training that leave the reward of a trained checkpoint as it is, if dumped beside the rest.
_OF_TRAINING = frozenset(
    {
        "pretrain", "dataset", "dataset_probs", "save_path", "save_steps", "logging_steps", "eval_steps", "ckpt_path",
        "cache_dir", "max_ckpt_num", "max_ckpt_mem", "max_epochs", "micro_train_batch_size", "accumulated_gradient",
        "max_samples", "load_checkpoint", "max_norm", "max_len", "l2", "gradient_checkpointing", "seed", "local_rank",
        "zero_stage", "bf16", "freeze_vision_model", "learning_rate", "zpg", "adam_offload", "flash_attn",
        "compute_fp32_loss", "margin_loss", "grad_accum_dtype", "disable_trace_cache", "load_in_4bit", "lora_rank",
        "lora_alpha", "lora_dropout", "target_modules", "input_template", "gradient_checkpointing_use_reentrant",
        "disable_fast_tokenizer", "is_pretrained_pm", "is_custom_dataset", "group_size", "save_best_model",
        "add_pretrain_loss", "ptx_loss_coef", "train_split_ratio", "reward_scaler_beta", "reward_margin",
        "regression_target_margin", "return_prompt_length", "use_wandb", "wandb_org", "wandb_group", "wandb_project",
        "wandb_run_name", "pm_path", "train_batch_size", "epochs", "batch_size",
    }
)  # fmt: skip

# Of the released code too, but with no counterpart here: accepted where they are off.
_ONLY_OFF: dict[str, tuple[Any, ...]] = {
    "add_prompt_head": (False, None),
    "add_unpaired_head": (False, None),
    "add_img_eos": (False, None),
    "vision_layer_id": (-1, None),
}

# The projector's story is told to the reader of the weights; the rest of these become a `RewardConfig`.
_PUBLISHED = frozenset({*NEEDED, "mean_hidden_state", "layer_id", "cls_based", "ft_projector"})
_OURS = frozenset(RewardConfig.__dataclass_fields__)


def read_mapping(path: Path) -> dict[str, Any]:
    """A file of `name: value`, JSON by its suffix, else YAML.

    Raises:
        CheckpointError: if it cannot be read, or holds something else.
    """
    try:
        text = read_text(path)
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"Could not read '{path}'. Expected {_format(path)}. ({reason})") from error
    if found is None and path.suffix != ".json":
        found = {}
    if not isinstance(found, dict):
        raise CheckpointError(f"Expected {_format(path)} in '{path}', but it holds a {type(found).__name__}.")
    return found


def flattened(stored: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    """Options whatever sections (`model:`, `args:`) they stand in.

    Raises:
        CheckpointError: for an option that stands in two with different values.
    """
    found: dict[str, Any] = {}
    for name, value in stored.items():
        inner = flattened(value, path) if isinstance(value, Mapping) else {str(name): value}
        for key, one in inner.items():
            if key in found and found[key] != one:
                raise CheckpointError(
                    f"Expected one value of `{key}` in '{path}', but found {found[key]!r} and {one!r}."
                )
            found[key] = one
    return found


def published_config(options: Mapping[str, Any], path: Path, rows: int) -> RewardConfig:
    """The head that a published configuration describes.

    Args:
        options: of `flattened`.
        path: of the file, for messages.
        rows: of the value head among the weights. The file may say 2 for a Bradley-Terry head of one row.

    Raises:
        CheckpointError: for an option that is missing, unknown, of the wrong type or against another.
    """
    if missing := [name for name in NEEDED if options.get(name) is None]:
        raise CheckpointError(
            f"Expected {', '.join(missing)} in '{path}', but found only {', '.join(options) or 'nothing'}."
        )
    for name, off in _ONLY_OFF.items():
        value = options.get(name)
        # 0 and False are one to Python.
        if name in options and not any(value is one or (type(value) is type(one) and value == one) for one in off):
            raise CheckpointError(
                f"Expected no `{name}` in '{path}', which changes the reward in a way that is not supported here, but "
                f"got {value!r}."
            )
    if unknown := sorted(set(options) - _PUBLISHED - _OURS - _OF_TRAINING - _ONLY_OFF.keys()):
        raise CheckpointError(
            f"Unknown options in '{path}': {', '.join(unknown)}. They may change the reward; remove those that do not. "
            f"Known: {', '.join(sorted(_PUBLISHED | _OURS))}."
        )
    general = _value("is_general_preference", options["is_general_preference"], path)
    classes = _value("cls_based", options.get("cls_based", False), path)
    if general and classes:
        raise CheckpointError(f"Expected `is_general_preference` or `cls_based` in '{path}', but both are true.")
    stated = _value("value_head_dim", options["value_head_dim"], path)
    if general and rows != stated:
        raise CheckpointError(
            f"Expected a value head of {stated} rows, as `value_head_dim` in '{path}' says, but the weights hold one "
            f"of {rows}."
        )
    layer = _value("layer_id", options.get("layer_id"), path)
    told = {
        "objective": "general-preference" if general else "classification" if classes else "bradley-terry",
        "tau": _value("general_preference_tau", options["general_preference_tau"], path),
        "add_cross_attention": options["add_cross_attention"],
        "mean_pooling": _value("mean_hidden_state", options.get("mean_hidden_state", False), path),
        "hidden_layer": None if layer == LAST_LAYER else layer,
    }
    for name, value in options.items():
        if name not in _OURS or name in ("value_head_dim", "add_cross_attention"):
            continue
        published = {"objective": "cls_based", "tau": "general_preference_tau", "mean_pooling": "mean_hidden_state"}
        other = published.get(name, "layer_id" if name == "hidden_layer" else None)
        # Objectives that the published options cannot tell apart are told apart by ours.
        silent = other is None or options.get(other) is None
        if name == "objective":
            silent = silent and general == (value == "general-preference")
        if not silent and _value(name, value, path) != _value(name, told[name], path):
            raise CheckpointError(f"Expected `{name}` and `{other}` in '{path}' to agree, but they do not.")
        told[name] = value
    return own_config({**told, "value_head_dim": rows}, path)


def own_config(values: Mapping[str, Any], path: Path) -> RewardConfig:
    """A `RewardConfig` from its fields.

    Raises:
        CheckpointError: for fields that are unknown, of the wrong type, or do not go together.
    """
    if unknown := sorted(str(name) for name in set(values) - _OURS):
        raise CheckpointError(f"Unknown settings in '{path}': {', '.join(unknown)}. Known: {', '.join(sorted(_OURS))}.")
    typed = {name: _value(name, value, path) for name, value in values.items()}
    try:
        return RewardConfig(**typed)
    except ValueError as error:
        raise CheckpointError(f"The settings in '{path}' do not go together. {error}") from error


def keeps_projector(options: Mapping[str, Any], path: Path) -> bool:
    """Whether a published configuration says that the projector is the backbone's own (`ft_projector: false`)."""
    return options.get("ft_projector") is not None and not _value("ft_projector", options["ft_projector"], path)


def _value(name: str, value: Any, path: Path) -> Any:
    kind, wanted = _KINDS[name]
    try:
        return kind(value)
    except (ValueError, TypeError, OverflowError):
        raise CheckpointError(f"Expected `{name}` in '{path}' to be {wanted}, but got {value!r}.") from None


def _flag(value: Any) -> bool:
    if isinstance(value, str):
        # Quoted in the file; any text is true to Python.
        value = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}.get(value.lower())
    if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise ValueError


def _number(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(number := float(value)) or number <= 0:
        raise ValueError
    return number


def _integer(value: Any) -> int:
    number = float(value)
    if isinstance(value, bool) or not number.is_integer():
        raise ValueError
    return int(number)


def _layer(value: Any) -> int | None:
    if value is None:
        return None
    if (number := _integer(value)) < 0:
        raise ValueError
    return number


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _format(path: Path) -> str:
    return "a JSON object" if path.suffix == ".json" else "YAML of `name: value`"


_FLAG: tuple[Callable[[Any], Any], str] = (_flag, "true or false")
_LAYER: tuple[Callable[[Any], Any], str] = (_layer, "the number of a hidden state, 0 being the embeddings")
_KINDS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "objective": (_text, "a name"),
    "value_head_dim": (_integer, "a whole number"),
    "tau": (_number, "a positive number"),
    "general_preference_tau": (_number, "a positive number"),
    "layer_id": _LAYER,
    "hidden_layer": _LAYER,
    "visual_layer": _LAYER,
    **dict.fromkeys(
        (
            "add_cross_attention", "is_general_preference", "mean_hidden_state", "mean_pooling", "as_coded",
            "cls_based", "ft_projector",
        ),
        _FLAG,
    ),
}  # fmt: skip

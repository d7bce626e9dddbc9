"""Checkpoints of LLaVA-Reward on disk: the published layout, and ours in safetensors.

    published                       ours
    reward_config.yaml              llava_reward.json
    pytorch_model.bin               head.safetensors, projector.safetensors
    lora/adapter_config.json        lora/adapter_config.json
    lora/adapter_model.bin          lora/adapter_model.safetensors

What `llava_reward.json` says and `reward_config.yaml` does not: classification, the ablations, which backbone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .backbones import Backbone
from .config import RewardConfig
from .files import CheckpointError, read_tensors
from .lora import Adapter
from .texts import read_json, read_yaml


PUBLISHED_CONFIG = "reward_config.yaml"
OUR_CONFIG = "llava_reward.json"
PUBLISHED_WEIGHTS = "pytorch_model.bin"
FORMAT_VERSION = 1
HEAD_NAMES = ("W_q.weight", "W_k.weight", "W_v.weight", "ca_layernorm.weight", "value_head.weight")
LAYOUTS = ("safetensors", "published")


@dataclass(frozen=True)
class Checkpoint:
    """One perspective as stored.

    Attributes:
        config: of the head.
        head: parameters of `RewardHead`.
        projector: under the names of the file; empty if the projector was not trained.
        adapter: None for a full fine-tune.
        backbone: facts about the backbone that the file states: 'model_type', 'hidden_size', 'name'.
        source: where it was read, for messages.
    """

    config: RewardConfig
    head: dict[str, Tensor]
    projector: dict[str, Tensor]
    adapter: Adapter | None
    backbone: dict[str, Any] = field(default_factory=dict)
    source: str = "a checkpoint"


def find_checkpoint(name: str | Path, revision: str | None = None) -> Path:
    """The local folder of a checkpoint.

    Args:
        name: a folder, or 'owner/repository' or 'owner/repository/sub/folder' on the hub.

    Raises:
        CheckpointError: if it is neither a folder nor to be had from the hub.
    """
    if Path(name).is_dir():
        return Path(name)
    parts = str(name).split("/")
    wanted = f"Expected the folder of a checkpoint or 'owner/repository[/folder]' on the hub, but got '{name}'"
    if Path(name).is_absolute() or len(parts) < 2 or not all(parts) or parts[0] in (".", ".."):
        raise CheckpointError(f"{wanted}, which is neither.")
    folder = "/".join(parts[2:])
    try:
        root = snapshot_download(
            "/".join(parts[:2]), revision=revision, allow_patterns=f"{folder}/*" if folder else None
        )
    except Exception as error:  # a missing repository, no network and an offline cache each raise their own
        raise CheckpointError(f"{wanted}, which could not be fetched: {error}") from error
    if not (Path(root) / folder).is_dir():
        raise CheckpointError(f"{wanted}, but the repository has no folder '{folder}'.")
    return Path(root) / folder


def read_checkpoint(
    folder: Path,
    base: type[Backbone],
    objective: str | None = None,
    config: RewardConfig | None = None,
    full_finetune: bool = False,
) -> Checkpoint:
    """Read either layout.

    Args:
        folder: of the checkpoint.
        base: class of the backbone it will be loaded on.
        objective: overrides what the file says; published files do not tell classification from Bradley-Terry.
        config: in place of the file's, which may then be missing.
        full_finetune: the backbone itself was trained, so no lora/ is expected.

    Raises:
        CheckpointError: if a file is missing or does not fit the others.
    """
    backbone: dict[str, Any] = {}
    if (folder / OUR_CONFIG).is_file():
        stored = read_json(folder / OUR_CONFIG)
        if stored["format_version"] > FORMAT_VERSION:
            raise CheckpointError(f"'{folder}' was saved by a newer version; expected format {FORMAT_VERSION}.")
        weights = read_tensors(_existing(folder / "head.safetensors"))
        if (folder / "projector.safetensors").is_file():
            weights.update(read_tensors(folder / "projector.safetensors"))
        backbone = stored["backbone"]
        if backbone["model_type"] != base.model_type:
            raise CheckpointError(
                f"'{folder}' was trained on a backbone of type {backbone['model_type']}, but this one is "
                f"{base.model_type}. Pass the right `backbone`."
            )
        known = {item.name for item in fields(RewardConfig)}
        if unknown := set(stored["config"]) - known:
            raise CheckpointError(f"Unknown settings in '{folder / OUR_CONFIG}': {', '.join(sorted(unknown))}.")
        config = config or RewardConfig(**stored["config"])
    else:
        weights = _published_weights(folder)
        config = config or _published_config(folder, weights)
    if objective is not None:
        config = replace(config, objective=objective)
    head = {name: weights[key] for name in HEAD_NAMES for key in weights if key.endswith(name)}
    adapter = Adapter.read(folder / "lora") if (folder / "lora").is_dir() else None
    if adapter is None and not full_finetune:
        raise CheckpointError(
            f"Expected LoRA weights in '{folder / 'lora'}', but there is no such folder. Some training runs saved "
            f"heads only; the rewards of such a checkpoint without its adapter are meaningless. Pass "
            f"`full_finetune=True` if the backbone itself was trained."
        )
    projector = {key: value for key, value in weights.items() if key.startswith(base.projector_prefixes)}
    others = sorted(weights.keys() - projector.keys() - {key for key in weights if key.endswith(HEAD_NAMES)})
    if others and not full_finetune:
        raise CheckpointError(
            f"Expected head and projector in the weights of '{folder}', but found also {', '.join(others[:3])}. The "
            f"checkpoint belongs to another backbone, or is a full fine-tune (`full_finetune=True`)."
        )
    return Checkpoint(config, head, projector, adapter, backbone, str(folder))


def write_checkpoint(checkpoint: Checkpoint, folder: Path, layout: str = "safetensors") -> None:
    """Write a perspective, in our layout or the published one.

    Raises:
        ValueError: for an unknown layout, or a config that the published one cannot express.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"Unknown layout {layout!r}. Known: {', '.join(LAYOUTS)}.")
    config = checkpoint.config
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "published":
        lost = [name for name in ("hidden_layer", "visual_layer") if getattr(config, name) is not None]
        lost += ["mean_pooling"] if config.mean_pooling else []
        if lost:
            raise ValueError(f"The published layout has no place for {', '.join(lost)}. Use layout 'safetensors'.")
        published = {
            "general_preference_tau": config.tau,
            "value_head_dim": config.value_head_dim,
            "add_cross_attention": config.add_cross_attention,
            "is_general_preference": config.objective == "general-preference",
        }
        (folder / PUBLISHED_CONFIG).write_text(yaml.safe_dump(published))
        torch.save({**checkpoint.projector, **checkpoint.head}, folder / PUBLISHED_WEIGHTS)
    else:
        stored = {"format_version": FORMAT_VERSION, "config": config.to_dict(), "backbone": checkpoint.backbone}
        (folder / OUR_CONFIG).write_text(json.dumps(stored, indent=2) + "\n")
        save_file(checkpoint.head, folder / "head.safetensors")
        if checkpoint.projector:
            save_file(checkpoint.projector, folder / "projector.safetensors")
    if checkpoint.adapter is not None:
        checkpoint.adapter.write(folder / "lora", safetensors=layout == "safetensors")


def _published_config(folder: Path, weights: Mapping[str, Tensor]) -> RewardConfig:
    path = _existing(folder / PUBLISHED_CONFIG)
    stored = read_yaml(path) or {}
    needed = ("general_preference_tau", "value_head_dim", "add_cross_attention", "is_general_preference")
    if missing := [name for name in needed if name not in stored]:
        raise CheckpointError(f"Expected {', '.join(missing)} in '{path}', but found only {', '.join(stored)}.")
    rows = [value.shape[0] for key, value in weights.items() if key.endswith("value_head.weight")]
    if not rows:
        raise CheckpointError(f"Expected value_head.weight among the weights in '{folder}', but it is missing.")
    # The file may say 2 for a Bradley-Terry head; its tensor has one row all the same.
    return RewardConfig(
        objective="general-preference" if stored["is_general_preference"] else "bradley-terry",
        value_head_dim=rows[0],
        tau=float(stored["general_preference_tau"]),
        add_cross_attention=bool(stored["add_cross_attention"]),
    )


def _published_weights(folder: Path) -> dict[str, Tensor]:
    shards = sorted(folder.glob("model*.safetensors"))
    if shards and not (folder / PUBLISHED_WEIGHTS).is_file():
        # A full fine-tune: the head's parameters lie among those of the backbone, which is loaded elsewhere.
        weights = {}
        for shard in shards:
            try:
                with safe_open(shard, "pt") as file:
                    weights.update({key: file.get_tensor(key) for key in file.keys() if key.endswith(HEAD_NAMES)})  # noqa: SIM118
            except SafetensorError as error:
                raise CheckpointError(
                    f"Could not read tensors from '{shard}'. Expected safetensors. ({error})"
                ) from error
        return weights
    return read_tensors(_existing(folder / PUBLISHED_WEIGHTS))


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise CheckpointError(
            f"Expected '{path.name}' in '{path.parent}', but it is missing. A checkpoint has either {OUR_CONFIG} and "
            f"head.safetensors, or {PUBLISHED_CONFIG} and {PUBLISHED_WEIGHTS}."
        )
    return path

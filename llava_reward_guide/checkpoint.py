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
from dataclasses import dataclass, field, replace
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
from .files import CheckpointError, is_local, read_tensors
from .hub import locate
from .lora import Adapter
from .names import bare, bare_weights
from .options import LAST_LAYER, flattened, keeps_projector, own_config, published_config, read_mapping


PUBLISHED_CONFIG = "reward_config.yaml"
OUR_CONFIG = "llava_reward.json"
PUBLISHED_WEIGHTS = "pytorch_model.bin"
FORMAT_VERSION = 1
HEAD_NAMES = ("W_q.weight", "W_k.weight", "W_v.weight", "ca_layernorm.weight", "value_head.weight")
LAYOUTS = ("safetensors", "published")
BACKBONE = "backbone"
"""What `llava_reward.json` says of a projector that was not trained."""


@dataclass(frozen=True)
class Checkpoint:
    """One perspective as stored.

    Attributes:
        config: of the head.
        head: parameters of `RewardHead`.
        projector: under the published names; empty if the projector was not trained.
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
    path = Path(name)
    if path.is_dir():
        return path
    parts = str(name).split("/")
    wanted = f"Expected the folder of a checkpoint or 'owner/repository[/folder]' on the hub, but got '{name}'"
    if path.is_file():
        raise CheckpointError(f"{wanted}, which is a file. Pass its folder, '{path.parent}'.")
    if is_local(name) or len(parts) < 2 or not all(parts):
        raise CheckpointError(f"{wanted}, which is neither: there is no such folder.")
    repository, folder = "/".join(parts[:2]), "/".join(parts[2:])
    try:
        root = locate(repository, "repository", revision)
    except OSError as error:
        raise CheckpointError(f"{wanted}. {error}") from error
    try:
        if root == repository:
            root = snapshot_download(repository, revision=revision, allow_patterns=f"{folder}/*" if folder else None)
    except Exception as error:  # a missing repository, no network and an offline cache each raise their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{wanted}, which is no folder here and could not be fetched: {reason}") from error
    if not (Path(root) / folder).is_dir():
        raise CheckpointError(f"{wanted}, but the repository has no folder '{folder}'.")
    return Path(root) / folder


@dataclass(frozen=True)
class StoredCheckpoint:
    """What a folder holds, read without knowing the backbone.

    Attributes:
        config: of the head.
        weights: of head and projector, under their bare names.
        adapter: None for a full fine-tune.
        backbone: as of `Checkpoint`.
        layer_id: as a published configuration states it, which the released code reads on Phi alone.
        own_projector: whether the folder is said to leave the projector to the backbone.
        full_finetune: whether the backbone itself was trained.
        folder: where it was read.
    """

    config: RewardConfig
    weights: dict[str, Tensor]
    adapter: Adapter | None
    backbone: dict[str, Any]
    layer_id: Any
    own_projector: bool
    full_finetune: bool
    folder: Path

    def on(self, base: type[Backbone]) -> Checkpoint:
        """The same for a class of backbones.

        Raises:
            CheckpointError: if it belongs to another, or lacks the projector.
        """
        folder = self.folder
        trained_on = self.backbone.get("model_type", base.model_type)
        if trained_on != base.model_type:
            raise CheckpointError(
                f"'{folder}' was trained on a backbone of type {trained_on}, but this one is {base.model_type}. Pass "
                f"the right `backbone`."
            )
        if self.layer_id not in (None, LAST_LAYER) and base.model_type != "phi3_v":
            raise CheckpointError(
                f"Expected no `layer_id` in '{folder}', but got {self.layer_id}: LLaVA-Reward reads it on "
                f"Phi-3.5-vision alone, and the last layer of {base.__name__} whatever it says. Remove it, or say "
                f"`hidden_layer` if another layer was trained."
            )
        head = {name: self.weights[name] for name in HEAD_NAMES if name in self.weights}
        prefixes = tuple({bare(prefix): None for prefix in base.projector_prefixes})
        projector = {
            base.projector_prefixes[0] + key.removeprefix(prefix): value
            for key, value in self.weights.items()
            for prefix in prefixes
            if key.startswith(prefix)
        }
        others = sorted(key for key in self.weights.keys() - head.keys() if not key.startswith(prefixes))
        if others and not self.full_finetune:
            raise CheckpointError(
                f"Expected head and projector in the weights of '{folder}', but found also {', '.join(others[:3])}. "
                f"The checkpoint belongs to another backbone, or is a full fine-tune (`full_finetune=True`)."
            )
        if self.own_projector:
            projector = {}
        elif not projector and not self.full_finetune:
            raise CheckpointError(
                f"Expected the projector, {base.projector_prefixes[0]}*, in the weights of '{folder}', where every "
                f"checkpoint of LLaVA-Reward has it beside the head, but there is none. If the backbone's own is "
                f'meant, say `ft_projector: false` in {PUBLISHED_CONFIG}, or `"projector": "{BACKBONE}"` in '
                f"{OUR_CONFIG}."
            )
        return Checkpoint(self.config, head, projector, self.adapter, self.backbone, str(folder))


def read_checkpoint(
    folder: Path, objective: str | None = None, config: RewardConfig | None = None, full_finetune: bool = False
) -> StoredCheckpoint:
    """Read either layout.

    Args:
        folder: of the checkpoint.
        objective: overrides what the file says; published files do not tell classification from Bradley-Terry.
        config: in place of the file's, which may then be missing.
        full_finetune: the backbone itself was trained, so no lora/ is expected.

    Raises:
        CheckpointError: if a file is missing, cannot be read, does not fit the others or says what is not supported.
    """
    backbone: dict[str, Any] = {}
    layer_id = None
    path = folder / OUR_CONFIG
    if path.is_file():
        stored = _our_file(path)
        backbone = stored["backbone"]
        file = _existing(folder / "head.safetensors")
        weights = bare_weights(read_tensors(file), file)
        own_projector = stored.get("projector") == BACKBONE
        file = folder / "projector.safetensors"
        if not own_projector and not full_finetune:
            _existing(file)
        if file.is_file():
            weights.update(bare_weights(read_tensors(file), file))
        config = config or own_config(stored["config"], path)
    else:
        path = _published_file(folder, needed=config is None)
        options = flattened(read_mapping(path), path) if path.is_file() else {}
        weights = _published_weights(folder, full_finetune)
        own_projector = keeps_projector(options, path)
        if config is None:
            if "value_head.weight" not in weights:
                raise CheckpointError(f"Expected value_head.weight among the weights in '{folder}', but it is missing.")
            config = published_config(options, path, weights["value_head.weight"].shape[0])
            layer_id = options.get("layer_id")
    if objective is not None:
        config = replace(config, objective=objective)
    # peft's own class saves beside the rest, what the released code calls saves in a folder.
    place = folder / "lora"
    if not place.is_dir() and (folder / "adapter_config.json").is_file():
        place = folder
    adapter = Adapter.read(place) if place.is_dir() and (place != folder or not full_finetune) else None
    if adapter is None and not full_finetune:
        raise CheckpointError(
            f"Expected LoRA weights in '{place}', but there is no such folder. Some training runs saved "
            f"heads only; the rewards of such a checkpoint without its adapter are meaningless. Pass "
            f"`full_finetune=True` if the backbone itself was trained."
        )
    return StoredCheckpoint(config, weights, adapter, backbone, layer_id, own_projector, full_finetune, folder)


def write_checkpoint(checkpoint: Checkpoint, folder: Path, layout: str = "safetensors") -> None:
    """Write a perspective, in our layout or the published one.

    Raises:
        ValueError: for an unknown layout, or a config that the published one cannot express.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"Unknown layout {layout!r}. Known: {', '.join(LAYOUTS)}.")
    config = checkpoint.config
    if layout == "published" and (lost := config.beyond_published()):
        raise ValueError(f"The published layout has no place for {', '.join(lost)}. Use layout 'safetensors'.")
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "published":
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
        if not checkpoint.projector:
            stored["projector"] = BACKBONE
        (folder / OUR_CONFIG).write_text(json.dumps(stored, indent=2) + "\n")
        save_file(checkpoint.head, folder / "head.safetensors")
        if checkpoint.projector:
            save_file(checkpoint.projector, folder / "projector.safetensors")
    if checkpoint.adapter is not None:
        checkpoint.adapter.write(folder / "lora", safetensors=layout == "safetensors")


def _our_file(path: Path) -> dict[str, Any]:
    stored = read_mapping(path)
    if unknown := sorted(set(stored) - {"format_version", "config", "backbone", "projector"}):
        raise CheckpointError(f"Unknown settings in '{path}': {', '.join(unknown)}. They may change the reward.")
    version = stored.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise CheckpointError(
            f"'{path.parent}' was saved by a newer version; expected format {FORMAT_VERSION}, but got {version!r}."
        )
    if stored.get("projector", BACKBONE) != BACKBONE:
        raise CheckpointError(f"Expected \"{BACKBONE}\" for `projector` in '{path}', but got {stored['projector']!r}.")
    for name in ("config", "backbone"):
        if not isinstance(stored.get(name), dict):
            raise CheckpointError(f"Expected an object `{name}` in '{path}', but got {stored.get(name)!r}.")
    if not isinstance(stored["backbone"].get("model_type"), str):
        raise CheckpointError(f"Expected the `model_type` of the backbone in '{path}', but it is missing.")
    return stored


def _published_file(folder: Path, needed: bool) -> Path:
    path = folder / PUBLISHED_CONFIG
    for suffix in (".yaml", ".yml", ".json"):
        if path.with_suffix(suffix).is_file():
            return path.with_suffix(suffix)
    return _existing(path) if needed else path


def _published_weights(folder: Path, full_finetune: bool) -> dict[str, Tensor]:
    shards = sorted(folder.glob("model*.safetensors"))
    if not shards or (folder / PUBLISHED_WEIGHTS).is_file():
        file = _existing(folder / PUBLISHED_WEIGHTS)
        return bare_weights(read_tensors(file), file)
    weights: dict[str, Tensor] = {}
    for shard in shards:
        if not full_finetune:
            weights.update(read_tensors(shard))
            continue
        # The head's parameters lie among those of the backbone, which is loaded elsewhere.
        try:
            with safe_open(shard, "pt") as file:
                weights.update({key: file.get_tensor(key) for key in file.keys() if bare(key) in HEAD_NAMES})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"Could not read tensors from '{shard}'. Expected safetensors. ({error})") from error
    return bare_weights(weights, folder)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise CheckpointError(
            f"Expected '{path.name}' in '{path.parent}', but it is missing. A checkpoint has either {OUR_CONFIG} and "
            f"head.safetensors, or {PUBLISHED_CONFIG} and {PUBLISHED_WEIGHTS}."
        )
    return path

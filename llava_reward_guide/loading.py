"""Loading a LLaVA-Reward: backbone, adapters and heads into one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .attention import check_attention
from .backbones import backbone_class, backbone_of, load_backbone
from .checkpoint import Checkpoint, StoredCheckpoint, find_checkpoint, read_checkpoint
from .config import RewardConfig
from .files import CheckpointError
from .options import read_mapping
from .packages import require


if TYPE_CHECKING:
    from .model import LlavaReward

QUANTIZE = ("8bit", "4bit")


def load(
    kind: type[LlavaReward],
    checkpoint: str | Path | Mapping[str, str | Path],
    *,
    backbone: str | Path | None = None,
    perspective: str | None = None,
    objective: str | None = None,
    as_coded: bool | None = None,
    config: RewardConfig | None = None,
    full_finetune: bool = False,
    merge: bool | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    attn_implementation: str = "sdpa",
    quantize: str | None = None,
    num_crops: int | None = None,
    batch_size: int = 4,
    compile: bool = False,
    revision: str | None = None,
    backbone_options: Mapping[str, Any] | None = None,
) -> LlavaReward:
    """Load checkpoints, in the published layout or ours, onto one backbone.

    Args:
        checkpoint: a folder, 'owner/repository[/folder]' on the hub, or several of them: perspective -> checkpoint.
        backbone: folder or hub id of the multimodal LLM; None for the one that the checkpoint names, else
            Phi-3.5-vision-instruct.
        perspective: the one to begin with; None for the first. Names a single checkpoint.
        objective: 'classification' for checkpoints trained with labels, which the published files do not tell from
            Bradley-Terry; None for what the file says.
        as_coded: reproduce what the released code does with padding; None where a published checkpoint was trained so
            (SkipCA on Qwen2.5-VL), and one image at a time.
        config: of the head, in place of the file's, which may then be missing.
        full_finetune: the backbone itself was trained: no lora/ is expected, and the backbone is that of the checkpoint
            unless `backbone` says otherwise.
        merge: add LoRA to the weights (fastest) instead of keeping it beside them through peft; None if there is one
            checkpoint and no quantization. Several checkpoints, and training, need False.
        device: None for a CUDA device if there is one.
        dtype: of the weights; None for bfloat16 on CUDA devices and float32 elsewhere.
        attn_implementation: 'sdpa', 'flash_attention_2' (needs the extra `flash`) or 'eager'.
        quantize: '8bit' or '4bit' weights of the text model (needs the extra `quantize`).
        num_crops: most crops of an image on Phi-3.5-vision; None for 16, as published.
        batch_size: images in a pass through the backbone.
        compile: compile the layers of the text model.
        revision: of hub checkpoints, not of the backbone.
        backbone_options: for the `from_pretrained` of the backbone, such as `revision` or `device_map`.

    Raises:
        CheckpointError: for a checkpoint or backbone that is missing, incomplete or does not fit.
        ImportError: if an option needs a package that is not installed.
        ValueError: for an unknown option, or one of a value that cannot be.
    """
    names = dict(checkpoint) if isinstance(checkpoint, Mapping) else {perspective or "default": checkpoint}
    if not names or (perspective is not None and perspective not in names):
        raise ValueError(f"Unknown perspective {perspective!r}. Known: {', '.join(names)}.")
    for setting, value in (("num_crops", num_crops), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"Expected `{setting}` to be at least 1, but got {value}.")
    if merge is None:
        merge = len(names) == 1 and quantize is None
    if merge and (len(names) > 1 or quantize is not None):
        raise ValueError("Expected `merge=False` with several perspectives or quantized weights, but got True.")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    options: dict[str, Any] = {
        "dtype": dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32),
        "attn_implementation": attn_implementation,
        **(backbone_options or {}),
    }
    check_attention(options["attn_implementation"], device.type, str(options["dtype"]).removeprefix("torch."))
    folders = {name: find_checkpoint(place, revision) for name, place in names.items()}
    # Before gigabytes of backbone, or the hub is asked for them: most of what can be wrong shows in the small files.
    found = {name: read_checkpoint(folder, objective, config, full_finetune) for name, folder in folders.items()}
    path = str(backbone or _named_backbone(next(iter(found.values()))))
    try:
        base = backbone_of(path, options.get("revision"))
    except CheckpointError as error:
        hint = "" if backbone else " It is what the checkpoint names; pass `backbone` if yours is elsewhere."
        raise CheckpointError(f"{error}{hint}") from error
    stored = {name: one.on(base) for name, one in found.items()}
    if quantize is not None:
        options["quantization_config"] = quantization_config(quantize, options["dtype"])
        options.setdefault("device_map", {"": device})
    loaded = load_backbone(path, **options)
    if quantize is None and "device_map" not in options:
        loaded.to(device)
    reward = kind(loaded.requires_grad_(False), batch_size)
    for name, checkpoint_of in stored.items():
        _check_width(checkpoint_of, loaded.hidden_size)
        coded = as_coded
        if coded is None:
            published_qwen = loaded.model_type == "qwen2_5_vl" and not checkpoint_of.backbone
            coded = checkpoint_of.config.as_coded or (published_qwen and checkpoint_of.config.add_cross_attention)
        head_config = replace(checkpoint_of.config, as_coded=coded)
        reward.add_perspective(name, replace(checkpoint_of, config=head_config), merge)
    reward.set_perspective(perspective or next(iter(names)))
    if num_crops is not None:
        if loaded.num_crops is None:
            raise ValueError(f"Expected no `num_crops` for {type(loaded).__name__}, which has no crops to count.")
        loaded.num_crops = num_crops
    if compile:
        reward.compile()
    return reward.eval()


def _named_backbone(stored: StoredCheckpoint) -> str:
    if stored.full_finetune:
        return str(stored.folder)
    if named := stored.backbone.get("name"):
        return str(named)
    model_type = stored.backbone.get("model_type", "phi3_v")
    path = stored.folder / "config.json"
    if path.is_file():
        model_type = str(read_mapping(path).get("model_type", model_type))
    try:
        return backbone_class(model_type).default_id
    except ValueError as error:
        raise CheckpointError(f"'{stored.folder}' does not fit. {error} Pass `backbone`.") from error


def _check_width(checkpoint: Checkpoint, hidden_size: int) -> None:
    """A head for another width tells the wrong size of backbone at once."""
    weight = checkpoint.head.get("value_head.weight")
    if weight is None or weight.shape[1] != hidden_size:
        found = "none" if weight is None else f"one for {weight.shape[1]}"
        raise CheckpointError(
            f"Expected a value head for hidden size {hidden_size} in '{checkpoint.source}', but found {found}. Pass "
            f"the backbone it was trained on."
        )


def quantization_config(quantize: str, dtype: torch.dtype) -> Any:
    """What `from_pretrained` of `transformers` takes as `quantization_config`.

    Args:
        quantize: '8bit', or '4bit' for nf4.
        dtype: to compute in.

    Raises:
        ImportError: without bitsandbytes.
        ValueError: for another `quantize`.
    """
    if quantize not in QUANTIZE:
        raise ValueError(f"Unknown `quantize` {quantize!r}. Known: {', '.join(QUANTIZE)}.")
    require("bitsandbytes")
    from transformers import BitsAndBytesConfig

    # The tower and the projector are small, and the projector may be replaced by a trained one.
    keep = ["vision_embed_tokens", "visual", "vision_tower", "multi_modal_projector"]
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=keep)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=keep,
    )

"""What differs between alignment, fidelity, safety and the rest, all on one backbone."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import nn

from .backbones import Backbone
from .checkpoint import Checkpoint
from .config import RewardConfig
from .files import CheckpointError, load_exactly
from .head import RewardHead


@dataclass
class Perspective:
    """What a reward looks at; `has_adapter` tells whether LoRA of its name lies beside the weights."""

    config: RewardConfig
    head: RewardHead
    projector: nn.Module
    has_adapter: bool = False


def build_perspective(backbone: Backbone, base_projector: nn.Module, checkpoint: Checkpoint) -> Perspective:
    """Head and projector of a checkpoint, frozen, in the dtype and on the device of the backbone.

    Args:
        base_projector: used as it is if the checkpoint has none.

    Raises:
        CheckpointError: if they do not fit the backbone.
    """
    config, source = checkpoint.config, checkpoint.source
    if config.add_cross_attention and not backbone.supports_skip_ca:
        raise CheckpointError(
            f"'{source}' asks for SkipCA (add_cross_attention: true), which LLaVA-Reward does not have on "
            f"{type(backbone).__name__}. Use a checkpoint without it, or one of another backbone."
        )
    layers = backbone.config.num_hidden_layers
    for name in ("hidden_layer", "visual_layer"):
        layer = getattr(config, name)
        if layer is not None and not 0 <= layer <= layers:
            raise CheckpointError(
                f"Expected `{name}` of '{source}' to be between 0 and {layers}, the layers of this "
                f"{type(backbone).__name__}, but got {layer}."
            )
    head = RewardHead(config, backbone.hidden_size, backbone.config.rms_norm_eps)
    load_exactly(head, checkpoint.head, source, f"a head for hidden size {backbone.hidden_size}")
    projector = base_projector
    if checkpoint.projector:
        projector = copy.deepcopy(base_projector)
        first = next(iter(checkpoint.projector))
        prefix = next(prefix for prefix in backbone.projector_prefixes if first.startswith(prefix))
        weights = {key.removeprefix(prefix): value for key, value in checkpoint.projector.items()}
        load_exactly(projector, weights, source, f"the projector of {type(backbone).__name__}")
    weight = backbone.text_model.norm.weight
    return Perspective(config, head.to(weight.device, weight.dtype).requires_grad_(False), projector)

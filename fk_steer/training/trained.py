"""What of a denoiser is trained, what it is compared with, and how it is saved: LoRA whose reference is the denoiser
without it, or all weights beside a frozen copy."""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from torch import nn

from llava_reward_guide.hub import locate
from llava_reward_guide.packages import require

from .config import DPOConfig
from .denoisers import Denoiser


ADAPTER = "default"
REFERENCE = "reference"
WEIGHTS = "pytorch_lora_weights.safetensors"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""How layers of attention are called in Diffusers' denoisers."""


class Trained(ABC):
    """The trained part of a denoiser, in float32."""

    denoiser: Denoiser

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those that are trained."""
        return [parameter for parameter in self.denoiser.module.parameters() if parameter.requires_grad]

    @abstractmethod
    def reference(self) -> AbstractContextManager[nn.Module]:
        """A context with the module that the trained one is compared with."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what `DiffusionPipeline` can load to an empty folder."""


class LowRank(Trained):
    """LoRA, added to a pipeline's denoiser or taken further.

    Raises:
        ImportError: if peft is not installed.
        ValueError: if there is no layer to put it on, or nothing to go on from.
    """

    def __init__(self, denoiser: Denoiser, config: DPOConfig) -> None:
        require("peft", "Training LoRA", "train")
        self.denoiser, self.goes_on = denoiser, config.lora is not None
        if config.lora is None:
            self._begin(config)
        else:
            self._go_on_from(config.lora)
        for parameter in self.parameters:
            parameter.data = parameter.data.float()

    def _begin(self, config: DPOConfig) -> None:
        from peft import LoraConfig

        module = self.denoiser.module
        # The weights of LoRA begin alike on all processes, and whatever was drawn before.
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            module.add_adapter(
                LoraConfig(
                    r=config.lora_rank,
                    lora_alpha=config.lora_rank if config.lora_alpha is None else config.lora_alpha,
                    lora_dropout=config.lora_dropout,
                    init_lora_weights="gaussian",
                    target_modules=layers_of(module, config.lora_layers),
                ),
                ADAPTER,
            )

    def _go_on_from(self, lora: str) -> None:
        place = locate(lora, "LoRA weights")
        with warnings.catch_warnings():
            # The second of two is meant.
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            for name in (REFERENCE, ADAPTER):
                self.denoiser.pipe.load_lora_weights(place, adapter_name=name)
        if ADAPTER not in getattr(self.denoiser.module, "peft_config", {}):
            raise ValueError(f"Expected weights of the {self.denoiser.component} in '{lora}', but there are none.")
        self.denoiser.module.set_adapter(ADAPTER)

    @contextmanager
    def reference(self) -> Iterator[nn.Module]:
        """The denoiser, its adapter meanwhile switched off, or as it was at the start."""
        module = self.denoiser.module
        if self.goes_on:
            module.set_adapter(REFERENCE)
        else:
            module.disable_adapters()
        try:
            yield module
        finally:
            if self.goes_on:
                module.set_adapter(ADAPTER)
            else:
                module.enable_adapters()

    def save(self, folder: Path) -> None:
        """A file that `pipe.load_lora_weights(folder)` reads."""
        from peft.utils import get_peft_model_state_dict

        module, part = self.denoiser.module, self.denoiser.component
        weights = {
            name: value.contiguous() for name, value in get_peft_model_state_dict(module, adapter_name=ADAPTER).items()
        }
        self.denoiser.pipe.save_lora_weights(
            folder,
            **{
                f"{part}_lora_layers": weights,
                f"{part}_lora_adapter_metadata": module.peft_config[ADAPTER].to_dict(),
            },
            weight_name=WEIGHTS,
        )


class Whole(Trained):
    """All weights, made float32."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.frozen = copy.deepcopy(denoiser.module).requires_grad_(False).eval()
        denoiser.module.float().requires_grad_(True)

    @contextmanager
    def reference(self) -> Iterator[nn.Module]:
        """The frozen copy."""
        yield self.frozen

    def save(self, folder: Path) -> None:
        """A pipeline for `DiffusionPipeline.from_pretrained`."""
        self.denoiser.pipe.save_pretrained(folder)


def layers_of(module: nn.Module, which: str) -> list[str]:
    """Names of the layers of a denoiser to put LoRA on.

    Args:
        which: 'attention', 'linear', 'all', or endings of names, comma-separated.

    Raises:
        ValueError: if there is none.
    """
    kinds = (nn.Linear, nn.Conv2d) if which not in ("attention", "linear") else (nn.Linear,)
    endings = ATTENTION if which == "attention" else tuple(text.strip() for text in which.split(",") if text.strip())
    names = [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, kinds)
        and (which in ("linear", "all") or any(name == end or name.endswith(f".{end}") for end in endings))
    ]
    if not names:
        raise ValueError(
            f"Expected `lora_layers` attention, linear, all or endings of names of layers, but {which!r} names none of "
            f"the layers of a {type(module).__name__}."
        )
    return names


def prepare(denoiser: Denoiser, config: DPOConfig) -> Trained:
    """Freeze a pipeline, and make what a config trains trainable."""
    for part in denoiser.pipe.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    trained = Whole(denoiser) if config.full else LowRank(denoiser, config)
    if config.gradient_checkpointing:
        denoiser.module.enable_gradient_checkpointing()
    return trained

"""Training diffusion models on preferences: Diffusion-DPO, IPO and fine-tuning on what was preferred."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import DPOConfig, load_config


if TYPE_CHECKING:
    from .trainer import DPOResult, train_dpo


def __getattr__(name: str) -> Any:
    # What only reads settings, such as `--help`, does not wait for PyTorch.
    if name in ("DPOResult", "train_dpo"):
        from . import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["DPOConfig", "DPOResult", "load_config", "train_dpo"]

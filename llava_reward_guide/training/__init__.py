"""Training a LLaVA-Reward; see docs/training.md."""

from __future__ import annotations

from .config import TrainingConfig
from .trainer import NonFiniteError, train


__all__ = ["NonFiniteError", "TrainingConfig", "train"]

"""Loading the weights of rewards, with errors that say what was expected."""

from __future__ import annotations

from typing import Any

import torch


class RewardLoadError(OSError):
    """The weights of a reward could not be loaded; the message says from where and what was expected there."""


def default_device(device: torch.device | str | None) -> torch.device:
    """`device`, or the CUDA device if there is one, or the CPU."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def load_pretrained(kind: Any, path: str, reward: str, **options: Any) -> Any:
    """`kind.from_pretrained(path, **options)` with one clear error.

    Raises:
        RewardLoadError: naming the reward, the class and the place.
    """
    options = {name: value for name, value in options.items() if value is not None}
    try:
        return kind.from_pretrained(path, **options)
    except (OSError, ValueError) as error:
        raise RewardLoadError(
            f"Could not load {kind.__name__} of the reward '{reward}' from {path!r}. Expected a folder saved with "
            f"`save_pretrained` or the id of a hub repository that can be reached from here. ({error})"
        ) from error

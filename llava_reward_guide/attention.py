"""Which implementation of attention a backbone runs with."""

from __future__ import annotations

import difflib
from typing import Any

from .packages import require


ATTENTION = ("sdpa", "flash_attention_2", "eager")


def check_attention_name(name: Any) -> None:
    """Refuse what is no name of an implementation.

    Raises:
        ValueError: listing those there are.
    """
    if name not in ATTENTION:
        near = difflib.get_close_matches(str(name).lower(), ATTENTION, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Unknown `attn_implementation` {name!r}. Known: {', '.join(ATTENTION)}.{hint}")


def check_attention(name: Any, device_type: str | None = None, dtype: str | None = None) -> None:
    """Refuse an implementation that cannot run, before anything is loaded.

    Args:
        device_type: 'cpu', 'cuda', ...; None if it is not known.
        dtype: of the weights, such as 'float32'; None if it is not known.

    Raises:
        ImportError: if it needs a package that is not installed.
        ValueError: for an unknown name, or a device or dtype that it does not run on.
    """
    check_attention_name(name)
    if name != "flash_attention_2":
        return
    require("flash_attn", "FlashAttention 2 (`attn_implementation` 'sdpa' is always there)")
    if device_type not in (None, "cuda"):
        raise ValueError(
            f"Expected a CUDA device with `attn_implementation` 'flash_attention_2', but got {device_type!r}. Use "
            f"'sdpa'."
        )
    if dtype not in (None, "float16", "bfloat16"):
        raise ValueError(
            f"Expected `dtype` float16 or bfloat16 with `attn_implementation` 'flash_attention_2', but got {dtype}. "
            f"Use 'sdpa'."
        )

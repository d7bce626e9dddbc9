"""Attention maps that a pipeline takes from its denoiser beside the output (self-attention guidance)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def stores_attention(pipe: Any) -> bool:
    """Whether a pipeline guides by its denoiser's attention maps."""
    return hasattr(pipe, "sag_masking")


def with_attention(pipe: Any, denoiser: Callable[..., Any], run: Callable[[Callable[..., Any]], Any]) -> Any:
    """`run(denoiser)`, but the attention maps that the denoiser stores are put together like its output.

    They are in the hands of a processor, (rows * heads, ...) of the last call alone.

    Args:
        run: calls the function it is given on some rows at a time; gives what came of all rows, and more.
    """
    processors = [one for one in pipe.unet.attn_processors.values() if hasattr(one, "attention_probs")]

    def with_maps(*args: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
        output = denoiser(*args, **kwargs)
        rows = len(output[0])
        return output, [one.attention_probs.unflatten(0, (rows, -1)) for one in processors]

    (output, maps), *others = run(functools.wraps(denoiser)(with_maps))
    for processor, probabilities in zip(processors, maps):
        processor.attention_probs = probabilities.flatten(0, 1)
    return output, *others

"""What a run needs to know of the arguments of a pipeline's call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def number_of_prompts(arguments: Mapping[str, Any]) -> int:
    """P.

    Raises:
        ValueError: if there is nothing that counts them: neither a prompt nor embeddings or images in its place, or an
            empty list.
    """
    prompt = arguments.get("prompt")
    if isinstance(prompt, str):
        return 1
    if prompt is not None:
        if not prompt:
            raise ValueError("Expected at least one prompt, but got an empty list.")
        return len(prompt)
    for name in _IN_PLACE_OF_PROMPTS:
        value = arguments.get(name)
        if value is not None:
            many = isinstance(value, (Tensor, np.ndarray)) and value.ndim > 1 + 2 * (name == "image")
            return len(value) if many or isinstance(value, (list, tuple)) else 1
    raise ValueError("Expected `prompt` or `prompt_embeds`, but got neither.")


_IN_PLACE_OF_PROMPTS = (
    "prompt_embeds",
    "prompt_embeds_t5",
    "prompt_embeds_qwen",
    "image_embeds",
    "image_embeddings",
    "image",
)
"""Arguments that say how many prompts there are where there is none."""


def reward_prompts(
    arguments: Mapping[str, Any], reward_prompt: str | Sequence[str] | None, num_prompts: int
) -> list[str]:
    """The P texts the reward reads: `reward_prompt` where it is given, else the pipeline's prompts.

    Raises:
        ValueError: if there are none, or not one per prompt.
    """
    texts = arguments.get("prompt") if reward_prompt is None else reward_prompt
    if texts is None:
        raise ValueError("Without a `prompt` the reward has no text to score against: pass `reward_prompt`.")
    texts = [texts] if isinstance(texts, str) else list(texts)
    if len(texts) != num_prompts:
        counted = next((name for name in _IN_PLACE_OF_PROMPTS if arguments.get(name) is not None), "")
        why = (
            f" Without a `prompt` there is one for each entry of `{counted}`."
            if arguments.get("prompt") is None
            else ""
        )
        raise ValueError(f"Expected one `reward_prompt` for each of {num_prompts} prompts, but got {len(texts)}.{why}")
    return texts


def texts_or_keys(arguments: Mapping[str, Any], num_prompts: int) -> list[Any]:
    """One value for each prompt, equal for equal prompts: its text, or the content of its embeddings."""
    prompt = arguments.get("prompt")
    if prompt is not None:
        return [prompt] if isinstance(prompt, str) else list(prompt)
    embeddings = next((arguments[name] for name in _IN_PLACE_OF_PROMPTS if arguments.get(name) is not None), None)
    if not isinstance(embeddings, Tensor) or len(embeddings) != num_prompts:
        return list(range(num_prompts))
    embeddings = embeddings.detach().to("cpu", torch.float32)
    return [embeddings[p].numpy().tobytes() for p in range(num_prompts)]


def image_size(pipe: Any, arguments: Mapping[str, Any]) -> tuple[int, int] | None:
    """(height, width) in pixels of the images; None for a pipeline without a size of its own."""
    default = getattr(pipe, "default_sample_size", None)
    if default is None:
        return None
    default *= pipe.vae_scale_factor
    return arguments.get("height") or default, arguments.get("width") or default

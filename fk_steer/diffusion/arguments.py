"""What a run needs to know of the arguments of a pipeline's call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


PER_PROMPT = frozenset(
    f"{negative}{name}"
    for negative in ("", "negative_")
    for name in ("prompt", "prompt_2", "prompt_3", "prompt_embeds", "pooled_prompt_embeds")
)
"""Arguments of pipelines that hold one entry per prompt."""

IMAGES = frozenset({"image", "mask_image", "masked_image_latents"})
"""Arguments of image-to-image and inpainting pipelines that hold one image, or one per prompt."""


def number_of_prompts(arguments: dict[str, Any]) -> int:
    """P.

    Raises:
        ValueError: if there is neither a prompt nor embeddings of one, or an empty list.
    """
    prompt = arguments.get("prompt")
    if prompt is None:
        if arguments.get("prompt_embeds") is None:
            raise ValueError("Expected `prompt` or `prompt_embeds`, but got neither.")
        return len(arguments["prompt_embeds"])
    if isinstance(prompt, str):
        return 1
    if not prompt:
        raise ValueError("Expected at least one prompt, but got an empty list.")
    return len(prompt)


def names_per_prompt(pipe: Any) -> frozenset[str]:
    """Arguments of a pipeline that may hold one entry per prompt. Of several ControlNets, images are one per net."""
    return PER_PROMPT if hasattr(getattr(pipe, "controlnet", None), "nets") else PER_PROMPT | IMAGES


def entries(
    arguments: dict[str, Any], names: frozenset[str], num_prompts: int, prompts: Sequence[int]
) -> dict[str, Any]:
    """The arguments with the entries of some prompts, in that order, where they hold one for each of `num_prompts`.

    Args:
        names: see `names_per_prompt`.
        prompts: numbers from 0 to `num_prompts` - 1, any of them any number of times.
    """

    def of(name: str, value: Any) -> Any:
        if name in PER_PROMPT and isinstance(value, str):
            return [value] * len(prompts)
        if name not in names or not _one_per_prompt(name, value, num_prompts):
            return value
        return value[list(prompts)] if isinstance(value, (Tensor, np.ndarray)) else [value[p] for p in prompts]

    return {name: of(name, value) for name, value in arguments.items()}


def per_row(arguments: dict[str, Any], names: frozenset[str], num_prompts: int, rows_per_prompt: int) -> dict[str, Any]:
    """The arguments of a call with `rows_per_prompt` images per prompt, `num_images_per_prompt` included.

    Embeddings in place of prompts, which some pipelines do not repeat, and images of several prompts, which some repeat
    in another order than the prompts, are repeated here.

    Args:
        names: see `names_per_prompt`.
    """
    images = num_prompts > 1 and any(_one_per_prompt(name, arguments.get(name), num_prompts) for name in IMAGES & names)
    if arguments.get("prompt") is not None and not images:
        return {**arguments, "num_images_per_prompt": rows_per_prompt}
    rows = [prompt for prompt in range(num_prompts) for _ in range(rows_per_prompt)]
    return {**entries(arguments, names, num_prompts, rows), "num_images_per_prompt": 1}


def _one_per_prompt(name: str, value: Any, num_prompts: int) -> bool:
    if name in IMAGES and isinstance(value, (Tensor, np.ndarray)) and value.ndim < 4:
        return False
    return isinstance(value, (list, tuple, Tensor, np.ndarray)) and len(value) == num_prompts


def reward_prompts(arguments: dict[str, Any], reward_prompt: str | Sequence[str] | None, num_prompts: int) -> list[str]:
    """The P texts the reward reads: `reward_prompt` where it is given, else the pipeline's prompts.

    Raises:
        ValueError: if there are none, or not one per prompt.
    """
    texts = arguments.get("prompt") if reward_prompt is None else reward_prompt
    if texts is None:
        raise ValueError("With `prompt_embeds` the reward has no text to score against: pass `reward_prompt`.")
    texts = [texts] if isinstance(texts, str) else list(texts)
    if len(texts) != num_prompts:
        raise ValueError(f"Expected one `reward_prompt` for each of {num_prompts} prompts, but got {len(texts)}.")
    return texts


def texts_or_keys(arguments: dict[str, Any], num_prompts: int) -> list[Any]:
    """One value for each prompt, equal for equal prompts: its text, or the content of its embeddings."""
    prompt = arguments.get("prompt")
    if prompt is not None:
        return [prompt] if isinstance(prompt, str) else list(prompt)
    embeddings = arguments["prompt_embeds"].detach().to("cpu", torch.float32)
    return [embeddings[p].numpy().tobytes() for p in range(num_prompts)]


def image_size(pipe: Any, arguments: dict[str, Any]) -> tuple[int, int] | None:
    """(height, width) in pixels of the images; None for a pipeline without a size of its own."""
    default = getattr(pipe, "default_sample_size", None)
    if default is None:
        return None
    default *= pipe.vae_scale_factor
    return arguments.get("height") or default, arguments.get("width") or default

"""What a run needs to know of the arguments of a pipeline's call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def number_of_prompts(arguments: dict[str, Any]) -> int:
    """P.

    Raises:
        ValueError: if there is neither a prompt nor embeddings of one.
    """
    prompt = arguments.get("prompt")
    if prompt is None:
        if arguments.get("prompt_embeds") is None:
            raise ValueError("Expected `prompt` or `prompt_embeds`, but got neither.")
        return len(arguments["prompt_embeds"])
    return 1 if isinstance(prompt, str) else len(prompt)


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


def image_size(pipe: Any, arguments: dict[str, Any]) -> tuple[int, int] | None:
    """(height, width) in pixels of the images; None for a pipeline without a size of its own."""
    default = getattr(pipe, "default_sample_size", None)
    if default is None:
        return None
    default *= pipe.vae_scale_factor
    return arguments.get("height") or default, arguments.get("width") or default

"""Several wordings of one prompt, which go with the particles that began with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..smc import brief
from .layout import Layout, members_of, take_units


def wordings_of(
    arguments: Mapping[str, Any], pool: Any, num_prompts: int, per_prompt: int, num_particles: int
) -> tuple[str, ...]:
    """The text of each row: particle k of a population gets wording k mod n of its prompt.

    Args:
        arguments: of the pipeline's call.
        pool: a list of texts per prompt; for one prompt the texts themselves.

    Raises:
        TypeError: for anything else.
        ValueError: if there is not a list for each prompt, if one is empty or has more texts than there are particles,
            or if the pipeline is given no `prompt` that they could replace.
    """
    if arguments.get("prompt") is None:
        raise ValueError("`prompt_pool` holds wordings of `prompt`, but there is none.")
    if isinstance(pool, str) or not isinstance(pool, (list, tuple)):
        raise TypeError(f"Expected `prompt_pool` to be a list of texts for each prompt, but got {brief(pool)}.")
    flat = bool(pool) and all(isinstance(text, str) for text in pool)
    lists = [pool] if flat and num_prompts == 1 else list(pool)
    if flat and num_prompts > 1:
        raise ValueError(f"Expected a list of wordings for each of {num_prompts} prompts, but got one list of texts.")
    if len(lists) != num_prompts:
        raise ValueError(f"Expected a list of wordings for each of {num_prompts} prompts, but got {len(lists)} lists.")
    for texts in lists:
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"Expected `prompt_pool` to be a list of texts for each prompt, but got {brief(texts)}.")
        if not 1 <= len(texts) <= num_particles:
            raise ValueError(
                f"Expected from 1 to {num_particles} wordings of a prompt, one or more particles for each, but got "
                f"{len(texts)}. Raise `num_particles`, or leave some out."
            )
    return tuple(texts[k % len(texts)] for texts in lists for _ in range(per_prompt) for k in range(num_particles))


def check_conditions(arguments: Mapping[str, Any]) -> None:
    """Check that what a denoiser is conditioned on can follow the particles.

    Raises:
        ValueError: for objects that the denoiser keeps from step to step.
    """
    for name, value in arguments.items():
        if members_of(value) is not None:
            raise ValueError(
                f"The denoiser keeps something from step to step in its argument `{name}`, which cannot follow "
                "particles of different wordings. Leave `prompt_pool` out, or use a search that copies no particles."
            )


def following(
    arguments: Mapping[str, Any], layout: Layout, origins: Tensor, copies: int, names: Sequence[str]
) -> dict[str, Any]:
    """The arguments of a denoiser's call in which each row has what its particle began with, and not what the particle
    that began in its place did.

    Args:
        arguments: by name.
        layout: where their rows are.
        origins: (B,) the rows in which the particles began that are in the rows now.
        copies: how often the arguments hold the rows.
        names: of arguments that follow the particles already: samples, and what is made of them.
    """
    assert isinstance(layout, dict)
    index = (origins + len(origins) * torch.arange(copies)[:, None]).flatten()
    return {
        name: value if name in names or _is_of_samples(name) else take_units(value, layout.get(name), index)
        for name, value in arguments.items()
    }


def _is_of_samples(name: str) -> bool:
    """Whether an argument is what another network makes of the samples."""
    return "residual" in name or name.endswith("block_samples")

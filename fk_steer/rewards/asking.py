"""Rewards as they are asked by what uses them: an error names the reward, the prompt and where it happened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .base import Images, Reward, RewardError, RewardFunction, name_of, one_per_image
from .functions import FunctionReward


def encode_images(reward: Reward, images: Images, prompts: Sequence[str], where: str) -> Tensor | list[Any]:
    """What `reward.encode` makes of images: rewards (B,) where they are, or a list of B encodings.

    Args:
        where: completes "... returned shape (2, 1) ..." in messages, for example 'at step 20'.

    Raises:
        RewardError: unless there is one entry per image, or from what the reward raised.
    """
    encodings: Tensor | Sequence[Any]
    with blaming(reward, prompts, where):
        if isinstance(reward, FunctionReward):
            encodings = one_per_image(reward, reward.raw(images, prompts), prompts, where)
        elif type(reward).encode is Reward.encode and type(reward).__call__ is not Reward.__call__:
            encodings = one_per_image(reward, reward(images, prompts), prompts, where)
        else:
            encodings = reward.encode(images, prompts)
    if isinstance(encodings, Tensor):
        return one_per_image(reward, encodings, prompts, where)
    entries = list(encodings)
    if len(entries) != len(prompts):
        raise RewardError(
            f"Reward '{reward.name}' returned {len(entries)} encodings {where}, but one per image was expected, "
            f"{len(prompts)}."
        )
    return entries


def check_scores(reward: RewardFunction, values: Any, prompts: Sequence[str], where: str) -> Tensor:
    """The rewards (B,) of a batch, float64 on the CPU.

    Args:
        values: what the reward returned.
        prompts: B texts, for messages.
        where: completes "... returned NaN ..." in messages, for example 'at step 20'.

    Raises:
        RewardError: if there is NaN among them or they are anything but one number per image. +-inf is allowed.
    """
    rewards = one_per_image(reward, values, prompts, where).to("cpu", torch.float64)
    if rewards.isnan().any():
        prompt = prompts[int(rewards.isnan().nonzero()[0])]
        raise RewardError(f"Reward '{name_of(reward)}' returned NaN {where} for the prompt {prompt!r}.")
    return rewards


def check_combined(reward: Reward, rewards: Tensor, prompts: Sequence[str], where: str) -> Tensor:
    """The rewards (P, K) that `combine` made of checked scores.

    Raises:
        RewardError: if there is NaN among them, which comes of infinities of both signs, or of one weighed by 0.
    """
    if rewards.isnan().any():
        prompt = prompts[int(rewards.isnan().any(-1).nonzero()[0])]
        raise RewardError(
            f"Reward '{reward.name}' made NaN of infinite scores of its parts {where} for the prompt {prompt!r}."
        )
    return rewards


@contextmanager
def blaming(reward: RewardFunction, prompts: Sequence[str], where: str) -> Iterator[None]:
    """What a reward raises, as an error that names the reward, the prompts and where it happened.

    Raises:
        RewardError: from the reward's own error. One that is a `RewardError` already, or says that a device has no more
            memory, goes through as it is.
    """
    try:
        yield
    except (RewardError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        texts = list(dict.fromkeys(prompts))
        shown = ", ".join(map(repr, texts[:_SHOWN])) + (", ..." if len(texts) > _SHOWN else "")
        raise RewardError(
            f"Reward '{name_of(reward)}' raised {type(error).__name__} {where} for the prompt{'s'[: len(texts) > 1]} "
            f"{shown}: {error}"
        ) from error


_SHOWN = 3
"""Prompts in a message."""

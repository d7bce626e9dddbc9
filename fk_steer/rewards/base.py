"""What a reward is, and calling one safely."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from PIL.Image import Image
from torch import Tensor


Images = Tensor | Sequence[Image]


class RewardError(ValueError):
    """A reward returned something unusable; the message names the reward, the prompt and where it happened."""


class MissingScoreError(RewardError):
    """No score could be had for any image of a prompt; other prompts may have theirs."""


@runtime_checkable
class Reward(Protocol):
    """Says how good images are for prompts. A plain function with the signature of `__call__` is a reward too.

    Attributes:
        name: for messages and traces.
        default_lmbda: a lambda that suits the reward's scale; None if there is none to recommend.
    """

    name: str
    default_lmbda: float | None

    def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor:
        """Score each image for the prompt at the same position.

        Args:
            images: (B, 3, H, W) float in [0, 1] on any device, or B PIL images.
            prompts: B texts.

        Returns:
            (B,) float32 on the device of the images (of the reward for PIL images); higher is better.
        """
        ...


RewardFunction = Reward | Callable[[Any, Sequence[str]], Any]


def name_of(reward: RewardFunction | Callable[..., Any]) -> str:
    return str(getattr(reward, "name", None) or getattr(reward, "__name__", None) or type(reward).__name__)


def check_one_prompt_per_image(images: Images, prompts: Sequence[str]) -> None:
    """For rewards to call on what they are given.

    Raises:
        ValueError: unless there are as many prompts as images, or for a text instead of a list of them.
    """
    if isinstance(prompts, str):
        raise ValueError(f"Expected a list of prompts, one per image, but got the text {prompts!r}.")
    if len(images) != len(prompts):
        raise ValueError(f"Expected one prompt per image, but got {len(images)} images and {len(prompts)} prompts.")


def device_of(images: Images, otherwise: torch.device) -> torch.device:
    """Where the rewards of `images` belong: their device, or `otherwise` for PIL images."""
    return images.device if isinstance(images, Tensor) else otherwise


def lmbda_for(reward: RewardFunction, lmbda: float | None) -> float | None:
    """`lmbda`, or the reward's default; None if there is neither."""
    return getattr(reward, "default_lmbda", None) if lmbda is None else lmbda


@runtime_checkable
class CompositeReward(Protocol):
    """A reward of a particle that is made from several scores of all particles of its prompt.

    Attributes:
        name, default_lmbda: as for any `Reward`.
        parts: name -> reward that is scored image by image.
    """

    name: str
    default_lmbda: float | None
    parts: Mapping[str, RewardFunction]

    def combine(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Rewards (P, K) from the scores (P, K) of each part; K particles for each of P prompts."""
        ...


@runtime_checkable
class GroupReward(Protocol):
    """A reward of a particle that depends on the other particles of its prompt. It works in two steps, so that images
    may come in blocks of any size: `encode` takes from each image alone what is needed of it, and `reward_groups` sees
    all of a prompt. `fk_steer.rewards.group.GroupedReward` adds `__call__`.

    Attributes:
        name, default_lmbda: as for any `Reward`.
        relative: whether rewards say only how a particle compares with those beside it, so that they mean nothing
            outside the population, and no normalising constant can be estimated from them.
    """

    name: str
    default_lmbda: float | None
    relative: bool

    def encode(self, images: Images, prompts: Sequence[str]) -> Sequence[Any]:
        """What `reward_groups` needs of each image, one entry per image. Called on blocks of images."""
        ...

    def reward_groups(
        self, encodings: Sequence[Any], members: Sequence[Tensor], prompts: Sequence[str]
    ) -> Sequence[Tensor]:
        """The rewards of all particles of all prompts.

        Args:
            encodings: D results of `encode`, of distinct images.
            members: for each of P groups (K_p,) indices into `encodings`, one per particle; copies of a particle share
                one.
            prompts: P texts.

        Returns:
            (K_p,) rewards for each group.
        """
        ...


def parts_of(reward: RewardFunction | CompositeReward) -> dict[str, RewardFunction]:
    """Name -> reward to score images with: the parts of a composite, or the reward itself."""
    if isinstance(reward, CompositeReward):
        return dict(reward.parts)
    return {name_of(reward): reward}


def combine(reward: RewardFunction | CompositeReward, scores: Mapping[str, Tensor]) -> Tensor:
    """Rewards (P, K) from the scores (P, K) of `parts_of(reward)`."""
    if isinstance(reward, CompositeReward):
        return reward.combine(scores)
    (score,) = scores.values()
    return score


def particle_scores(part: RewardFunction, scores: Any, members: Tensor, prompts: Sequence[str], where: str) -> Tensor:
    """Scores (P, K), float64, of particles from what `Scorer` found for distinct images.

    Args:
        scores: rewards (D,), or D encodings if the part is a `GroupReward`.
        members: (P, K) which of the D each particle is.
        prompts: P texts.
        where: for messages.

    Raises:
        RewardError: if a group reward returns NaN or anything but one number per particle.
    """
    if not isinstance(part, GroupReward):
        return scores[members]
    groups = part.reward_groups(scores, list(members), prompts)
    return torch.stack(
        [
            _checked(part, rewards, [prompt] * members.shape[1], where)
            for rewards, prompt in zip(groups, prompts, strict=True)
        ]
    )


def reward_at(reward: Any, progress: float) -> Any:
    """The reward in use at a progress in [0, 1] of the loop: a cascade has several."""
    return reward.at(progress) if hasattr(reward, "at") else reward


def standardize(rewards: Tensor) -> Tensor:
    """z-scores (P, K) within each prompt: mean 0 and standard deviation 1 over its particles, all 0 where they tie.

    Infinite rewards stay as they are and do not enter the mean.
    """
    finite = rewards.isfinite()
    count = finite.sum(1, keepdim=True).clamp(min=1)
    values = torch.where(finite, rewards, 0.0)
    centred = torch.where(finite, rewards - values.sum(1, keepdim=True) / count, 0.0)
    spread = (centred.square().sum(1, keepdim=True) / count).sqrt()
    scores = torch.where(spread > 1e-12 * values.abs().amax(1, keepdim=True), centred / spread, 0.0)
    return torch.where(finite, scores, rewards)


def evaluate(reward: RewardFunction, images: Images, prompts: Sequence[str], where: str) -> Tensor:
    """The rewards (B,) of a batch, float64 on the CPU, checked.

    Args:
        where: completes "... returned NaN ..." in messages, for example 'at step 20'.

    Raises:
        RewardError: if the reward returns NaN or anything but one number per image. +-inf is allowed.
    """
    return _checked(reward, reward(images, prompts), prompts, where)


def _checked(reward: RewardFunction, values: Any, prompts: Sequence[str], where: str) -> Tensor:
    rewards = torch.as_tensor(values).detach().to("cpu", torch.float64)
    if rewards.shape != (len(prompts),):
        raise RewardError(
            f"Reward '{name_of(reward)}' returned shape {tuple(rewards.shape)} {where}, but one number per image was "
            f"expected, ({len(prompts)},). First prompt: {prompts[0]!r}."
        )
    if rewards.isnan().any():
        prompt = prompts[int(rewards.isnan().nonzero()[0])]
        raise RewardError(f"Reward '{name_of(reward)}' returned NaN {where} for the prompt {prompt!r}.")
    return rewards

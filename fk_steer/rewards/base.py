"""What a reward is, and the checks of what it is given and what it returns.

Rewards are a closed algebra: a reward that is scored on its own is a *leaf*, and whatever is made of rewards
(`fk_steer.rewards.composite`) is a reward again, a tensor function of the scores of its leaves. Steering scores each
leaf once per distinct image, shows it all particles of a prompt, and combines.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from llava_reward_guide.images import check_form

from ..smc import brief
from .waiting import waiting


Images = Tensor | Sequence[Image]


class RewardError(ValueError):
    """A reward returned something unusable; the message names the reward, the prompt and where it happened."""


class MissingScoreError(RewardError):
    """No score could be had for any image of a prompt; other prompts may have theirs."""


class _ClassName:
    """The name of the class, until a class or an object says otherwise."""

    def __get__(self, instance: object, owner: type) -> str:
        return owner.__name__


class Reward:
    """Says how good images are for prompts; higher is better.

    A subclass that scores image by image defines `__call__`:

    ```py
    class Redness(Reward):
        default_lmbda = 10.0

        def __call__(self, images, prompts):
            return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))
    ```

    One that needs all particles of a prompt defines `encode` and `of_particles`. A plain function is made a reward by
    `as_reward`, which everything that takes a reward calls. Any of these may be async, or return a list of awaitables,
    of which 16 at a time are awaited together; who calls a reward gets numbers in any case.

    Attributes:
        name: for messages and traces; the name of the class if it does not say another.
        default_lmbda: a lambda that suits the reward's scale; None if there is none to recommend.
        relative: whether it says only how the particles of a prompt compare with one another, so that its values mean
            nothing elsewhere and no normalising constant can be estimated from them.
        standardize: whether steering weighs z-scores of it within each prompt.
        takes_videos: whether it scores videos (B, F, 3, H, W) in [0, 1] in place of images.
    """

    name: str = _ClassName()  # type: ignore[assignment]
    default_lmbda: float | None = None
    relative: bool = False
    standardize: bool = False
    takes_videos: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("__call__", "encode", "of_particles"):
            if inspect.isfunction(vars(cls).get(name)):
                setattr(cls, name, waiting(vars(cls)[name]))

    @torch.no_grad()
    def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor:
        """Score each image for the prompt at the same position. By default that is what steering would make of them
        as final images, those of one prompt being its particles.

        Args:
            images: (B, 3, H, W) float in [0, 1] on any device, or B PIL images.
            prompts: B texts.

        Returns:
            (B,) float32 on the device of the images (of the reward for PIL images).

        Raises:
            ValueError: unless there is one prompt per image.
            TypeError: if the class defines neither this nor `encode`.
        """
        check_one_prompt_per_image(images, prompts, self.takes_videos)
        of_prompt: dict[str, list[int]] = {}
        for index, prompt in enumerate(prompts):
            of_prompt.setdefault(prompt, []).append(index)
        members = [torch.tensor(indices) for indices in of_prompt.values()]
        rewards = torch.empty(len(prompts), dtype=torch.float32, device=device_of(images, torch.device("cpu")))
        for indices, values in zip(members, rewards_of_particles(self, images, members, list(of_prompt))):
            rewards[indices.to(rewards.device)] = values.to(rewards)
        return rewards

    def encode(self, images: Images, prompts: Sequence[str]) -> Tensor | Sequence[Any]:
        """What is kept of each image, one entry per image, for `of_particles`. Images may come in blocks of any size.

        By default the rewards (B,), on the device they were computed on, which is not waited for.

        Raises:
            RewardError: if they are anything but one number per image.
            TypeError: if the class defines neither this nor `__call__`.
        """
        if type(self).__call__ is Reward.__call__:
            raise TypeError(
                f"Expected the class {type(self).__name__} to define `__call__`, or `encode` and `of_particles`."
            )
        return one_per_image(self, self(images, prompts), prompts)

    def of_particles(
        self, encodings: Tensor | Sequence[Any], members: Sequence[Tensor], prompts: Sequence[str]
    ) -> list[Tensor]:
        """The rewards of all particles of all prompts.

        Args:
            encodings: D results of `encode`, of distinct images: (D,) float64 on the CPU if they are rewards, else a
                list.
            members: for each of P prompts (K_p,) indices into `encodings`, one per particle; copies of a particle
                share one.
            prompts: P texts.

        Returns:
            (K_p,) float64 on the CPU for each prompt.
        """
        assert isinstance(encodings, Tensor)
        return [encodings[group] for group in members]

    def details(
        self, encodings: Tensor | Sequence[Any], members: Sequence[Tensor], prompts: Sequence[str]
    ) -> list[list[dict[str, float]]] | None:
        """What the rewards of all particles were made of, for the trace and the report: for each prompt and each of
        its particles numbers by name. None, the default, for rewards that have nothing more to say.

        Args:
            encodings: see `of_particles`.
            members: likewise.
            prompts: likewise.
        """
        return None

    @property
    def leaves(self) -> tuple[Reward, ...]:
        """The rewards that are scored on their own, each once."""
        return (self,)

    def combine(self, scores: Mapping[Reward, Tensor]) -> Tensor:
        """The rewards (P, K) of K particles of P prompts, or (K,) of one, from the scores of the leaves, likewise."""
        return scores[self]

    def missing(self, scores: Mapping[Reward, Tensor], among: Tensor) -> dict[Reward, Tensor]:
        """Which particles have yet to be scored by which leaves before `combine` can be asked; nothing once it can.

        Args:
            scores: (P, K), or (K,), of the leaves so far, NaN for particles that they have not scored.
            among: (P, K), or (K,), the particles whose rewards are needed.

        Returns:
            Leaf -> which particles, a mask of the same shape.
        """
        found = {leaf: among & scores[leaf].isnan() if leaf in scores else among for leaf in self.leaves}
        return {leaf: mask for leaf, mask in found.items() if mask.any()}

    def at(self, progress: float) -> Reward:
        """The reward in force at a progress of the loop in [0, 1]; at 1 the final images are scored. The same object
        as long as the same is in force."""
        return self


RewardFunction = Reward | Callable[..., Any]
"""What scores images: a reward, or a function of images and prompts or of images alone."""


def rewards_of_particles(
    reward: Reward, images: Images, members: Sequence[Tensor], prompts: Sequence[str]
) -> list[Tensor]:
    """The rewards of all particles of all prompts as final images, each leaf asked for each image once.

    Args:
        images: D distinct ones, each of one prompt.
        members: for each of P prompts (K_p,) indices into `images`, one per particle; copies of a particle share one.
        prompts: P texts.

    Returns:
        (K_p,) float64 on the CPU for each prompt.
    """
    reward = reward.at(1.0)
    prompt_of = {i: prompt for group, prompt in zip(members, prompts) for i in group.tolist()}
    scores: list[dict[Reward, Tensor]] = [{} for _ in members]
    asked: list[dict[Reward, Tensor]] = [{} for _ in members]
    while True:
        wanted = [
            # What was scored NaN is not asked for again.
            {leaf: mask for leaf, mask in missing.items() if not (leaf in old and (mask <= old[leaf]).all())}
            for missing, old in zip(
                (reward.missing(known, torch.ones(len(m)).bool()) for known, m in zip(scores, members)), asked
            )
        ]
        leaves = dict.fromkeys(leaf for some in wanted for leaf in some)
        if not leaves:
            break
        for leaf in leaves:
            groups = [p for p, some in enumerate(wanted) if leaf in some]
            chosen = [members[p][wanted[p][leaf]] for p in groups]
            indices = torch.cat(chosen).unique()
            encodings = leaf.encode(_some_of(images, indices), [prompt_of[i] for i in indices.tolist()])
            if isinstance(encodings, Tensor):
                encodings = encodings.to("cpu", torch.float64)
            places = [torch.searchsorted(indices, some) for some in chosen]
            found = leaf.of_particles(encodings, places, [prompts[p] for p in groups])
            for p, values in zip(groups, found):
                mask = wanted[p][leaf]
                scores[p][leaf] = placed(values, mask, scores[p].get(leaf))
                asked[p][leaf] = mask | asked[p].get(leaf, mask)
    return [reward.combine(of_prompt) for of_prompt in scores]


def name_of(reward: RewardFunction | Callable[..., Any]) -> str:
    """The `name` of a reward, the name of a function, or that of an object's class."""
    return str(getattr(reward, "name", None) or getattr(reward, "__name__", None) or type(reward).__name__)


def names_of(rewards: Sequence[Reward]) -> dict[Reward, str]:
    """A name for each reward, their own where it is one reward's alone, else with a number behind it."""
    names: dict[Reward, str] = {}
    for reward in rewards:
        name, number = reward.name, 1
        while name in names.values():
            number += 1
            name = f"{reward.name} ({number})"
        names[reward] = name
    return names


def placed(values: Tensor, mask: Tensor, known: Tensor | None) -> Tensor:
    """Scores with `values` where `mask` is, in its order, else those that are known, NaN if none are."""
    scores = torch.full(mask.shape, torch.nan, dtype=torch.float64) if known is None else known.clone()
    scores[mask] = values.to(scores)
    return scores


def _some_of(images: Images, indices: Tensor) -> Images:
    if len(indices) == len(images):
        return images
    return images[indices.to(images.device)] if isinstance(images, Tensor) else [images[i] for i in indices.tolist()]


def check_one_prompt_per_image(images: Images, prompts: Sequence[str], videos: bool = False) -> None:
    """For rewards to call on what they are given.

    Raises:
        ValueError: unless there are as many prompts as images, for a text instead of a list of them, or if the images
            are not as rewards take them.
    """
    if not videos:
        check_form(images)
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


def as_numbers(reward: RewardFunction, values: Any, prompts: Sequence[str] = (), where: str = "") -> Tensor:
    """What a reward returned for B images as a tensor, (B, 1) as (B,).

    Raises:
        RewardError: if it cannot be one of real numbers.
    """
    returned = f"Reward '{name_of(reward)}' returned {{}}{where and f' {where}'}, but one number per image was expected"
    ending = f". First prompt: {prompts[0]!r}." if len(prompts) else "."
    try:
        numbers = torch.as_tensor(values).detach()
    # Objects of other libraries bring errors of any kind.
    except Exception as error:
        raise RewardError(returned.format(brief(values)) + ending) from error
    if numbers.is_complex():
        raise RewardError(returned.format("complex numbers") + ending)
    return numbers.squeeze(1) if numbers.ndim == 2 and numbers.shape[1] == 1 else numbers


def one_per_image(reward: RewardFunction, values: Any, prompts: Sequence[str], where: str = "") -> Tensor:
    """What a reward returned for B prompts as a tensor (B,), on its device; (B, 1) is taken for that.

    Args:
        where: completes "... returned shape (2, 1) ..." in messages, for example 'at step 20'.

    Raises:
        RewardError: if it is anything but one real number per image.
    """
    rewards = as_numbers(reward, values, prompts, where)
    if rewards.shape != (len(prompts),):
        raise RewardError(
            f"Reward '{name_of(reward)}' returned shape {tuple(rewards.shape)}{where and f' {where}'}, but one number "
            f"per image was expected, ({len(prompts)},). First prompt: {prompts[0]!r}."
        )
    return rewards

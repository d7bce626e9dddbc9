"""Functions as rewards, and whatever else stands for one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from llava_reward_guide.images import to_pil

from .base import (
    Images,
    Reward,
    RewardFunction,
    as_numbers,
    check_one_prompt_per_image,
    device_of,
    name_of,
    one_per_image,
)
from .signatures import caller


class FunctionReward(Reward):
    """A function of images and prompts, or of images alone, as a reward. Two of one function are equal.

    Args:
        function: (images, prompts) -> B numbers, or (images) -> B numbers; its `name`, `default_lmbda`, `relative`,
            `standardize` and `takes_videos` are the reward's, where it has them.
    """

    def __init__(self, function: Callable[[Any, Sequence[str]], Any]) -> None:
        self.function, self._call = function, caller(function)
        self.name = name_of(function)
        self.default_lmbda = getattr(function, "default_lmbda", None)
        self.relative = bool(getattr(function, "relative", False))
        self.standardize = bool(getattr(function, "standardize", False))
        self.takes_videos = bool(getattr(function, "takes_videos", False))

    def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor:
        """What the function returns, as a tensor."""
        return as_numbers(self, self.raw(images, prompts))

    def raw(self, images: Images, prompts: Sequence[str]) -> Any:
        """What the function returns."""
        return self._call(images, prompts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FunctionReward) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __repr__(self) -> str:
        return f"FunctionReward({self.name})"

    @property
    def _identity(self) -> tuple[int, ...]:
        """A method is another object each time it is looked up."""
        if inspect.ismethod(self.function):
            return id(self.function.__self__), id(self.function.__func__)
        return (id(self.function),)


class PILReward(Reward):
    """See `as_pil`."""

    def __init__(
        self, function: Callable[[list[Image], list[str]], Any], name: str | None, default_lmbda: float | None
    ) -> None:
        self.function, self._call, self.name = function, caller(function), name or name_of(function)
        self.default_lmbda = default_lmbda

    def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor:
        check_one_prompt_per_image(images, prompts)
        values = one_per_image(self, self._call(to_pil(images), list(prompts)), prompts)
        return values.to(device_of(images, values.device), torch.float32)


def as_pil(
    function: Callable[[list[Image], list[str]], Any], name: str | None = None, default_lmbda: float | None = None
) -> Reward:
    """A reward of a function that looks at PIL images, the form most scorers have. Usable as a decorator.

    ```py
    reward = as_pil(lambda pictures, prompts: [scorer.score(p, text) for p, text in zip(pictures, prompts)])
    ```

    Args:
        function: (B RGB images, B prompts) -> B numbers, or of the images alone; it may be async. Tensors become the
            images that would be saved, 8 bits a channel.
        name: None for the function's.
        default_lmbda: a lambda that suits its scale; None for none, and then steering has to be given one.

    Raises:
        TypeError: unless it can be called with images and prompts, or with images.
    """
    return PILReward(function, name, default_lmbda)


def as_reward(value: RewardFunction | str | Mapping[Any, float]) -> Reward:
    """A reward of what stands for one.

    Args:
        value: a reward, which is returned as it is; a function (images, prompts) -> B numbers or (images) -> B numbers,
            or an object with such a call; a name, of which `load_reward` makes a reward, anew each time; or a mapping
            of any of these to weights, which is their `WeightedSum`.

    Raises:
        ValueError: for a name that is not known or a weight that is not finite.
        RewardLoadError: if the weights of a named reward cannot be loaded.
        TypeError: for anything else.
    """
    if isinstance(value, str):
        from .registry import load_reward

        return as_reward(load_reward(value))
    if isinstance(value, Mapping):
        from .composite import WeightedSum

        return WeightedSum(value)
    if not isinstance(value, Reward) or not _is_called_with_both(value):
        return FunctionReward(value)
    if type(value).__hash__ is None:
        raise TypeError(
            f"Expected the reward '{value.name}' to be hashable, as scores are kept by reward, but "
            f"{type(value).__name__} defines `__eq__` alone. A dataclass needs `eq=False`."
        )
    return value


def _is_called_with_both(reward: Reward) -> bool:
    """Whether a reward's own call, if it is what counts, takes images and prompts as `Reward`'s does."""
    if type(reward).__call__ is Reward.__call__ or type(reward).encode is not Reward.encode:
        return True
    try:
        inspect.signature(reward).bind(None, None)
    except TypeError:
        return False
    return True

"""What the rewards share whose model runs in this process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .base import Images, check_one_prompt_per_image, device_of
from .card import RewardCard
from .loading import default_device


class LocalReward(ABC):
    """A model on this machine that scores images for prompts.

    `reward(images, prompts)` is what steering uses: images are rounded to 8 bits first, so that what is scored is what
    would be saved, they are resized as Pillow does, and no gradients are kept.

    `reward.score(images, prompts)` is differentiable with respect to `images`: nothing is rounded and the resizing is
    torch's, with the same kernel. The two differ by the rounding, about 1e-3 of the pixels' range.

    A subclass says how images become the model's inputs (`preprocess`) and what the model makes of them (`rate`).

    Attributes:
        model: gradients of its parameters are off.
        device, dtype: of the model.
        differentiable: whether `score` has gradients.
    """

    name: ClassVar[str]
    card: ClassVar[RewardCard]
    differentiable: ClassVar[bool] = True
    default_lmbda: float | None
    model: nn.Module

    @classmethod
    def from_modules(
        cls,
        *modules: Any,
        variant: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        compile: bool = False,
    ) -> Any:
        """A reward of models that are in memory already, instead of weights to load.

        Args:
            *modules: model and tokenizer, as `_assemble` of the reward takes them.
            variant, device, dtype, compile: as when it is loaded.

        Raises:
            ValueError: for an unknown variant.
        """
        variant = variant or next(iter(cls.card.variants), "")
        if variant:
            check_variant(variant, cls.card, cls.name)
        reward = cls.__new__(cls)
        reward._assemble(*modules, variant=variant, device=device, dtype=dtype, compile=compile)
        return reward

    @abstractmethod
    def _assemble(
        self,
        *modules: Any,
        variant: str,
        device: torch.device | str | None,
        dtype: torch.dtype | str | None,
        compile: bool,
    ) -> None:
        """Make ready to score; `__init__` calls it with what it has loaded."""

    def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor:
        """See `Reward`.

        Raises:
            ValueError: unless there are as many prompts as images.
        """
        with torch.no_grad():
            return self._score(images, prompts, exact=True)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The rewards (B,) of float images (B, 3, H, W) in [0, 1], differentiable with respect to the images.

        Raises:
            ValueError: unless there are as many prompts as images, or if the images are not a float tensor.
        """
        if not isinstance(images, Tensor) or not images.is_floating_point():
            raise ValueError("Expected `images` to be a float tensor (B, 3, H, W) in [0, 1], which has gradients.")
        return self._score(images, prompts, exact=False)

    def _score(self, images: Images, prompts: Sequence[str], exact: bool) -> Tensor:
        check_one_prompt_per_image(images, prompts)
        scores = self.rate(self.preprocess(images, exact), prompts)
        return scores.to(device_of(images, self.device), torch.promote_types(scores.dtype, torch.float32))

    @abstractmethod
    def preprocess(self, images: Images, exact: bool = True) -> Any:
        """The inputs of the model, as the original prepares them.

        Args:
            exact: round to 8 bits where the original does; False keeps everything differentiable.
        """

    @abstractmethod
    def rate(self, inputs: Any, prompts: Sequence[str]) -> Tensor:
        """The rewards (B,) of preprocessed images."""

    def _set_up(
        self,
        modules: nn.Module,
        device: torch.device | str | None,
        dtype: torch.dtype,
        compiled: Iterable[nn.Module] = (),
    ) -> None:
        self.device, self.dtype = default_device(device), dtype
        self.model = modules.to(self.device, dtype).eval().requires_grad_(False)
        for module in compiled:
            module.compile()


class PromptCache:
    """What a function makes of prompts, kept for the prompts of the last calls: steering asks for the same ones at
    every event.

    Args:
        compute: prompts -> one value per prompt.
        size: prompts kept.
    """

    def __init__(self, compute: Callable[[list[str]], Iterable[Any]], size: int = 4096) -> None:
        self._compute, self._size = compute, size
        self._values: dict[str, Any] = {}

    def __call__(self, prompts: Sequence[str]) -> list[Any]:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._values]
        if len(self._values) + len(new) > self._size:
            self._values.clear()
            new = list(dict.fromkeys(prompts))
        if new:
            with torch.no_grad():
                self._values.update(zip(new, self._compute(new)))
        return [self._values[prompt] for prompt in prompts]


def default_dtype(
    device: torch.device | str | None, dtype: torch.dtype | str | None, on_cuda: torch.dtype
) -> torch.dtype:
    """`dtype`, or its name; if None, the one the original runs in on CUDA devices, and float32 elsewhere.

    Raises:
        ValueError: for a name that is not one of torch's floating-point types.
    """
    if dtype is None:
        return on_cuda if default_device(device).type == "cuda" else torch.float32
    named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(named, torch.dtype) or not named.is_floating_point:
        raise ValueError(f"Expected `dtype` to be a floating-point type, such as 'float16', but got {dtype!r}.")
    return named


def check_variant(variant: str, card: RewardCard, name: str) -> None:
    """
    Raises:
        ValueError: for an unknown variant, listing the known ones.
    """
    if variant not in card.variants:
        raise ValueError(f"Unknown variant {variant!r} of {name}. Known: {', '.join(card.variants)}.")


def unit(features: Tensor) -> Tensor:
    """Features (..., D) of length one, in float32 or better."""
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    return features / features.norm(dim=-1, keepdim=True)

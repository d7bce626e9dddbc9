"""What the rewards share whose model runs in this process."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..bundled import resolve_reward
from ..smc import unknown
from .base import Images, Reward, check_one_prompt_per_image, device_of
from .card import RewardCard
from .loading import default_device


@dataclass(frozen=True)
class Source:
    """Where the weights of a reward are read from.

    Attributes:
        path: file, folder or hub id.
        revision: commit of a hub id.
        given: whether the caller said so; otherwise it is the card's hub id at its pinned commit.
        card: of the variant.
        dtype: what the model is to run in.
    """

    path: str
    revision: str | None
    given: bool
    card: RewardCard
    dtype: torch.dtype


class LocalReward(Reward, ABC):
    """A model on this machine that scores images for prompts.

    `reward(images, prompts)` is what steering uses: images are rounded to 8 bits first, so that what is scored is what
    would be saved, they are resized as Pillow does, and no gradients are kept.

    `reward.score(images, prompts)` is differentiable with respect to `images`: nothing is rounded and the resizing is
    torch's, with the same kernel. The two differ by the rounding, about 1e-3 of the pixels' range.

    A subclass has a `card` and says how its weights become modules (`load`), how images become the model's inputs
    (`preprocess`), what is kept of prompts (`read`) and what the model makes of both (`rate`). Keyword arguments of
    `load` are options of the reward beside those of every reward.

    Args:
        variant: one of the card's; the first if not given.
        path: file, folder or hub id of the weights, or the name of a bundled pipeline for weights that come with it;
            None for the published ones.
        revision: commit of a hub id given as `path`; None for the newest.
        device: None for a CUDA device if there is one.
        dtype: of the model, or its name; None for the card's on CUDA devices, as the original, and float32 elsewhere.
        compile: run the model through `torch.compile`.
        **options: of the reward.

    Attributes:
        variant: see above.
        model: gradients of its parameters are off.
        tokenizer: None if the reward has none.
        device, dtype: of the model.
        differentiable: whether `score` has gradients.

    Raises:
        ValueError: for an unknown variant or a type that is not one of floating-point numbers.
        TypeError: for an unknown option.
        RewardLoadError: if the weights cannot be loaded.
    """

    card: ClassVar[RewardCard]
    differentiable: ClassVar[bool] = True
    kept_prompts: ClassVar[int] = 4096
    """Of which `prompts` keeps what `read` makes of them."""
    model: Any
    tokenizer: Any = None
    __signature__: ClassVar[inspect.Signature | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """`inspect.signature` of a reward tells all of its options."""
        super().__init_subclass__(**kwargs)
        if cls.__init__ is not LocalReward.__init__ or not hasattr(cls, "card"):
            cls.__signature__ = None
            return
        first, *shared, _ = [
            parameter
            for name, parameter in inspect.signature(LocalReward.__init__).parameters.items()
            if name != "self"
        ]
        own = [value for value in inspect.signature(cls.load).parameters.values() if value.kind is value.KEYWORD_ONLY]
        default = next(iter(cls.card.variants), "")
        cls.__signature__ = inspect.Signature(
            [
                first.replace(default=default),
                *(value.replace(kind=value.POSITIONAL_OR_KEYWORD) for value in shared),
                *own,
            ]
        )

    def __init__(
        self,
        variant: str | None = None,
        path: str | None = None,
        revision: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        compile: bool = False,
        **options: Any,
    ) -> None:
        variant, card = self._card_of(variant)
        given = path is not None
        source = Source(
            resolve_reward(self.name, path) if path is not None else str(card.hub_id),
            revision if given else revision or card.revision,
            given,
            card,
            default_dtype(device, dtype, card.dtype),
        )
        self._assemble(*self.load(source, **options), variant=variant, device=device, dtype=dtype, compile=compile)

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
            *modules: model and tokenizer, as `load` of the reward returns them.
            variant, device, dtype, compile: as when it is loaded.

        Raises:
            ValueError: for an unknown variant.
        """
        variant, _ = cls._card_of(variant)
        reward = cls.__new__(cls)
        reward._assemble(*modules, variant=variant, device=device, dtype=dtype, compile=compile)
        return reward

    @abstractmethod
    def load(self, source: Source) -> tuple[Any, ...]:
        """The model, and the tokenizer if there is one. Options of the reward are keyword-only, with a default.

        Raises:
            RewardLoadError: if the weights cannot be loaded.
        """

    @classmethod
    def _card_of(cls, variant: str | None) -> tuple[str, RewardCard]:
        variant = variant or next(iter(cls.card.variants), "")
        if not variant:
            return variant, cls.card
        check_variant(variant, cls.card, cls.name)
        return variant, cls.card.variant(variant)

    def _assemble(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        variant: str,
        device: torch.device | str | None,
        dtype: torch.dtype | str | None,
        compile: bool,
    ) -> None:
        card = self._card_of(variant)[1]
        self.variant, self.default_lmbda = variant, card.default_lmbda
        self.device, self.dtype = default_device(device), default_dtype(device, dtype, card.dtype)
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        self.place()
        self.prompts = PromptCache(self.read, self.kept_prompts)
        if compile:
            for module in self.compiled:
                module.compile()

    def place(self) -> None:
        """Bring the model to its device and dtype."""
        self.model.to(self.device, self.dtype)

    @property
    def compiled(self) -> Iterable[nn.Module]:
        """What `compile=True` compiles."""
        return (self.model,)

    def read(self, prompts: list[str]) -> Iterable[Any]:
        """What is kept of each prompt, such as tokens, and had from `self.prompts`; by default the text."""
        return prompts

    def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor:
        """The scores (B,) of images for their prompts, without gradients.

        Raises:
            ValueError: unless there are as many prompts as images.
        """
        with torch.no_grad():
            return self._score(images, prompts, exact=True)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The rewards (B,) of float images (B, 3, H, W) in [0, 1], differentiable with respect to the images.

        Raises:
            ValueError: unless there are as many prompts as images, if the images are not a float tensor, or if the
                reward is not differentiable.
        """
        if not self.differentiable:
            raise ValueError(f"The reward '{self.name}' has no gradients with the variant {self.variant!r}.")
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
    device: torch.device | str | None, dtype: torch.dtype | str | None, on_cuda: str | None = None
) -> torch.dtype:
    """`dtype`, or its name; if None, `on_cuda` on CUDA devices and float32 elsewhere.

    Raises:
        ValueError: for a name that is not one of torch's floating-point types.
    """
    if dtype is None:
        dtype = (on_cuda if default_device(device).type == "cuda" else None) or torch.float32
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
        raise unknown("variant", variant, card.variants, of=f" of {name}")


def unit(features: Tensor) -> Tensor:
    """Features (..., D) of length one, in float32 or better."""
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    return features / features.norm(dim=-1, keepdim=True)

"""The arguments of a pipeline's call for a row per particle.

Pipelines differ in how they come from a prompt to several rows. Most can repeat what they have made of it
(`num_images_per_prompt`), but not all of them get the order right for several prompts, and some do not repeat masks,
embeddings or images. Lists with an entry per row are what most are right for; one image for all rows, and a pipeline's
own repeating, are left for those that take no such lists.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from .components import call_names


_TEXT = re.compile(r"(negative_)?prompt(_\d)?")
_ENCODED = re.compile(r"(?!ip_adapter|negative_ip_adapter).*(embeds|embeddings|attention_mask|embeds_mask)(_\w+)?|hint")
_IMAGE = re.compile(
    r"(image|video|mask_image|mask|control_image|control_video|control_mask|last_image|original_image|frames|mask_video|"
    r"conditioning_frames|(\w+_)?images)"
    r"|(masked_)?(image|video)_latents|depth_map"
)

NUMBERS = ("num_images_per_prompt", "num_videos_per_prompt")
"""What pipelines call the number of results per prompt."""


@dataclass(frozen=True)
class Way:
    """A way of asking a pipeline for several rows per prompt.

    Attributes:
        repeats: what is given once per row: 'nothing', 'texts' (prompts and what was encoded of them), or 'everything',
            images and videos too; or 'as given', for one row per prompt.
    """

    repeats: str

    def arguments(
        self, pipe: Any, arguments: Mapping[str, Any], num_prompts: int, prompts: Sequence[int]
    ) -> dict[str, Any]:
        """The arguments for rows of some prompts.

        Args:
            arguments: as given for `num_prompts` prompts, without the number of results per prompt.
            prompts: for each row the number of its prompt, those of one prompt together.
        """
        if self.repeats == "as given":
            return dict(arguments)
        if self.repeats == "nothing":
            number = number_name(pipe)
            assert number is not None
            return {**arguments, number: len(prompts) // num_prompts}
        one_image_per_net = _takes_one_image_per_net(pipe)

        def of(name: str, value: Any) -> Any:
            if _TEXT.fullmatch(name):
                return _texts(value, num_prompts, prompts)
            if _ENCODED.fullmatch(name):
                return _indexed(value, num_prompts, prompts)
            if _IMAGE.fullmatch(name) and not one_image_per_net:
                several = num_prompts > 1 and _has_one_per_prompt(name, value, num_prompts)
                if several or self.repeats == "everything":
                    return _images(name, value, num_prompts, prompts)
            return value

        return {name: of(name, value) for name, value in arguments.items()}

    def generators(self, generators: Sequence[torch.Generator]) -> torch.Generator | list[torch.Generator]:
        """What a pipeline is given of the generators of its rows."""
        return generators[0] if self.repeats == "as given" and len(generators) == 1 else list(generators)


def encoded_once(
    encode: Callable[..., Any], names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """What `encode_prompt` makes of lists of texts, each combination of texts encoded once.

    Args:
        encode: the pipeline's own, with parameters `names`.
    """
    given = {**dict(zip(names, args)), **kwargs}
    texts = {name: value for name, value in given.items() if _TEXT.fullmatch(name) and isinstance(value, list)}
    sizes = {len(value) for value in texts.values()}
    alone = all(given.get(name) in (None, 1) for name in NUMBERS)
    embeds = any(value is not None and _ENCODED.fullmatch(name) for name, value in given.items())
    if len(sizes) != 1 or not alone or embeds:
        return encode(*args, **kwargs)
    (number,) = sizes
    if any(getattr(value, "ndim", 0) > 0 and len(value) == number for value in given.values()):
        return encode(*args, **kwargs)
    texts |= {name: value for name, value in given.items() if isinstance(value, list) and len(value) == number}
    rows = list(zip(*([one if isinstance(one, str) else id(one) for one in value] for value in texts.values())))
    distinct = list(dict.fromkeys(rows))
    if len(distinct) == number:
        return encode(*args, **kwargs)
    first = [rows.index(row) for row in distinct]
    index = torch.tensor([distinct.index(row) for row in rows])

    def of(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim > 1 and len(value) == len(distinct):
            return value[index.to(value.device)]
        if isinstance(value, list) and len(value) == len(distinct) and isinstance(value[0], (Tensor, str)):
            return [value[i] for i in index.tolist()]
        if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
            return value
        raise _OtherForm

    try:
        encoded = encode(**{**given, **{name: [value[i] for i in first] for name, value in texts.items()}})
        if isinstance(encoded, dict):
            return {name: of(value) for name, value in encoded.items()}
        return tuple(of(value) for value in encoded) if isinstance(encoded, tuple) else of(encoded)
    except Exception:  # of a pipeline that knows the number of rows from elsewhere
        return encode(*args, **kwargs)


class _OtherForm(Exception):
    """The rows of an encoding cannot be told by its form."""


def ways_of(pipe: Any, arguments: Mapping[str, Any], num_prompts: int) -> list[Way]:
    """The ways of asking this pipeline for several rows per prompt, the one to be tried first in front."""
    images = any(value is not None and _IMAGE.fullmatch(name) for name, value in arguments.items())
    several = images and any(
        _IMAGE.fullmatch(name) and num_prompts > 1 and _has_one_per_prompt(name, value, num_prompts)
        for name, value in arguments.items()
    )
    once = [] if number_name(pipe) is None else [Way("nothing")]
    overlaid = arguments.get("padding_mask_crop") is not None  # on one picture for all
    if images and not several and not overlaid:
        return [Way("everything"), Way("texts"), *once]
    return [Way("texts"), *([Way("everything")] if images else []), *once]


def number_name(pipe: Any) -> str | None:
    """What a pipeline calls the number of results per prompt; None if it has no such argument."""
    names = call_names(pipe)
    return next((name for name in NUMBERS if name in names), None)


def entries_of(pipe: Any, arguments: Mapping[str, Any], num_prompts: int, prompts: Sequence[int]) -> dict[str, Any]:
    """The arguments of a pipeline with the entries of some prompts, where they hold one for each of `num_prompts`.

    Args:
        prompts: numbers from 0 to `num_prompts` - 1, any of them any number of times.
    """

    one_image_per_net = _takes_one_image_per_net(pipe)

    def of(name: str, value: Any) -> Any:
        if isinstance(value, str) and _TEXT.fullmatch(name):
            return value if len(prompts) == 1 else [value] * len(prompts)
        images = _IMAGE.fullmatch(name) and not one_image_per_net
        if not (_TEXT.fullmatch(name) or _ENCODED.fullmatch(name) or images):
            return value
        return _indexed(value, num_prompts, prompts) if _has_one_per_prompt(name, value, num_prompts) else value

    return {name: of(name, value) for name, value in arguments.items()}


def _takes_one_image_per_net(pipe: Any) -> bool:
    """Whether a list of images holds one for each of several control networks or adapters."""
    nets = getattr(pipe, "controlnet", None), getattr(pipe, "adapter", None)
    return any(hasattr(net, "nets") or hasattr(net, "adapters") for net in nets)


def _texts(value: Any, num_prompts: int, prompts: Sequence[int]) -> Any:
    if isinstance(value, str):  # which for one row is left a string: some pipelines take no lists
        return value if len(prompts) == 1 else [value] * len(prompts)
    return _indexed(value, num_prompts, prompts)


def _indexed(value: Any, num_prompts: int, prompts: Sequence[int]) -> Any:
    if value is None or not hasattr(value, "__len__") or isinstance(value, str):
        return value
    if len(value) == num_prompts:
        return value[list(prompts)] if isinstance(value, (Tensor, np.ndarray)) else [value[p] for p in prompts]
    if isinstance(value, Tensor) and len(value) == 1:
        return value.expand(len(prompts), *value.shape[1:])
    return value


def _images(name: str, value: Any, num_prompts: int, prompts: Sequence[int]) -> Any:
    """One image, video or list of images per row, of one for all, or one per prompt."""
    dims = 5 if "video" in name or "frames" in name else 4
    if isinstance(value, Image):
        return [value] * len(prompts)
    if isinstance(value, (Tensor, np.ndarray)):
        whole = value if value.ndim >= dims else value[None]
        return _indexed(whole, 1, [0] * len(prompts)) if len(whole) == 1 else _indexed(whole, num_prompts, prompts)
    if isinstance(value, (list, tuple)):
        if _are_of_one(name, value):
            return [value] * len(prompts)
        return [value[0]] * len(prompts) if len(value) == 1 else _indexed(value, num_prompts, prompts)
    return value


def _are_of_one(name: str, value: Any) -> bool:
    """Whether a list holds what is of one sample: the frames of a video, several images to be combined."""
    return (
        ("video" in name or "frames" in name or name.endswith("images"))
        and isinstance(value, (list, tuple))
        and len(value) > 0
        and not isinstance(value[0], (list, tuple))
        and getattr(value[0], "ndim", 3) < 4
    )


def _has_one_per_prompt(name: str, value: Any, num_prompts: int) -> bool:
    if _are_of_one(name, value):
        return False
    if isinstance(value, (Tensor, np.ndarray)):
        return value.ndim >= 2 and len(value) == num_prompts
    return isinstance(value, (list, tuple)) and len(value) == num_prompts

"""How functions that score images are called: with images and prompts, or with images alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ..smc import brief
from .waiting import waiting


PROMPTS = frozenset(
    f"{name}{plural}" for name in ("prompt", "text", "caption", "description", "sentence") for plural in ("", "s")
)
"""What functions call the texts that images are scored for."""

_IMAGES = frozenset({"image", "images", "img", "imgs", "picture", "pictures", "pil_image", "pil_images", "pixels"})
_EXPECTED = "Expected a reward, or a function of images and prompts that returns a number per image"


def caller(function: Any) -> Callable[[Any, Sequence[str]], Any]:
    """A function (images, prompts) that calls another the way its parameters ask for: by position, whatever they are
    called; prompts first where the names say so; prompts by keyword if they are keyword-only; or images alone. What an
    async function returns is waited for (`settled`).

    Raises:
        TypeError: for what cannot be called so, saying what to write instead.
    """
    _check_kind(function)
    return waiting(_as_its_parameters_ask(function))


def _as_its_parameters_ask(function: Any) -> Callable[[Any, Sequence[str]], Any]:
    # A module's own call takes anything; what it is given ends in `forward`.
    asked = function.forward if isinstance(function, nn.Module) else function
    try:
        signature = inspect.signature(asked)
    except (TypeError, ValueError):  # Some functions written in C do not tell.
        return lambda images, prompts: function(images, prompts)
    parameters = list(signature.parameters.values())
    kind = inspect.Parameter
    positional = [one for one in parameters if one.kind in (kind.POSITIONAL_ONLY, kind.POSITIONAL_OR_KEYWORD)]
    by_keyword = [one.name for one in parameters if one.kind is kind.KEYWORD_ONLY]
    texts = next((name for name in by_keyword if name in PROMPTS), None)
    if texts is None:
        needed = [one.name for one in parameters if one.kind is kind.KEYWORD_ONLY and one.default is one.empty]
        texts = needed[0] if len(needed) == 1 and positional else None
    if _fits(signature, 1, texts) and texts is not None and len(positional) <= 1:
        return lambda images, prompts: function(images, **{texts: prompts})
    pictures = next((name for name in by_keyword if name in _IMAGES), None)
    if pictures is not None and texts is not None and _binds(signature, **{pictures: None, texts: None}):
        return lambda images, prompts: function(**{pictures: images, texts: prompts})
    if _fits(signature, 2) and not _is_option(positional):
        if [one.name in PROMPTS for one in positional[:2]] == [True, False] and positional[1].name in _IMAGES:
            return lambda images, prompts: function(prompts, images)
        return lambda images, prompts: function(images, prompts)
    if _fits(signature, 1):
        return lambda images, prompts: function(images)
    name = getattr(function, "__name__", type(function).__name__)
    raise TypeError(f"{_EXPECTED}, but '{name}({', '.join(signature.parameters)})' takes other arguments.")


def _is_option(positional: list[inspect.Parameter]) -> bool:
    """Whether the second parameter is an option and not for prompts: it has a value of its own and another name."""
    if len(positional) < 2:
        return False
    second = positional[1]
    return second.default not in (second.empty, None) and second.name not in PROMPTS


def _check_kind(value: Any) -> None:
    if isinstance(value, type):
        raise TypeError(
            f"{_EXPECTED}, but got the class {value.__name__} itself. Expected an object of it, `{value.__name__}()`."
        )
    if isinstance(value, (list, tuple, set, frozenset)):
        raise TypeError(
            f"{_EXPECTED}, but got {brief(value)}. For several rewards give their weights: {{reward: weight, ...}} is "
            "their weighted sum, and `ZScoreSum` adds those of unlike scales."
        )
    if not callable(value):
        raise TypeError(f"{_EXPECTED}, but got {brief(value)}.")
    call = value.forward if isinstance(value, nn.Module) else type(value).__call__
    if any(
        test(one)
        for test in (inspect.isasyncgenfunction, inspect.isgeneratorfunction)
        for one in (value, call, getattr(value, "func", None))
    ):
        name = getattr(value, "__name__", type(value).__name__)
        raise TypeError(
            f"{_EXPECTED}, but '{name}' is a generator, which returns none when it is called. Have it return a list of "
            "all numbers in place of yielding them."
        )


def _fits(signature: inspect.Signature, number: int, keyword: str | None = None) -> bool:
    return _binds(signature, *[None] * number, **({} if keyword is None else {keyword: None}))


def _binds(signature: inspect.Signature, *args: Any, **kwargs: Any) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True

"""Pipelines and rewards, which stay loaded between executions."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fk_steer.bundled import BUNDLED_REWARDS, fitted_options
from fk_steer.combinations import by_reward, joined
from fk_steer.loading import check_names, find_model, load_guide, quiet_libraries
from fk_steer.loading import load_pipeline as load
from fk_steer.rewards import Reward, as_reward
from fk_steer.rewards.registry import check_options

from . import host


def pipeline(model: str, dtype: str) -> tuple[Any, Any]:
    """A pipeline and the scheduler that it came with. The last one stays loaded.

    Args:
        model: a bundled one, a folder, one in `models/diffusers`, or a hub id.
    """
    place = host.find_pipeline(model)
    return _pipeline(place, dtype, str(host.device()), changed(place))


def reward(name: str, options: str, model: str | None = None) -> Reward:
    """A reward, or several combined. The last two stay loaded.

    Args:
        name: see `fk_steer.loading.load_guide`.
        options: JSON, see `read_options`.
        model: whose bundled weights are taken where no others are asked for; None for none.
    """
    given = read_options(options)
    fitted = given if model is None else fitted_options(model, name, given)
    written = json.dumps(fitted, sort_keys=True)
    return _reward(name, written, str(host.device()), changed(*_places(fitted)))


def bundled(name: str, options: str) -> str:
    """Options of a reward with the weights that come with the package.

    Raises:
        ValueError: for a reward that has none.
    """
    given = by_reward(name, read_options(options))
    for one in given:
        if one not in BUNDLED_REWARDS:
            raise ValueError(
                f"The reward '{one}' has no bundled weights; these have: {', '.join(BUNDLED_REWARDS)}. Choose the "
                "weights 'published'."
            )
    return json.dumps(joined(name, {one: {"path": "shapes", **own} for one, own in given.items()}))


def read_options(text: str) -> dict[str, Any]:
    """Options of a reward from a text field: JSON, such as `{"variant": "v2.1"}`; of a combination by the names of its
    rewards, such as `{"hps": {"variant": "v2.1"}}`. Empty for none.

    Raises:
        ValueError: for anything else.
    """
    if not text.strip():
        return {}
    try:
        options = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f'Expected the options of a reward as JSON, such as {{"variant": "v2.1"}}, but: {error}'
        ) from error
    if not isinstance(options, dict):
        raise ValueError(f"Expected the options of a reward as JSON in braces, but got {text.strip()!r}.")
    return options


def check_reward(name: str, options: str) -> None:
    """Check what can be checked before anything is loaded.

    Raises:
        ValueError: for an unknown reward or option, or text that cannot be read.
    """
    check_names(name)
    for one, own in by_reward(name, read_options(options)).items():
        check_options(one, own)


def check_model(model: str) -> None:
    """Check a name, without asking the hub.

    Raises:
        OSError: for one that is no folder of a pipeline and can be no hub id.
    """
    place = host.find_pipeline(model)
    if "/" not in place or os.path.exists(place):
        find_model(place)


def changed(*places: str) -> tuple[float, ...]:
    """When files in folders were last changed; what is no folder or file here does not change."""
    return tuple(
        max(file.stat().st_mtime for file in (Path(place), *Path(place).rglob("*")))
        for place in places
        if os.path.exists(place)  # which is False for what can be no path, where `Path.exists` raises
    )


def changed_options(name: str | None, options: str | None) -> tuple[float, ...]:
    """`changed`, of the weights that options name; of links, which have no value yet, nothing."""
    return changed(*_places(read_options(options))) if name and options else ()


def _places(options: Mapping[str, Any]) -> list[str]:
    found = []
    for value in options.values():
        if isinstance(value, Mapping):
            found += _places(value)
        elif isinstance(value, str):
            found.append(value)
    return found


@functools.lru_cache(maxsize=1)
def _pipeline(place: str, dtype: str, device: str, _: tuple[float, ...]) -> tuple[Any, Any]:
    # The one before goes first: two may not fit on the device.
    _pipeline.cache_clear()
    quiet_libraries()
    host.make_room()
    pipe = load(place, dtype=dtype, device=device)
    return pipe, pipe.scheduler


@functools.lru_cache(maxsize=2)
def _reward(name: str, options: str, device: str, _: tuple[float, ...]) -> Reward:
    quiet_libraries()
    host.make_room()
    return as_reward(load_guide(name, device, **json.loads(options)))

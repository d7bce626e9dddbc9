"""Rewards by name: those that come with the package and those of installed plugins."""

from __future__ import annotations

import inspect
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from .base import RewardFunction


ENTRY_POINTS = "fk_steer.rewards"

_BUILT_IN = {
    "clip-score": "fk_steer.rewards.clip_score:CLIPScore",
    "llava-reward": "fk_steer.rewards.llava_reward:load_llava_reward",
    "shapes-oracle": "fk_steer.shapes.oracle:ShapesOracle",
}


def available_rewards() -> dict[str, EntryPoint]:
    """Name -> where it is implemented, without importing it.

    A package adds rewards by declaring entry points in the group `fk_steer.rewards`, each a class or function that
    returns a reward.

    Raises:
        ValueError: if two packages claim one name.
    """
    found = {name: EntryPoint(name, value, ENTRY_POINTS) for name, value in _BUILT_IN.items()}
    for entry_point in entry_points(group=ENTRY_POINTS):
        if entry_point.name in found and found[entry_point.name].value != entry_point.value:
            raise ValueError(
                f"Two rewards are called '{entry_point.name}': {found[entry_point.name].value} and "
                f"{entry_point.value}. Rename or uninstall one."
            )
        found[entry_point.name] = entry_point
    return found


def load_reward(name: str, **options: Any) -> RewardFunction:
    """Make a reward.

    Args:
        name: one of `available_rewards()`.
        **options: of the reward; most take `path`, `variant`, `device` and `dtype`.

    Raises:
        ValueError: for an unknown name, listing the known ones, or an option the reward does not have.
        RewardLoadError: if its weights cannot be loaded.
    """
    rewards = available_rewards()
    if name not in rewards:
        raise ValueError(f"Unknown reward {name!r}. Known: {', '.join(sorted(rewards))}.")
    factory = rewards[name].load()
    parameters = inspect.signature(factory).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    unknown = [option for option in options if option not in parameters]
    if unknown and not takes_any:
        raise ValueError(f"Reward '{name}' has no option {unknown[0]!r}. It takes: {', '.join(parameters)}.")
    return factory(**options)

"""Rewards by name: those that come with the package and those of installed plugins."""

from __future__ import annotations

import inspect
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from .base import RewardFunction


ENTRY_POINTS = "fk_steer.rewards"

_BUILT_IN = {
    "aesthetic": "fk_steer.rewards.aesthetic:Aesthetic",
    "clip-score": "fk_steer.rewards.clip_score:CLIPScore",
    "hps": "fk_steer.rewards.hps:HPS",
    "image-reward": "fk_steer.rewards.image_reward:ImageReward",
    "llava-reward": "fk_steer.rewards.llava_reward:load_llava_reward",
    "llm-grader": "fk_steer.rewards.llm_grader:LLMGrader",
    "pickscore": "fk_steer.rewards.pickscore:PickScore",
    "shapes-oracle": "fk_steer.shapes.oracle:ShapesOracle",
    "unified-reward": "fk_steer.rewards.unified_reward:UnifiedReward",
    "vqa-chat": "fk_steer.rewards.vqa_chat:VQAChat",
    "vqa-score": "fk_steer.rewards.vqa_score:VQAScore",
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


def reward_factory(name: str) -> Any:
    """The class or function that makes the rewards of a name.

    Raises:
        ValueError: for an unknown name, listing the known ones.
    """
    rewards = available_rewards()
    if name not in rewards:
        raise ValueError(f"Unknown reward {name!r}. Known: {', '.join(sorted(rewards))}.")
    return rewards[name].load()


def load_reward(name: str, **options: Any) -> RewardFunction:
    """Make a reward.

    Args:
        name: one of `available_rewards()`.
        **options: of the reward; most take `path`, `variant`, `device` and `dtype`.

    Raises:
        ValueError: for an unknown name, listing the known ones, an option the reward does not have, or without one that
            it needs.
        RewardLoadError: if its weights cannot be loaded.
    """
    factory = reward_factory(name)
    parameters = inspect.signature(factory).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    unknown = [option for option in options if option not in parameters]
    if unknown and not takes_any:
        raise ValueError(f"Reward '{name}' has no option {unknown[0]!r}. It takes: {', '.join(parameters)}.")
    needed = [
        option
        for option, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if missing := [option for option in needed if option not in options]:
        raise ValueError(f"Reward '{name}' needs the option {missing[0]!r}. It takes: {', '.join(parameters)}.")
    return factory(**options)

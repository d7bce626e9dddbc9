"""Rewards by name: those that come with the package and those of installed plugins. The bundled world's oracle is
registered as a plugin's rewards are, by an entry point."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ..smc import is_named, suggestion, unknown
from .base import RewardFunction
from .card import RewardCard


ENTRY_POINTS = "fk_steer.rewards"

_BUILT_IN = {
    "aesthetic": "fk_steer.rewards.aesthetic:Aesthetic",
    "checklist": "fk_steer.rewards.checklist:ChecklistReward",
    "checklist-chat": "fk_steer.rewards.chat.checklist_chat:ChecklistChat",
    "clip-score": "fk_steer.rewards.clip_score:CLIPScore",
    "cycle-reward": "fk_steer.rewards.cycle_reward:CycleReward",
    "dina-lrm": "fk_steer.rewards.dina_lrm:DiNaLRM",
    "edit-score": "fk_steer.rewards.chat.edit_score:EditScore",
    "hps": "fk_steer.rewards.hps:HPS",
    "hpsv3": "fk_steer.rewards.hpsv3:HPSv3",
    "hpsv3-plus": "fk_steer.rewards.hpsv3_plus:HPSv3Plus",
    "image-reward": "fk_steer.rewards.image_reward:ImageReward",
    "llava-reward": "fk_steer.rewards.llava_reward:load_llava_reward",
    "llm-grader": "fk_steer.rewards.chat.llm_grader:LLMGrader",
    "mps": "fk_steer.rewards.mps:MPS",
    "pickscore": "fk_steer.rewards.pickscore:PickScore",
    "quality": "fk_steer.rewards.quality:Quality",
    "remote": "fk_steer.rewards.remote:RemoteReward",
    "unified-reward": "fk_steer.rewards.chat.unified_reward:UnifiedReward",
    "vqa-chat": "fk_steer.rewards.chat.vqa_chat:VQAChat",
    "vqa-score": "fk_steer.rewards.vqa_score:VQAScore",
}


def available_rewards() -> dict[str, EntryPoint]:
    """The places of all rewards by their names, none of them imported.

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
    if not is_named(name, rewards):
        raise unknown("reward", name, sorted(rewards))
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
    check_options(name, options)
    parameters = inspect.signature(factory).parameters
    needed = [
        option
        for option, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if missing := [option for option in needed if option not in options]:
        raise ValueError(f"Reward '{name}' needs the option {missing[0]!r}. It takes: {', '.join(parameters)}.")
    return factory(**options)


def check_options(name: str, options: Iterable[str]) -> None:
    """Make sure that a reward has some options, without loading its weights.

    Raises:
        ValueError: for an unknown reward, or an option that it does not have, listing those known.
    """
    parameters = inspect.signature(reward_factory(name)).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    strange = [option for option in options if option not in parameters]
    if strange and not takes_any:
        raise ValueError(
            f"Reward '{name}' has no option {strange[0]!r}. It takes: {', '.join(parameters)}."
            f"{suggestion(strange[0], parameters)}"
        )


def markdown_table() -> str:
    """The rewards of this package as a Markdown table, from their cards; where variants differ, one after the other.

    docs/rewards.md holds it, and a test holds it to that.
    """
    lines = [
        "| name | what it scores | typical scores | default lambda | runs in (CUDA) | billion weights | licence |",
        "|---" * 7 + "|",
    ]
    for name, entry_point in sorted(available_rewards().items()):
        if not entry_point.value.startswith("fk_steer."):
            continue
        card: RewardCard = entry_point.load().card
        cards = [card.variant(variant) for variant in card.variants] or [card]
        columns: list[list[Any]] = [
            [one.typical_range and "{:g} to {:g}".format(*one.typical_range) for one in cards],
            [one.default_lmbda and f"{one.default_lmbda:g}" for one in cards],
            [one.dtype for one in cards],
            [one.weights and f"{one.weights:g}" for one in cards],
            [one.licence for one in cards],
        ]
        cells = ["; ".join(dict.fromkeys(value for value in column if value)) or "-" for column in columns]
        lines.append(f"| {' | '.join([f'`{name}`', card.summary, *cells])} |")
    return "\n".join(lines) + "\n"

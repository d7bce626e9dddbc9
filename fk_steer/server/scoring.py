"""Rewards as they are served: what is told of them, and how they score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from ..rewards.asking import check_scores
from ..rewards.base import Reward, RewardError, RewardFunction, rewards_of_particles
from ..rewards.card import RewardCard
from ..rewards.functions import as_reward
from ..rewards.judge import scores_or_none
from .batching import Score
from .errors import RequestError, busy
from .schema import Card, RewardFacts


class Served:
    """A reward that is served.

    Args:
        name: that clients ask for.
        reward: of images.
        model: the model behind it; None for what the reward says.

    Raises:
        ValueError: for a reward of videos.
    """

    def __init__(self, name: str, reward: RewardFunction, model: str | None = None) -> None:
        self.name, self.given, self.reward = name, reward, as_reward(reward)
        if self.reward.takes_videos:
            raise ValueError(f"The reward '{name}' scores videos, and images are all that a server takes.")
        card = _card_of(reward, model)
        self.facts = RewardFacts(
            name=name,
            model=model or getattr(getattr(reward, "chat", None), "model", None),
            relative=self.reward.relative,
            standardize=self.reward.standardize,
            default_lmbda=self.reward.default_lmbda,
            card=Card(
                summary=card.summary if card else None,
                paper=card.paper if card else None,
                hub_id=card.hub_id if card else None,
                licence=card.licence if card else None,
                typical_range=card.typical_range if card else None,
            ),
        )

    @property
    def place(self) -> object:
        """Rewards of the same place, a device, are not to score at the same time; one that has none is its own."""
        devices = [getattr(leaf, "device", None) for leaf in self.reward.leaves]
        return next((str(device) for device in devices if device is not None), self)

    @torch.no_grad()
    def score(self, images: Sequence[Image], prompts: Sequence[str]) -> list[Score]:
        """The scores of images. One that compares gets those of each prompt together; equal images are copies.

        Raises:
            RewardError: if the reward returned something unusable.
        """
        if not self.reward.relative:
            return scores_or_none(self.given, images, prompts, "for a request")
        return _compared(self.reward, images, prompts)


def threads(served: Sequence[Served]) -> dict[Served, ThreadPoolExecutor]:
    """A thread for each place where rewards score."""
    of_place: dict[object, ThreadPoolExecutor] = {}
    for one in served:
        of_place.setdefault(one.place, ThreadPoolExecutor(1, thread_name_prefix="scores"))
    return {one: of_place[one.place] for one in served}


def error_of(reward: str, error: Exception) -> RequestError:
    """What is answered where a reward failed."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return busy(f"The reward '{reward}' has run out of memory.", "out_of_memory")
    if isinstance(error, RewardError):
        return RequestError(500, "reward_failed", f"The reward '{reward}' failed: {error}")
    if isinstance(error, ValueError):
        return RequestError(422, "not_scorable", f"The reward '{reward}' does not score this: {error}")
    # What others raise speaks of this machine.
    return RequestError(500, "reward_failed", f"The reward '{reward}' failed. The server's log says how.")


def model_of(reward: RewardFunction, options: Mapping[str, Any]) -> str | None:
    """The model behind a reward that was loaded with options: a hub id, the last part of a folder's path, or a name."""
    model = options.get("model") or options.get("path")
    if isinstance(model, str):
        return Path(model).name if Path(model).exists() else model
    card = _card(reward)
    return card.hub_id if card else None


def _card(reward: Any) -> RewardCard | None:
    card = getattr(reward, "card", None)
    if not isinstance(card, RewardCard):
        return None
    variant = getattr(reward, "variant", None)
    return card.variant(variant) if isinstance(variant, str) and variant in card.variants else card


def _card_of(reward: Any, model: str | None) -> RewardCard | None:
    """The card of a reward, without what it says of the published weights where others are loaded.

    Args:
        model: the model behind it; None if that is not known.
    """
    card = _card(reward)
    # Chat judges ask a model of the server's under whatever name.
    if card is None or model in (None, card.hub_id) or getattr(reward, "chat", None) is not None:
        return card
    return replace(reward.card, hub_id=model, licence=None, typical_range=None)


def _compared(reward: Reward, images: Sequence[Image], prompts: Sequence[str]) -> list[Score]:
    distinct: dict[tuple[Any, ...], int] = {}
    shown: list[Image] = []
    places: dict[str, list[int]] = {}
    members: dict[str, list[int]] = {}
    for place, (image, prompt) in enumerate(zip(images, prompts)):
        key = (prompt, image.mode, image.size, image.tobytes())
        if key not in distinct:
            distinct[key] = len(shown)
            shown.append(image)
        places.setdefault(prompt, []).append(place)
        members.setdefault(prompt, []).append(distinct[key])
    groups = [torch.tensor(group) for group in members.values()]
    scores: list[Score] = [None] * len(images)
    for prompt, values in zip(places, rewards_of_particles(reward, shown, groups, list(members))):
        own = places[prompt]
        for place, value in zip(own, check_scores(reward, values, [prompt] * len(own), "for a request").tolist()):
            scores[place] = value
    return scores

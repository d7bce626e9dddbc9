"""Which rewards and judges can decide about which candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from ..loading import load_guide
from ..rewards import FrameReward
from ..rewards.base import Reward, RewardFunction
from ..rewards.chat.unified import TASKS
from ..rewards.chat.unified_reward import UnifiedReward
from ..rewards.functions import as_reward
from ..rewards.general_preference import GeneralPreferenceReward, preference_scores
from ..rewards.loading import default_device
from ..rewards.pairwise import PairwiseReward


PAIRING = {
    "image": ("pair", "point"),
    "video": ("video-pair", "video"),
    "text": ("answer-pair", "answer"),
    "video-text": ("video-answer-pair", "video-answer"),
}
"""Kind of candidates -> the variants of UnifiedReward that compare two of them and score each."""


class Panel:
    """A reward for scores, one for comparisons, or both.

    Args:
        point: gives scores; None if only comparisons are needed.
        pair: compares two candidates; None to compare their scores.
        kind: of the candidates, one of `KINDS`.
        batch_size: candidates or pairs per call; a reward that only compares gets all of a prompt.

    Raises:
        ValueError: for rewards of another kind, or one that should score and only compares two.
    """

    def __init__(
        self, point: RewardFunction | None, pair: RewardFunction | None, kind: str, batch_size: int = 16
    ) -> None:
        self.point = None if point is None else _of_kind(as_reward(point), kind, comparing=False)
        self.pair = None if pair is None else _of_kind(as_reward(pair), kind, comparing=True)
        self.comparing = None if self.pair is None else pairwise_of(self.pair)
        self.kind, self.batch_size = kind, batch_size


def load_panel(
    name: str, options: Mapping[str, Any], rule: str, kind: str, batch_size: int, device: str | None
) -> Panel:
    """The panel that a reward or judge makes.

    Args:
        name: of a reward, or of several combined.
        options: of it.
        rule: one of `RULES`; UnifiedReward's own scores candidates beside comparing them.
        kind: of the candidates, one of `KINDS`.
        batch_size: see `Panel`.
        device: None for CUDA if there is a device, else the CPU.

    Raises:
        ValueError: if it judges candidates of another kind, or does not do what the rule needs.
        RewardLoadError: if its weights cannot be loaded.
    """
    target, options = default_device(device), dict(options)
    if name == UnifiedReward.name:
        pair, point = PAIRING[kind]
        given = options.pop("variant", None)
        compares = given in TASKS and TASKS[given].compares
        if rule == "unified-reward":
            pair, point = (given if compares else pair), (point if compares or given is None else given)
            judges = [load_guide(UnifiedReward.name, target, **options, variant=one) for one in (point, pair)]
            return Panel(judges[0], judges[1], kind, batch_size)
        options["variant"] = given or point
    judge = as_reward(load_guide(name, target, **options))
    compares = pairwise_of(judge) is not None
    if compares and rule == "unified-reward":
        raise ValueError(
            f"The rule 'unified-reward' also scores winners and losers, and '{name}' with these options "
            "only compares two. Choose the judge unified-reward, which does both, a judge that scores, or another "
            "--rule."
        )
    return Panel(None if compares else judge, judge if compares else None, kind, batch_size)


def pairwise_of(reward: Reward) -> PairwiseReward | None:
    """What compares two images of a reward that does nothing else; None for rewards that score."""
    if isinstance(reward, GeneralPreferenceReward):
        return PairwiseReward(partial(_preferred, reward.temperature), name=reward.name)
    found = reward if isinstance(reward, PairwiseReward) else getattr(reward, "pairwise", None)
    return found if isinstance(found, PairwiseReward) else None


def _preferred(
    temperature: float, first: Sequence[torch.Tensor], second: Sequence[torch.Tensor], prompts: Sequence[str]
) -> list[float]:
    """How probable it is that the first of each pair of embeddings is preferred."""
    return [
        float((preference_scores(one[None], other[None]) / temperature).sigmoid()) for one, other in zip(first, second)
    ]


def takes_answers(reward: Reward) -> bool:
    """Whether it judges texts about images."""
    return bool(getattr(reward, "takes_answers", False))


def _of_kind(reward: Reward, kind: str, comparing: bool) -> Reward:
    name = f"'{reward.name}'"
    if comparing != (pairwise_of(reward) is not None):
        what = "compares two" if comparing else "scores each"
        raise ValueError(f"Expected a judge that {what} of the candidates, which {name} does not.")
    if getattr(reward, "takes_edits", False):
        raise ValueError(f"{name} judges edited images beside those before, which candidates do not have.")
    videos = kind in ("video", "video-text")
    if kind in ("text", "video-text"):
        if takes_answers(reward):
            if videos != bool(getattr(reward, "of_videos", False)):
                raise ValueError(f"{name} judges texts about {'images' if videos else 'videos'}, which these are not.")
            return reward
        if comparing or reward.takes_videos or videos:
            raise ValueError(f"{name} does not judge texts, which the candidates are.")
        return reward
    if takes_answers(reward):
        raise ValueError(f"{name} judges texts about {kind}s, and the candidates are {kind}s.")
    if videos and not reward.takes_videos:
        if comparing:
            raise ValueError(f"{name} compares images, and the candidates are videos.")
        return FrameReward(reward)
    if not videos and reward.takes_videos:
        raise ValueError(f"{name} judges videos, and the candidates are images.")
    return reward

"""Steering by what only compares: a particle's reward is how it fares against the other particles of its prompt."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from llava_reward_guide.images import to_pil

from ..smc import integer, real, unknown
from .base import Images, MissingScoreError, Reward, RewardError, name_of
from .images import to_uint8
from .waiting import settled


Comparer = Callable[[Any, Any, Sequence[str]], Any]
"""(first, second, prompts) -> B probabilities that the first image of a pair is better than the second, in [0, 1]; 0.5
is a tie and None or NaN a comparison that failed; an attribute `failure` may say why the last one did. Images are as
for a `Reward`, and it may be async, as functions that score may."""

STATISTICS = ("win-probability", "log-odds")
WIN_LMBDA = 6.0
"""A lambda that suits win probabilities: among clear winners they spread evenly over [0, 1], about 1/3 around 1/2, and
2 over the spread is what standardised scores get."""

logger = logging.getLogger(__name__)


class PairwiseReward(Reward):
    """How an image fares in pairwise comparisons with the other particles of its prompt.

    ```py
    PairwiseReward(lambda first, second, prompts: torch.sigmoid(clip(first, prompts) - clip(second, prompts)))
    ```

    A comparison that failed counts as a tie, the mean of all outcomes, so that nobody gains or loses by it; if all of a
    prompt failed, there is nothing to steer by, and that is an error. Copies of a particle tie with one another and are
    not compared. A particle without others gets what a tie is worth, 0.5 (log-odds: 0).

    The win probability is bounded and depends on who else is there. The mean log-odds do not saturate: for a comparer
    of Bradley-Terry form, sigmoid(s_i - s_j), they are s_i minus the mean of the others, so that within a prompt they
    differ from s by a constant and the factor K / (K - 1), and steering by them is steering by s.

    Args:
        comparer: see `Comparer`.
        opponents: against how many others each particle plays, rounded up to an even number: its neighbours on a ring.
            None is all, K (K - 1) / 2 comparisons per prompt; m costs K m / 2.
        both_orders: compare each pair in both orders and average, which cancels a preference for the first or second
            place at twice the cost. Otherwise each particle comes first in about half of its comparisons.
        statistic: 'win-probability', the mean win probability in [0, 1], or 'log-odds', the mean of log(p / (1 - p)).
        clip: probabilities are moved into [clip, 1 - clip] before log-odds are taken, so that verdicts of 0 and 1 stay
            finite.
        batch_size: pairs per call of the comparer; None is all pairs of all prompts.
        name: None for one made from the comparer's.
        default_lmbda: None for 6 (win probabilities) or 1 (log-odds).

    Raises:
        ValueError: for an unknown statistic or a number out of range.
        MissingScoreError: when called, if every comparison of a prompt failed.
        RewardError: when called, if one gave a number outside [0, 1].
    """

    relative = True

    def __init__(
        self,
        comparer: Comparer,
        opponents: int | None = None,
        both_orders: bool = False,
        statistic: str = "win-probability",
        clip: float = 0.01,
        batch_size: int | None = None,
        name: str | None = None,
        default_lmbda: float | None = None,
    ) -> None:
        opponents = integer("opponents", opponents, 1, optional=True)
        batch_size = integer("batch_size", batch_size, 1, optional=True)
        clip = real("clip", clip)
        if not 0.0 < clip < 0.5:
            raise ValueError(f"Expected `clip` to be between 0.0 and 0.5, but got {clip}.")
        self.comparer, self.opponents, self.both_orders = comparer, opponents, both_orders
        self.statistic, self.clip, self.batch_size = check_statistic(statistic), clip, batch_size
        self.name = name or f"wins({name_of(comparer)})"
        self.default_lmbda = default_lmbda or (WIN_LMBDA if statistic == "win-probability" else 1.0)

    def encode(self, images: Images, prompts: Sequence[str]) -> Sequence[Any]:
        """The images, 8 bits a channel as they would be saved."""
        return list(to_uint8(images, images.device)) if isinstance(images, Tensor) else to_pil(images)

    def of_particles(
        self, encodings: Tensor | Sequence[Any], members: Sequence[Tensor], prompts: Sequence[str]
    ) -> list[Tensor]:
        assert not isinstance(encodings, Tensor)
        games = [
            (i, j, p) for p, group in enumerate(members) for i, j in pairings(group.unique().tolist(), self.opponents)
        ]
        probabilities = self._play(encodings, games, prompts)
        self._check_each_prompt_has_some(games, probabilities, prompts)
        if failed := int(probabilities.isnan().sum()):
            logger.warning("%d of %d comparisons of '%s' failed and count as ties.", failed, len(games), self.name)
        probabilities = probabilities.nan_to_num(nan=0.5)
        if self.statistic == "log-odds":
            probabilities = probabilities.clamp(self.clip, 1 - self.clip).logit()
        outcomes = [dict[tuple[int, int], float]() for _ in prompts]
        for (i, j, p), value in zip(games, probabilities.tolist()):
            outcomes[p][i, j] = value
            outcomes[p][j, i] = 1.0 - value if self.statistic == "win-probability" else -value
        return [mean_outcome(group.tolist(), table, self.neutral) for group, table in zip(members, outcomes)]

    @property
    def neutral(self) -> float:
        """What ties are worth."""
        return 0.5 if self.statistic == "win-probability" else 0.0

    def _play(self, encodings: Sequence[Any], games: list[tuple[int, int, int]], prompts: Sequence[str]) -> Tensor:
        """(G,) float64, the probability that image i wins game (i, j, prompt); NaN if the comparison failed."""
        orders = [games, [(j, i, p) for i, j, p in games]] if self.both_orders else [games]
        flat = [game for order in orders for game in order]
        size = self.batch_size or max(len(flat), 1)
        found = torch.cat(
            [torch.zeros(0, dtype=torch.float64)]
            + [self._compare(encodings, flat[start : start + size], prompts) for start in range(0, len(flat), size)]
        )
        # NaN if either failed: one order alone would bring back the preference for a place.
        return (found[: len(games)] + 1.0 - found[len(games) :]) / 2 if self.both_orders else found

    def _check_each_prompt_has_some(
        self, games: list[tuple[int, int, int]], probabilities: Tensor, prompts: Sequence[str]
    ) -> None:
        played = {p for _, _, p in games}
        known = {p for (_, _, p), failed in zip(games, probabilities.isnan().tolist()) if not failed}
        for p in sorted(played - known):
            reason = getattr(self.comparer, "failure", "it does not say why")
            raise MissingScoreError(f"All comparisons of '{self.name}' for the prompt {prompts[p]!r} failed: {reason}.")

    def _compare(self, encodings: Sequence[Any], games: list[tuple[int, int, int]], prompts: Sequence[str]) -> Tensor:
        first, second = (_images([encodings[game[place]] for game in games]) for place in (0, 1))
        values = settled(self.comparer(first, second, [prompts[game[2]] for game in games]))
        if not isinstance(values, Tensor):
            values = torch.tensor([math.nan if value is None else float(value) for value in values])
        values = values.detach().to("cpu", torch.float64)
        if values.shape != (len(games),) or ((values < 0) | (values > 1)).any():
            raise RewardError(
                f"Expected the comparer of '{self.name}' to return {len(games)} probabilities in [0, 1], but got "
                f"{values.tolist()}."
            )
        return values


def check_statistic(statistic: str) -> str:
    if statistic not in STATISTICS:
        raise unknown("statistic", statistic, STATISTICS)
    return statistic


def pairings(players: Sequence[int], opponents: int | None) -> list[tuple[int, int]]:
    """Who plays whom, each pair once and every player first in about half of their games.

    Players sit on a ring and play those up to `opponents` / 2 places away, on both sides; None is everybody.
    """
    n = len(players)
    reach = n // 2 if opponents is None else min(math.ceil(opponents / 2), n // 2)
    return [
        (players[i], players[(i + distance) % n])
        for distance in range(1, reach + 1)
        for i in range(n // 2 if 2 * distance == n else n)
    ]


def mean_outcome(players: Sequence[int], outcomes: dict[tuple[int, int], float], neutral: float) -> Tensor:
    """(K,) float64, the mean outcome of each of K players against the others that it has played.

    Args:
        players: K entries; equal ones are copies, which tie.
        outcomes: (player, other) -> outcome.
        neutral: the outcome of a tie, and what players without others get.
    """
    copies = Counter(players)
    total = {player: neutral * (count - 1) for player, count in copies.items()}
    played = {player: count - 1 for player, count in copies.items()}
    for (player, other), outcome in outcomes.items():
        total[player] += outcome * copies[other]
        played[player] += copies[other]
    means = [total[player] / played[player] if played[player] else neutral for player in players]
    return torch.tensor(means, dtype=torch.float64)


def _images(images: list[Any]) -> Images:
    return torch.stack(images).float() / 255 if isinstance(images[0], Tensor) else images

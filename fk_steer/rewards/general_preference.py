"""Steering by preference embeddings: one forward pass per image, preferences from a skew-symmetric form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Images, Reward, RewardError, name_of
from .pairwise import WIN_LMBDA, check_statistic


class GeneralPreferenceReward(Reward):
    """How an image fares against the other particles of its prompt under a general preference model (Zhang et al.,
    arXiv 2410.02197).

    The model gives each image an embedding v of even size; image i is preferred to j with probability
    sigmoid(s_ij / tau), s_ij = sum over even d of (v_i[d] v_j[d+1] - v_i[d+1] v_j[d]), which is skew-symmetric and may
    be cyclic. K particles cost K forward passes; the K (K - 1) / 2 preferences are inner products.

    Args:
        embed: (images, prompts) -> (B, D) embeddings, D even; images as for a `Reward`.
        temperature: tau above; 0.1 is what LLaVA-Reward is trained with.
        statistic: 'win-probability', the mean probability of winning against the others, or 'log-odds', the mean of
            s_ij / tau. A particle without others gets 0.5 or 0.
        name: None for one made from that of `embed`.
        default_lmbda: None for 6 (win probabilities) or 1 (log-odds).

    Raises:
        ValueError: for an unknown statistic or a temperature that is not positive.
        RewardError: when called, if the embeddings are not finite or not of shape (B, D), D even.
    """

    relative = True

    def __init__(
        self,
        embed: Callable[[Any, Sequence[str]], Tensor],
        temperature: float = 0.1,
        statistic: str = "win-probability",
        name: str | None = None,
        default_lmbda: float | None = None,
    ) -> None:
        if not temperature > 0.0:
            raise ValueError(f"Expected `temperature` to be above 0.0, but got {temperature}.")
        self.embed, self.temperature, self.statistic = embed, temperature, check_statistic(statistic)
        self.name = name or f"preference({name_of(embed)})"
        self.default_lmbda = default_lmbda or (WIN_LMBDA if statistic == "win-probability" else 1.0)

    def encode(self, images: Images, prompts: Sequence[str]) -> Sequence[Any]:
        """B embeddings (D,), float64 on the CPU."""
        embeddings = self.embed(images, prompts).detach().to("cpu", torch.float64)
        if embeddings.ndim != 2 or len(embeddings) != len(prompts) or embeddings.shape[1] % 2:
            raise RewardError(
                f"Expected embeddings of '{self.name}' of shape ({len(prompts)}, D) with D even, but got "
                f"{tuple(embeddings.shape)}."
            )
        if not embeddings.isfinite().all():
            prompt = prompts[int((~embeddings.isfinite()).any(1).nonzero()[0])]
            raise RewardError(f"The embeddings of '{self.name}' for the prompt {prompt!r} are not finite.")
        return list(embeddings)

    def of_particles(
        self, encodings: Tensor | Sequence[Any], members: Sequence[Tensor], prompts: Sequence[str]
    ) -> list[Tensor]:
        return [self._against_others(torch.stack([encodings[i] for i in group.tolist()])) for group in members]

    def _against_others(self, embeddings: Tensor) -> Tensor:
        log_odds = preference_scores(embeddings, embeddings) / self.temperature
        wins = self.statistic == "win-probability"
        outcomes = log_odds.sigmoid() if wins else log_odds
        neutral, others = (0.5 if wins else 0.0), len(embeddings) - 1
        if not others:
            return torch.full((1,), neutral, dtype=torch.float64)
        # The diagonal is a tie with oneself.
        return (outcomes.sum(1) - neutral) / others


def preference_scores(first: Tensor, second: Tensor) -> Tensor:
    """s (M, N) of embeddings (M, D) over embeddings (N, D): s(v, w) = sum over even d of v[d] w[d+1] - v[d+1] w[d]."""
    return first[:, 0::2] @ second[:, 1::2].T - first[:, 1::2] @ second[:, 0::2].T

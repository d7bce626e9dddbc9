"""From scores of distinct images to rewards of particles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..rewards.base import Reward, check_combined, check_scores, names_of
from .decode import LatentDecoder
from .rows import Rows
from .scoring import Scorer


class Judge:
    """Scores the particles of a run, each distinct row once.

    Args:
        scorer: of distinct images.
        prompts: P texts.
        rows: where the particles live.

    Attributes:
        members: (P, K) which of the images last scored each particle is.
    """

    def __init__(self, scorer: Scorer, prompts: Sequence[str], rows: Rows) -> None:
        self.scorer, self.prompts, self.rows = scorer, prompts, rows
        self.members = torch.empty(0, dtype=torch.long)

    def of_latents(
        self, reward: Reward, latents: Tensor, decoder: LatentDecoder, where: str
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Rewards (P, K) of the live rows' latents (L, ...), and the scores (P, K) of each leaf by name.

        Raises:
            RewardError: for scores that are NaN or misshapen, naming reward, prompt and `where`.
        """
        position, inverse = self.rows.distinct_live()
        self.members = inverse[self.rows.particles]
        distinct = latents[position.to(latents.device)] if len(position) < len(latents) else latents
        scores = self.scorer.of_latents(reward, distinct, decoder, self._prompts(position), where)
        return self._combined(reward, scores, where)

    def of_images(self, reward: Reward, images: Tensor, where: str) -> tuple[Tensor, dict[str, Tensor]]:
        """The same of the live rows' images (L, 3, H, W)."""
        self.members = self.rows.particles
        scores = self.scorer.of_images(reward, images, self._prompts(torch.arange(len(images))), where)
        return self._combined(reward, scores, where)

    def decoded(self, latents: Tensor, decoder: LatentDecoder, members: Tensor) -> Tensor:
        """(P, K, 3, H, W) images on the CPU of latents (L, ...), of which `members` (P, K) says whose each is."""
        size = self.scorer.execution.decode_batch_size or len(latents)
        return torch.cat([decoder(some).cpu() for some in latents.split(size)])[members]

    def _prompts(self, positions: Tensor) -> list[str]:
        populations = self.rows.populations()
        return [self.prompts[populations[position]] for position in positions.tolist()]

    def _combined(self, reward: Reward, scores: dict[Reward, Any], where: str) -> tuple[Tensor, dict[str, Tensor]]:
        names = names_of(list(scores))

        def of_prompts(share: slice) -> dict[str, Tensor]:
            members, prompts = list(self.members[share]), self.prompts[share]
            found = {}
            for leaf, name in names.items():
                groups = leaf.of_particles(scores[leaf], members, prompts)
                found[name] = torch.stack(
                    [
                        check_scores(leaf, values, [prompt] * len(some), where)
                        for values, some, prompt in zip(groups, members, prompts, strict=True)
                    ]
                )
            return found

        with self.scorer.clock("reward"):
            found = self.scorer.ranks.map(of_prompts, len(self.prompts))
        rewards = reward.combine({leaf: found[name] for leaf, name in names.items()})
        return check_combined(reward, rewards, self.prompts, where), found

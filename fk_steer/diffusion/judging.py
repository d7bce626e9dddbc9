"""From scores of distinct images to rewards of particles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..rewards.base import Reward, blaming, check_combined, check_scores, names_of
from .decode import Decoder
from .rows import Rows
from .scoring import Scorer
from .watch import check_decoder


class Judgement(NamedTuple):
    """What was made of some images.

    Attributes:
        rewards: (P, K) float64 on the CPU.
        scores: what they were made from, likewise, by name of each leaf of the reward.
        final_scale: whether the same leaves score the final images.
        images: decodes them (once more): (P, K, 3, H, W), or (P, K, F, 3, H, W), in [0, 1] on the CPU.
        kept: (P, K) what is kept of each, by the names of `Scorer.keeps`.
    """

    rewards: Tensor
    scores: dict[str, Tensor]
    final_scale: bool
    images: Callable[[], Tensor]
    kept: dict[str, list[list[Any]]]


class Judge:
    """Scores the particles of a run, each distinct row once.

    Args:
        reward: by which they are judged.
        scorer: of distinct images.
        prompts: P texts.
        rows: where the particles live.
        decoder: of x0 predictions.
        last: of the final latents.
        preview: of x0 predictions up to the progress `until`; None for none.
    """

    def __init__(
        self,
        reward: Reward,
        scorer: Scorer,
        prompts: tuple[str, ...],
        rows: Rows,
        decoder: Decoder,
        last: Decoder,
        preview: Decoder | None = None,
        until: float = 0.0,
    ) -> None:
        self.reward, self.scorer, self.prompts, self.rows = reward, scorer, prompts, rows
        self.decoder, self.last, self.preview, self.until = decoder, last, preview, until

    def of_predictions(self, x0: Tensor, index: int, num_steps: int) -> Judgement:
        """Of the x0 predictions (L, ...) of the live rows at a step.

        Raises:
            RewardError: for scores that are NaN or misshapen, naming reward, prompt and step.
        """
        progress = (index + 1) / num_steps
        preview = self.preview if self.preview is not None and progress < self.until else None
        return self._of_latents(self.reward.at(progress), x0, preview or self.decoder, f"at step {index}")

    def of_latents(self, latents: Tensor) -> Judgement:
        """Of the final latents (L, ...) of the live rows."""
        return self._of_latents(self.reward.at(1.0), latents, self.last, _FINAL)

    def of_images(self, images: Tensor) -> Judgement:
        """Of the final images (L, 3, H, W) of the live rows."""
        reward, particles = self.reward.at(1.0), self.rows.particles
        prompts = self._prompts(torch.arange(len(images)))
        scores = self.scorer.of_images(reward, images, prompts, _FINAL)
        return self._combined(reward, scores, particles, _FINAL, lambda: images.cpu()[particles])

    def _of_latents(self, reward: Reward, latents: Tensor, decoder: Decoder, where: str) -> Judgement:
        position, inverse = self.rows.distinct_live()
        particles = self.rows.particles
        distinct = latents[position.to(latents.device)] if len(position) < len(latents) else latents
        rows = self.rows.live
        theirs = rows[position]
        try:
            scores = self.scorer.of_latents(reward, distinct, theirs, decoder, self._prompts(position), where)
        except ValueError:
            size = self.scorer.execution.decode_batch_size or len(distinct)
            for some, of_some in zip(distinct.split(size), theirs.split(size)):
                check_decoder(getattr(decoder, "vae", None), decoder(some, of_some), some)
            raise

        def images() -> Tensor:
            size = self.scorer.execution.decode_batch_size or len(latents)
            chunks = zip(latents.split(size), rows.split(size))
            return torch.cat([decoder(some, theirs).cpu() for some, theirs in chunks])[particles]

        return self._combined(reward, scores, inverse[particles], where, images)

    def _prompts(self, positions: Tensor) -> list[str]:
        populations = self.rows.populations()
        return [self.prompts[populations[position]] for position in positions.tolist()]

    def _combined(
        self, reward: Reward, scores: dict[Reward, Any], members: Tensor, where: str, images: Callable[[], Tensor]
    ) -> Judgement:
        """Of scores of distinct images, of which `members` (P, K) says whose each is."""
        names = names_of(list(scores))

        def of_prompts(share: slice) -> dict[str, Tensor]:
            groups, prompts = list(members[share]), self.prompts[share]
            found = {}
            for leaf, name in names.items():
                with blaming(leaf, prompts, where):
                    values = leaf.of_particles(scores[leaf], groups, prompts)
                found[name] = torch.stack(
                    [
                        check_scores(leaf, some, [prompt] * len(group), where)
                        for some, group, prompt in zip(values, groups, prompts, strict=True)
                    ]
                )
            return found

        with self.scorer.clock("reward"):
            found = self.scorer.ranks.map(of_prompts, len(self.prompts))
        rewards = reward.combine({leaf: found[name] for leaf, name in names.items()})
        kept = {name: [[of[i] for i in row] for row in members.tolist()] for name, of in self.scorer.kept.items()}
        return Judgement(
            check_combined(reward, rewards, self.prompts, where),
            found,
            reward.leaves == self.reward.at(1.0).leaves,
            images,
            kept,
        )


_FINAL = "for the final images"

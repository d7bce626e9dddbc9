"""From scores of distinct images to rewards of particles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..rewards.asking import blaming, check_combined, check_scores
from ..rewards.base import Reward, RewardError, names_of, placed
from ..rewards.latent import LatentReward, Latents
from .decode import Decoder
from .readings import Readings
from .rows import Rows
from .scoring import Scorer
from .watch import check_decoder


class Judgement(NamedTuple):
    """What was made of some images.

    Attributes:
        rewards: (P, K) float64 on the CPU.
        scores: what they were made from, likewise, by name of each leaf of the reward; NaN where it was not asked.
        final_scale: whether the same leaves score the final images.
        images: decodes them (once more): (P, K, 3, H, W), or (P, K, F, 3, H, W), in [0, 1] on the CPU.
        kept: (P, K) what is kept of each, by the names of `Scorer.keeps`.
        details: (P, K) what the scores were made of, see `Reward.details`, by the names of the leaves that say so.
    """

    rewards: Tensor
    scores: dict[str, Tensor]
    final_scale: bool
    images: Callable[[], Tensor]
    kept: dict[str, list[list[Any]]]
    details: dict[str, list[list[dict[str, float]]]]


Score = Callable[[Mapping[Reward, str], Tensor, bool], dict[Reward, Any]]
"""Leaves with their names, distinct images (D,) by number, and whether these are the first of the event -> what the
leaves make of these images."""


class Judge:
    """Scores the particles of a run, each distinct row at most once by each leaf of the reward.

    Args:
        reward: by which they are judged.
        scorer: of distinct images.
        prompts: P texts.
        rows: where the particles live.
        decoder: of x0 predictions.
        last: of the final latents.
        readings: what latent rewards are given.
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
        readings: Readings,
        preview: Decoder | None = None,
        until: float = 0.0,
    ) -> None:
        self.reward, self.scorer, self.prompts, self.rows = reward, scorer, prompts, rows
        self.decoder, self.last, self.preview, self.until = decoder, last, preview, until
        self.readings = readings

    def of_predictions(self, x0: Tensor, noisy: Tensor, index: int, num_steps: int) -> Judgement:
        """Of the x0 predictions (L, ...) of the live rows at a step, and the samples that they were made of.

        Raises:
            RewardError: for scores that are NaN or misshapen, naming reward, prompt and step.
        """
        progress = (index + 1) / num_steps
        preview = self.preview if self.preview is not None and progress < self.until else None
        states = partial(self.readings.noisy, noisy, x0, index)
        return self._of_latents(self.reward.at(progress), x0, preview or self.decoder, f"at step {index}", states)

    def of_latents(self, latents: Tensor) -> Judgement:
        """Of the final latents (L, ...) of the live rows."""
        return self._of_latents(self.reward.at(1.0), latents, self.last, _FINAL, partial(self.readings.clean, latents))

    def of_images(self, images: Tensor, latents: Tensor | None) -> Judgement:
        """Of the final images (L, 3, H, W) of the live rows, and the latents (L, ...) that they were made of, None if
        they are not known."""
        reward, particles = self.reward.at(1.0), self.rows.particles

        def score(leaves: Mapping[Reward, str], chosen: Tensor, first: bool) -> dict[Reward, Any]:
            readers, others = _by_what_they_read(leaves)
            prompts, found = self._prompts(chosen), {}
            if readers:
                if latents is None:
                    raise RewardError(
                        f"Reward '{next(iter(readers)).name}' reads latents, but the final ones of this pipeline are "
                        "not known. Take it as the first reward of a `Cascade`, with one of images behind it."
                    )
                found = self.scorer.of_states(readers, self.readings.clean(latents, chosen), prompts, _FINAL)
            if others or (first and self.scorer.keeps):
                some = images if len(chosen) == len(images) else images[chosen.to(images.device)]
                found |= self.scorer.of_images(others, some, prompts, _FINAL, first)
            return found

        return self._judged(reward, score, particles, len(images), _FINAL, lambda: images.cpu()[particles])

    def _of_latents(
        self, reward: Reward, latents: Tensor, decoder: Decoder, where: str, states: Callable[[Tensor], Latents]
    ) -> Judgement:
        position, inverse = self.rows.distinct_live()
        particles = self.rows.particles
        rows = self.rows.live

        def score(leaves: Mapping[Reward, str], chosen: Tensor, first: bool) -> dict[Reward, Any]:
            own = position[chosen]
            readers, others = _by_what_they_read(leaves)
            found = self.scorer.of_states(readers, states(own), self._prompts(own), where) if readers else {}
            if not others and not (first and self.scorer.keeps):
                return found
            distinct = latents[own.to(latents.device)] if len(own) < len(latents) else latents
            theirs = rows[own]
            try:
                return found | self.scorer.of_latents(
                    others, distinct, theirs, decoder, self._prompts(own), where, first
                )
            except ValueError:
                size = self.scorer.execution.decode_batch_size or len(distinct)
                for some, of_some in zip(distinct.split(size), theirs.split(size)):
                    check_decoder(getattr(decoder, "vae", None), decoder(some, of_some), some)
                raise

        def images() -> Tensor:
            size = self.scorer.execution.decode_batch_size or len(latents)
            chunks = zip(latents.split(size), rows.split(size))
            return torch.cat([decoder(some, theirs).cpu() for some, theirs in chunks])[particles]

        return self._judged(reward, score, inverse[particles], len(position), where, images)

    def _prompts(self, positions: Tensor) -> list[str]:
        populations = self.rows.populations()
        return [self.prompts[populations[position]] for position in positions.tolist()]

    def _judged(
        self, reward: Reward, score: Score, members: Tensor, number: int, where: str, images: Callable[[], Tensor]
    ) -> Judgement:
        """Of as many distinct images, of which `members` (P, K) says whose each is."""
        names = names_of(reward.leaves)
        found: dict[Reward, Tensor] = {}
        details: dict[str, list[list[dict[str, float]]]] = {}
        everyone = torch.ones_like(members, dtype=torch.bool)
        first = True
        while wanted := reward.missing(found, everyone):
            # Leaves that are to score the same particles get their images together.
            mask = next(iter(wanted.values()))
            leaves = {leaf: names[leaf] for leaf, own in wanted.items() if torch.equal(own, mask)}
            chosen = torch.arange(number) if first else members[mask].unique()
            scores = score(leaves, chosen, first)
            with self.scorer.clock("reward"):
                values, said = self._of_particles(scores, names, mask, chosen, members, where)
                for leaf, own in values.items():
                    found[leaf] = placed(own, mask, found.get(leaf))
                for name, entries in said.items():
                    table = details.setdefault(name, [[{} for _ in row] for row in members.tolist()])
                    for (p, k), entry in zip(mask.nonzero().tolist(), entries, strict=True):
                        table[p][k] = entry
            first = False
        kept = {name: [[of[i] for i in row] for row in members.tolist()] for name, of in self.scorer.kept.items()}
        return Judgement(
            check_combined(reward, reward.combine(found), self.prompts, where),
            {name: found[leaf] for leaf, name in names.items()},
            reward.leaves == self.reward.at(1.0).leaves,
            images,
            kept,
            details,
        )

    def _of_particles(
        self,
        scores: dict[Reward, Any],
        names: Mapping[Reward, str],
        mask: Tensor,
        chosen: Tensor,
        members: Tensor,
        where: str,
    ) -> tuple[dict[Reward, Tensor], dict[str, list[dict[str, float]]]]:
        """The scores of the particles in `mask` (P, K), one after the other, from those of the distinct images `chosen`
        (D,), and what they were made of, by name."""

        def of_prompts(share: slice) -> dict[str, list[Any]]:
            own = [p for p in range(share.start, share.stop) if mask[p].any()]
            groups = [torch.searchsorted(chosen, members[p][mask[p]]) for p in own]
            prompts = [self.prompts[p] for p in own]
            found: dict[str, list[Any]] = {}
            for leaf, encodings in scores.items():
                with blaming(leaf, prompts, where):
                    values = leaf.of_particles(encodings, groups, prompts)
                    said = leaf.details(encodings, groups, prompts)
                if said is not None:
                    found[_DETAILS + names[leaf]] = [entry for entries in said for entry in entries]
                found[names[leaf]] = [
                    check_scores(leaf, some, [prompt] * len(group), where)
                    for some, group, prompt in zip(values, groups, prompts, strict=True)
                ]
            return found

        found = self.scorer.ranks.map(of_prompts, len(self.prompts))
        details = {name.removeprefix(_DETAILS): found[name] for name in found if name.startswith(_DETAILS)}
        return {leaf: torch.cat(found[names[leaf]]) for leaf in scores}, details


def _by_what_they_read(leaves: Mapping[Reward, str]) -> tuple[dict[LatentReward, str], dict[Reward, str]]:
    """Leaves that read latents, and those that look at images."""
    readers = {leaf: name for leaf, name in leaves.items() if isinstance(leaf, LatentReward)}
    return readers, {leaf: name for leaf, name in leaves.items() if leaf not in readers}


_DETAILS = "details: "
_FINAL = "for the final images"

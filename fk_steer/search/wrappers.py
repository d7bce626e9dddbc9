"""Searches that change what another search says: the best particle kept, prompts that are good enough, z-scores, the
final images ranked by the whole end of their path."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ..smc import standardize
from .base import Look, Outcome, Plan, Search, Wrapper


class Standardized(Wrapper):
    """Shows z-scores of the rewards within each prompt."""

    def step(self, look: Look) -> Plan:
        return self.inner.step(dataclasses.replace(look, rewards=standardize(look.rewards)))

    def finish(self, rewards: Tensor) -> Outcome:
        return self.inner.finish(standardize(rewards))


class Elite(Wrapper):
    """Keeps one particle of each population, without noise, from the first event with noise in its step or the next
    on: the one with the highest reward then."""

    def __init__(self, inner: Search) -> None:
        super().__init__(inner)
        self._slot: Tensor | None = None

    def step(self, look: Look) -> Plan:
        plan = self.inner.step(look)
        if self._slot is None:
            if not look.noisy:
                return plan
            self._slot = look.slots.gather(1, look.rewards.argmax(1, keepdim=True))
        kept = (look.slots == self._slot).long().argmax(1)
        ancestors = _keeping(plan.ancestors, kept, look.slots.shape[1])
        # Of several copies the first is the one that stays in its slot, or the one that was there already.
        is_kept = ancestors == kept[:, None]
        if ancestors.shape == look.slots.shape:
            quiet = torch.zeros_like(is_kept).scatter_(1, kept[:, None], True)
        else:
            quiet = is_kept & (is_kept.cumsum(1) == 1)
        return dataclasses.replace(plan, ancestors=ancestors, quiet=quiet)

    @property
    def log_normalizer(self) -> Tensor | None:
        return self.inner.log_normalizer if self._slot is None else None


class EarlyStop(Wrapper):
    """Lets a population whose best x0 prediction reaches a reward go on with that particle alone, without noise."""

    def __init__(self, inner: Search, target: float) -> None:
        super().__init__(inner)
        self.target = target
        self._stopped: Tensor | None = None

    def step(self, look: Look) -> Plan:
        stopped = torch.zeros(len(look.rewards), dtype=torch.bool) if self._stopped is None else self._stopped
        if look.final_reward:
            stopped = stopped | (look.rewards >= self.target).any(1)
        self._stopped = stopped
        plan = self.inner.step(look)
        best = look.rewards.argmax(1, keepdim=True)
        ancestors = torch.where(stopped[:, None], best, plan.ancestors)
        resampled = stopped if plan.resampled is None else plan.resampled | stopped
        return dataclasses.replace(plan, ancestors=ancestors, stopped=stopped, resampled=resampled)

    @property
    def log_normalizer(self) -> Tensor | None:
        stopped = self._stopped is not None and bool(self._stopped.any())
        return None if stopped else self.inner.log_normalizer


class Averaged(Wrapper):
    """Ranks the final images by the mean of their reward and those of the last x0 predictions on their own path.

    Rewards of x0 predictions that are on another scale, as those of a cascade's cheap reward are, do not count. For
    searches that do not go back.

    Args:
        inner: the search.
        last: how many events at most.
    """

    def __init__(self, inner: Search, last: int) -> None:
        super().__init__(inner)
        self.last = last
        self._rewards: list[Tensor] = []
        """(P, K) of the last events, of the particles that are alive now."""

    def step(self, look: Look) -> Plan:
        if look.final_reward and look.step not in self.unscored:
            self._rewards = [*self._rewards, look.rewards][-self.last :]
        return self.inner.step(look)

    def adopt(self, ancestors: Tensor) -> None:
        self._rewards = [rewards.gather(1, ancestors) for rewards in self._rewards]
        self.inner.adopt(ancestors)

    def finish(self, rewards: Tensor) -> Outcome:
        ranking = torch.stack([*self._rewards, rewards]).mean(0)
        # Infinities of both signs on one path.
        outcome = self.inner.finish(rewards)
        return dataclasses.replace(outcome, ranking=torch.where(ranking.isnan(), rewards, ranking))


def _keeping(ancestors: Tensor, kept: Tensor, K: int) -> Tensor:
    """Ancestors (P, M) with particle kept[p] among them, at its own position if M = K, else in place of the last."""
    ancestors = ancestors.clone()
    rows = torch.arange(len(ancestors))
    if ancestors.shape[1] == K:
        ancestors[rows, kept] = kept
    else:
        missing = (ancestors != kept[:, None]).all(1)
        ancestors[rows[missing], -1] = kept[missing]
    return ancestors

"""What a search sees and says.

A `Strategy` is settings: frozen, named, serialisable. For one call it starts a `Search`, which at every event is shown
a `Look` - the rewards of the particles' x0 predictions - and answers with a `Plan`: which particle each one continues,
and whether the loop goes on, back or ahead. It knows no pipeline, scheduler or image; an engine carries plans out.

Notation: P populations (one per prompt and image asked for) of K particles. A particle lives in a *slot*, one of
`num_particles` rows of its population; its *ancestor* is the particle that it continues.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..smc import Weights


@dataclass(frozen=True)
class RewardFacts:
    """What a strategy may know of the reward.

    Attributes:
        name: for messages.
        default_lmbda: a lambda that suits its scale; None if there is none to recommend.
        relative: whether it only compares the particles of a prompt with one another.
        standardize: whether z-scores of it within each prompt are to be weighed.
    """

    name: str = "reward"
    default_lmbda: float | None = None
    relative: bool = False
    standardize: bool = False


@dataclass(frozen=True)
class Start:
    """What a search is started with.

    Attributes:
        num_populations: P.
        num_steps: of the denoising loop.
        generators: one for each population, for the search's own random decisions.
        reward: what is known of it.
    """

    num_populations: int
    num_steps: int
    generators: Sequence[torch.Generator]
    reward: RewardFacts = RewardFacts()


@dataclass(frozen=True)
class Look:
    """What is seen at an event.

    Attributes:
        step: index of the denoising step, counted from zero; its x0 predictions are what was scored.
        num_steps: of the loop.
        slots: (P, K) in which slots the particles live.
        rewards: (P, K) float64 on the CPU, higher is better; zeros at a step that is not scored.
        noisy: whether the sampler adds noise in this step or the next.
        final_reward: whether these rewards are on the scale of the final images' (those of a cascade's cheap reward
            are not).
    """

    step: int
    num_steps: int
    slots: Tensor
    rewards: Tensor
    noisy: bool = True
    final_reward: bool = True

    @property
    def progress(self) -> float:
        """The share of the loop's denoiser calls made, in (0, 1]."""
        return (self.step + 1) / self.num_steps

    @property
    def everyone(self) -> Tensor:
        """The ancestors (P, K) with which all go on as they are."""
        P, K = self.rewards.shape
        return torch.arange(K).expand(P, K)

    def ranked(self) -> Tensor:
        """The particles (P, K) from the highest reward to the lowest; ties go to the lower index."""
        return self.rewards.argsort(dim=1, descending=True, stable=True)


@dataclass(frozen=True)
class Plan:
    """What becomes of the particles.

    Attributes:
        ancestors: (P, M), which particle each of the M that go on continues: 0 to K - 1 are the present ones in the
            order of the look, K + r is number r of those remembered at this step (with `resume` by memory: at that
            step). A particle that is continued once keeps its slot.
        quiet: (P, M) which of them go on without the sampler's noise; None for none.
        stopped: (P,) populations that go on as one, the first of their ancestors, without noise; None for none.
        asleep: (P,) populations whose rows need not be computed until they are replaced by remembered ones; None for
            none.
        remember: (P, R), indexed like `ancestors`: the particles whose states at this step are kept, in place of those
            kept of this step before; None keeps what is kept.
        resume: the step to go on with instead of the next, by the way of `by`; None goes on.
        by: 'renoise' brings the x0 predictions to the noise level of step `resume` by the forward process, 'memory'
            takes the states remembered there, 'leap' takes one large deterministic step to it, which has to lie ahead.
        after_noise: continue the ancestors after this step's noise, which copies then share.
        directions: (P, M, K) in place of a particle's own noise in this step: sum_k directions[p, m, k] x_k of the
            samples of the K particles seen, brought to the length of its own noise. Coefficients that are all zero
            leave it its own; None for none.
        weights: of the K particles seen, for the record; None for none.
        lmbda: (P,) the lambda in force, for the record.
        resampled: (P,) for the record; None for populations in which not everyone goes on as they are.
    """

    ancestors: Tensor
    quiet: Tensor | None = None
    stopped: Tensor | None = None
    asleep: Tensor | None = None
    remember: Tensor | None = None
    resume: int | None = None
    by: str = "renoise"
    after_noise: bool = False
    directions: Tensor | None = None
    weights: Weights | None = None
    lmbda: Tensor | None = None
    resampled: Tensor | None = None


@dataclass(frozen=True)
class Outcome:
    """What comes of a run.

    Attributes:
        weights: of the final images.
        lmbda: (P,) the lambda in force there if there is one.
        ranking: (P, K) by what the final images are ranked, best first; None for their rewards.
    """

    weights: Weights
    lmbda: Tensor | None = None
    ranking: Tensor | None = None


class Search:
    """The state of a strategy in one run.

    Attributes:
        events: the steps at which it looks, counted from zero. An event in the second stage of a two-stage solver waits
            for the next step.
        unscored: those among them at which it needs no rewards.
    """

    events: Collection[int] = ()
    unscored: Collection[int] = ()

    def step(self, look: Look) -> Plan:
        """What becomes of the particles after an event."""
        raise NotImplementedError(f"{type(self).__name__} has to say what becomes of the particles.")

    def adopt(self, ancestors: Tensor) -> None:
        """Hear which ancestors (P, M) the particles now continue, in the order of their slots: those of the plan,
        unless another search has changed them."""

    def finish(self, rewards: Tensor) -> Outcome:
        """The weights of the final images, given their rewards (P, K). Equal ones unless a search says otherwise."""
        return Outcome(Weights.uniform(*rewards.shape))

    @property
    def log_normalizer(self) -> Tensor | None:
        """Estimate (P,) of log E[exp(lambda r(x0))] once `finish` has run; None if the search gives none."""
        return None


class Wrapper(Search):
    """A search that changes what another says."""

    def __init__(self, inner: Search) -> None:
        self.inner = inner

    @property
    def events(self) -> Collection[int]:  # type: ignore[override]
        return self.inner.events

    @property
    def unscored(self) -> Collection[int]:  # type: ignore[override]
        return self.inner.unscored

    def step(self, look: Look) -> Plan:
        return self.inner.step(look)

    def adopt(self, ancestors: Tensor) -> None:
        self.inner.adopt(ancestors)

    def finish(self, rewards: Tensor) -> Outcome:
        return self.inner.finish(rewards)

    @property
    def log_normalizer(self) -> Tensor | None:
        return self.inner.log_normalizer


def place(ancestors: Tensor, slots: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """Slots for the particles that go on.

    The first that continues a particle stays in its slot; copies, and those that continue a remembered particle, take
    the lowest free slots. In a population whose number does not change and in which none is remembered, everyone stays
    in place: a copy takes the slot of the particle it replaces. What the others in the batch do makes no difference.

    Args:
        ancestors: (P, M) see `Plan`.
        slots: (P, K) of the present particles.
        num_slots: of each population.

    Returns:
        Slots (P, M), ascending, and (P, M) the order in which the particles of the plan take them.
    """
    P, M = ancestors.shape
    K = slots.shape[1]
    if M == K and bool((ancestors < K).all()):
        return slots, torch.arange(M).expand(P, M)
    placed: list[list[tuple[int, int]]] = []
    for row_ancestors, row_slots in zip(ancestors.tolist(), slots.tolist()):
        if M == K and max(row_ancestors) < K:
            placed.append(list(zip(row_slots, range(M))))
            continue
        first_of: dict[int, int] = {}
        for m, k in enumerate(row_ancestors):
            if k < K:
                first_of.setdefault(k, m)
        stay = {m: row_slots[k] for k, m in first_of.items()}
        taken = set(stay.values())
        free = (slot for slot in range(num_slots) if slot not in taken)
        copies = [(next(free), m) for m in range(M) if m not in stay]
        placed.append(sorted([(slot, m) for m, slot in stay.items()] + copies))
    both = torch.tensor(placed)
    return both[:, :, 0].contiguous(), both[:, :, 1].contiguous()


def describe(value: Any) -> Any:
    """Settings as plain values for a record; an object that is not plain by the name of its class."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    return type(value).__name__

"""P populations of weighted particles, and what one scoring event does to them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .potentials import POTENTIALS, Potential, remainder, tilt
from .resampling import Generators, Resampler, effective_sample_size, ssp
from .tempering import Constant, TargetESS, Tempering


@dataclass(frozen=True)
class Event:
    """What happened at one scoring event. K particles were alive before it, M after it.

    Attributes:
        rewards: (P, K) as given.
        lmbda: (P,) the lambda in force.
        log_weights: (P, K) normalised, carried weights included, before any resampling.
        ess: (P,) effective sample size of those weights, in [1, K].
        resampled: (P,) whether the population was resampled.
        slots_before: (P, K) the slots of the particles that were scored, ascending.
        slots: (P, M) the slots of the particles alive afterwards, ascending.
        ancestors: (P, M) indices in [0, K): the particle now in `slots[p, m]` continues number `ancestors[p, m]`.
        distinct_roots: (P,) how many of the initial particles still have descendants.
    """

    rewards: Tensor
    lmbda: Tensor
    log_weights: Tensor
    ess: Tensor
    resampled: Tensor
    slots_before: Tensor
    slots: Tensor
    ancestors: Tensor
    distinct_roots: Tensor

    @property
    def parents(self) -> Tensor:
        """(P, M) the slot that the particle now in `slots[p, m]` came from."""
        return self.slots_before.gather(1, self.ancestors)


@dataclass
class Population:
    """P independent populations of K particles that target p(x_0) exp(lambda r(x_0)).

    One `step` per scoring event, then one `finish` on the final rewards. The particles themselves live elsewhere, in
    `num_particles` slots per population; `slots` says which of them are alive. A particle that is continued once keeps
    its slot; copies take slots that are free.

    Attributes:
        num_populations: P.
        num_particles: number of slots per population, all alive at the start.
        lmbda: strength of the tilt; None only with `TargetESS`, which then has no upper limit.
        potential: one of `POTENTIALS`.
        resampler: one of `RESAMPLERS`.
        tempering: lambda along the way.
        ess_threshold: a population is resampled when its effective sample size is at most this fraction of K; 1 is
            always, 0 never. A change in the number of particles always resamples.
        floor: where the running statistic starts, so that `max` takes lower rewards for it; None for no floor.
        exact_terminal: weigh the end of the path with lambda r(x_0); if False with the running statistic instead, as
            the reference implementation does, whose target is then not p(x_0) exp(lambda r(x_0)).
        generator: one generator, or one per population, for the resampling alone.
    """

    num_populations: int
    num_particles: int
    lmbda: float | None
    potential: Potential = POTENTIALS["difference"]
    resampler: Resampler = ssp
    tempering: Tempering = field(default_factory=Constant)
    ess_threshold: float = 0.5
    floor: float | None = None
    exact_terminal: bool = True
    generator: Generators = None

    def __post_init__(self) -> None:
        shape = (self.num_populations, self.num_particles)
        self._initial = self.potential.initial if self.floor is None else self.floor
        zeros = torch.zeros(shape, dtype=torch.float64)
        self.slots = torch.arange(self.num_particles).expand(shape).clone()
        self.roots = self.slots.clone()
        self.log_weights = zeros.clone()
        """(P, K) unnormalised log-weights since the last resampling."""
        self.path = zeros.clone()
        """(P, K) sum of log G on each particle's path."""
        self.statistic = zeros + self._initial
        """(P, K) the potential's running statistic."""
        self.lmbda_before = zeros[:, 0].clone()
        self.log_normalizer = zeros[:, 0].clone()
        """(P,) estimate of log E[exp(lambda r(x_0))] once `finish` has run; consistent for unbiased resamplers with
        the exact terminal weight."""

    @property
    def size(self) -> int:
        """K, the number of particles alive in each population."""
        return self.slots.shape[1]

    def step(
        self,
        rewards: Tensor,
        progress: float,
        num_offspring: int | None = None,
        collapse: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Event:
        """Weigh the particles by the rewards of their x0 predictions and resample where called for.

        Args:
            rewards: (P, K) of the particles alive, in the order of `slots`; higher is better. +-inf is allowed: -inf
                kills a particle.
            progress: of the loop, the share of its denoiser calls made, in [0, 1].
            num_offspring: M, the number of particles alive afterwards; None keeps K.
            collapse: (P,) populations in which all offspring are to continue the particle of the highest reward.
            keep: (P,) index of a particle in each population that is to go on whatever its weight, in its slot; None
                for no such particle.

        Raises:
            ValueError: for rewards that are NaN or not of shape (P, K), or M outside [1, `num_particles`].
        """
        rewards = self._check(rewards)
        M = self.size if num_offspring is None else num_offspring
        if not 1 <= M <= self.num_particles:
            raise ValueError(f"Expected 1 to {self.num_particles} offspring, but got {M}.")
        self.statistic = self.potential.combine(self.statistic, rewards)
        lmbda = self._lmbda_at(progress, self.statistic, telescopes=self.potential.telescopes)
        self._weigh(self.potential.log_potential(self._level(self.statistic, lmbda), self.path))
        return self._resample(rewards, lmbda, M, collapse, keep)

    def finish(self, rewards: Tensor) -> Event:
        """Weigh the particles by the rewards (P, K) of their final images; nothing is resampled.

        Afterwards `log_weights` are the weights of the final images: sum_k W[k] f(x_0[k]) estimates the mean of f
        under p(x_0) exp(lambda r(x_0)) / Z.

        Raises:
            ValueError: for rewards that are NaN or not of shape (P, K).
        """
        rewards = self._check(rewards)
        self.statistic = rewards if self.exact_terminal else self.potential.combine(self.statistic, rewards)
        lmbda = self._lmbda_at(1.0, self.statistic, telescopes=True)
        self._weigh(remainder(self._level(self.statistic, lmbda), self.path))
        return self._event(
            rewards, lmbda, torch.zeros(self.num_populations, dtype=torch.bool), self._identity(), self.slots
        )

    def _check(self, rewards: Tensor) -> Tensor:
        rewards = rewards.detach().to("cpu", torch.float64)
        if rewards.shape != self.slots.shape:
            raise ValueError(f"Expected rewards of shape {tuple(self.slots.shape)}, but got {tuple(rewards.shape)}.")
        if rewards.isnan().any():
            raise ValueError("Expected rewards without NaN.")
        return rewards

    def _lmbda_at(self, progress: float, statistic: Tensor, telescopes: bool) -> Tensor:
        full = lambda value: torch.full((self.num_populations,), value, dtype=torch.float64)  # noqa: E731
        if not isinstance(self.tempering, TargetESS):
            assert self.lmbda is not None
            lmbda = full(self.lmbda if progress >= 1.0 else self.lmbda * self.tempering.scale(progress))
        elif progress >= 1.0 and self.lmbda is not None:
            lmbda = full(self.lmbda)
        else:
            lowest = self.lmbda_before if telescopes else full(0.0)
            counts = (self.log_weights > -torch.inf) & statistic.isfinite()
            spread = torch.where(counts, statistic, -torch.inf).amax(1) - torch.where(
                counts, statistic, torch.inf
            ).amin(1)
            # Beyond 50 nats between the best and the worst, more lambda changes nothing.
            highest = torch.where(spread > 0, lowest + 50.0 / spread, lowest)
            if self.lmbda is not None:
                highest = highest.clamp(max=self.lmbda)

            def log_weights_at(value: Tensor) -> Tensor:
                level = self._level(statistic, value)
                return _add(self.log_weights, remainder(level, self.path) if telescopes else level)

            lmbda = self.tempering.solve(log_weights_at, lowest.minimum(highest), highest)
        self.lmbda_before = lmbda
        return lmbda

    def _level(self, statistic: Tensor, lmbda: Tensor) -> Tensor:
        level = tilt(statistic, lmbda)
        if isinstance(self.tempering, TargetESS) and self.lmbda != 0:
            # The lambda found is that of the finite ones, 0 if they tie; infinite ones decide whatever it is.
            level = torch.where(statistic.isinf(), statistic, level)
        return level

    def _weigh(self, log_potential: Tensor) -> None:
        alive = self.log_weights > -torch.inf
        infinite = alive & (log_potential == torch.inf)
        log_potential = torch.where(
            infinite.any(1, keepdim=True), torch.where(infinite, 0.0, -torch.inf), log_potential
        )
        weighed = _add(self.log_weights, log_potential)
        dead = (weighed == -torch.inf).all(1)
        if dead.any():
            warnings.warn(
                f"Every particle of population {dead.nonzero().flatten().tolist()} has a weight of zero; "
                "it goes on with uniform weights.",
                stacklevel=4,
            )
        self.log_normalizer = self.log_normalizer + weighed.logsumexp(1) - self.log_weights.logsumexp(1)
        self.path = _add(self.path, log_potential)
        self.log_weights = weighed.masked_fill(dead[:, None], 0.0)
        self.path = self.path.masked_fill(dead[:, None], 0.0)
        self.statistic = self.statistic.masked_fill(dead[:, None], self._initial)

    def _resample(self, rewards: Tensor, lmbda: Tensor, M: int, collapse: Tensor | None, keep: Tensor | None) -> Event:
        K = self.size
        # Drawn whether used or not, so that a population's draws do not depend on what the others in the batch do.
        ancestors = self.resampler(self.log_weights, M, self.generator)
        if M == K:
            resampled = effective_sample_size(self.log_weights) <= self.ess_threshold * K
            ancestors = torch.where(resampled[:, None], ancestors, self._identity())
        else:
            resampled = torch.ones(self.num_populations, dtype=torch.bool)
        if keep is not None:
            ancestors = _keeping(ancestors, keep, K)
        if collapse is not None:
            resampled = resampled | collapse
            ancestors = torch.where(collapse[:, None], rewards.argmax(1, keepdim=True), ancestors)
        slots = self.slots
        if M != K:
            ancestors, slots = _place(ancestors, self.slots, self.num_particles)
        event = self._event(rewards, lmbda, resampled, ancestors, slots)
        self.slots = slots
        self.log_weights = self.log_weights.gather(1, ancestors).masked_fill(resampled[:, None], 0.0)
        self.path = self.path.gather(1, ancestors)
        self.statistic = self.statistic.gather(1, ancestors)
        self.roots = self.roots.gather(1, ancestors)
        return event

    def _event(self, rewards: Tensor, lmbda: Tensor, resampled: Tensor, ancestors: Tensor, slots: Tensor) -> Event:
        roots = self.roots.gather(1, ancestors)
        return Event(
            rewards=rewards,
            lmbda=lmbda,
            log_weights=self.log_weights.log_softmax(1),
            ess=effective_sample_size(self.log_weights),
            resampled=resampled,
            slots_before=self.slots,
            slots=slots,
            ancestors=ancestors,
            distinct_roots=torch.tensor([len(set(row)) for row in roots.tolist()]),
        )

    def _identity(self) -> Tensor:
        return torch.arange(self.size).expand(self.num_populations, self.size)


def _add(log_weights: Tensor, increment: Tensor) -> Tensor:
    """Sum in which a weight of zero stays zero: -inf + inf = -inf."""
    return torch.where(log_weights == -torch.inf, -torch.inf, log_weights + increment)


def _keeping(ancestors: Tensor, keep: Tensor, K: int) -> Tensor:
    """Ancestors (P, M) with particle keep[p] among them, at its own position if M = K, else in place of the last."""
    ancestors = ancestors.clone()
    rows = torch.arange(len(ancestors))
    if ancestors.shape[1] == K:
        ancestors[rows, keep] = keep
    else:
        missing = (ancestors != keep[:, None]).all(1)
        ancestors[rows[missing], -1] = keep[missing]
    return ancestors


def _place(ancestors: Tensor, slots: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """Slots (P, M) for the offspring: the first of each parent stays where the parent was, copies take the lowest free
    slots. Returns ancestors and slots, both in ascending order of slots."""
    placed: list[list[tuple[int, int]]] = []
    for row_ancestors, row_slots in zip(ancestors.tolist(), slots.tolist()):
        survivors = sorted(set(row_ancestors))
        taken = {row_slots[k] for k in survivors}
        free = (slot for slot in range(num_slots) if slot not in taken)
        copies = list(row_ancestors)
        for k in survivors:
            copies.remove(k)
        placed.append(sorted([(row_slots[k], k) for k in survivors] + [(next(free), k) for k in copies]))
    both = torch.tensor(placed)
    return both[:, :, 1].contiguous(), both[:, :, 0].contiguous()

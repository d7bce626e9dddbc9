"""Feynman-Kac sequential Monte Carlo on P populations of weighted particles: a state in, a state and an event out.

The particles themselves live elsewhere; this is what is known of their weights. One `step` per scoring event, then one
`finish` on the final rewards:

    state = model.start(P, K)
    state, event = model.step(state, rewards, progress)    # at every event; particles then continue event.ancestors
    state, event = model.finish(state, rewards)

`step` is `weigh`, `select` and `follow`; a search that overrides some of the ancestors calls those itself.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .potentials import Difference, Potential, remainder, tilt
from .resampling import Generators, Resampling
from .tempering import Constant, Situation, Tempering
from .weights import Weights, add


class State(NamedTuple):
    """What is known of K particles in each of P populations.

    Attributes:
        weights: since the last resampling.
        path: (P, K) sum of log G on each particle's path.
        statistic: (P, K) the potential's running statistic.
        lmbda: (P,) the lambda of the last event.
        log_normalizer: (P,) estimate of log E[exp(lambda r(x_0))] once `finish` has run; consistent for unbiased
            resamplers with the exact terminal weight.
    """

    weights: Weights
    path: Tensor
    statistic: Tensor
    lmbda: Tensor
    log_normalizer: Tensor


class Event(NamedTuple):
    """What happened at an event: K particles before it, M after it.

    Attributes:
        lmbda: (P,) the lambda in force.
        weights: of the K particles, carried weights included, before any resampling.
        ancestors: (P, M) indices in [0, K): particle m now continues number `ancestors[p, m]`.
        resampled: (P,) whether the population was resampled.
    """

    lmbda: Tensor
    weights: Weights
    ancestors: Tensor
    resampled: Tensor


@dataclass(frozen=True)
class FeynmanKac:
    """Populations of particles that target p(x_0) exp(lambda r(x_0)).

    Attributes:
        lmbda: strength of the tilt; None only with a tempering that finds its own, which then has no upper limit.
        potential: how rewards along the way become weights.
        tempering: lambda along the way.
        resampling: how and when.

    Raises:
        ValueError: without a lambda, if the tempering needs one.
    """

    lmbda: float | None
    potential: Potential = field(default_factory=Difference)
    tempering: Tempering = field(default_factory=Constant)
    resampling: Resampling = field(default_factory=Resampling)

    def __post_init__(self) -> None:
        if self.lmbda is None and self.tempering.needs_lmbda:
            raise ValueError(f"The tempering '{self.tempering.name}' needs `lmbda`.")

    def start(self, num_populations: int, num_particles: int) -> State:
        """Equal weights and empty paths."""
        zeros = torch.zeros(num_populations, num_particles, dtype=torch.float64)
        nothing = zeros[:, 0].clone()
        return State(
            Weights.uniform(num_populations, num_particles), zeros, zeros + self.potential.initial, nothing, nothing
        )

    def step(
        self,
        state: State,
        rewards: Tensor,
        progress: float,
        num_offspring: int | None = None,
        generator: Generators = None,
    ) -> tuple[State, Event]:
        """Weigh the particles by the rewards of their x0 predictions and resample where called for.

        Args:
            rewards: (P, K), higher is better. +-inf is allowed: -inf kills a particle.
            progress: of the loop, the share of its denoiser calls made, in [0, 1].
            num_offspring: M, the number of particles alive afterwards, at least 1; None keeps K.
            generator: one, or one per population, for the resampling alone.

        Raises:
            ValueError: for rewards that are NaN or not of shape (P, K), or M below 1.
        """
        state = self.weigh(state, rewards, progress)
        ancestors, resampled = self.select(state, num_offspring, generator)
        event = Event(state.lmbda, state.weights, ancestors, resampled)
        return self.follow(state, ancestors, resampled), event

    def finish(self, state: State, rewards: Tensor) -> tuple[State, Event]:
        """Weigh the particles by the rewards (P, K) of their final images; nothing is resampled.

        Afterwards the weights are those of the final images: sum_k W[k] f(x_0[k]) estimates the mean of f under
        p(x_0) exp(lambda r(x_0)) / Z.

        Raises:
            ValueError: for rewards that are NaN or not of shape (P, K).
        """
        rewards = _checked(rewards, state)
        exact = self.potential.exact_terminal
        statistic = rewards if exact else self.potential.combine(state.statistic, rewards)
        lmbda = self._lmbda(state, statistic, 1.0, telescopes=True)
        state = self._weigh(state, statistic, lmbda, remainder(self._level(statistic, lmbda), state.path))
        P, K = state.path.shape
        return state, Event(lmbda, state.weights, torch.arange(K).expand(P, K), torch.zeros(P, dtype=torch.bool))

    def weigh(self, state: State, rewards: Tensor, progress: float) -> State:
        """The first part of `step`: the state with the event's weights."""
        statistic = self.potential.combine(state.statistic, _checked(rewards, state))
        lmbda = self._lmbda(state, statistic, progress, self.potential.telescopes)
        log_potential = self.potential.log_potential(self._level(statistic, lmbda), state.path)
        return self._weigh(state, statistic, lmbda, log_potential)

    def select(
        self, state: State, num_offspring: int | None = None, generator: Generators = None
    ) -> tuple[Tensor, Tensor]:
        """The second part: ancestors (P, M) and which populations (P,) were resampled."""
        M = state.path.shape[1] if num_offspring is None else num_offspring
        if M < 1:
            raise ValueError(f"Expected at least one offspring, but got {M}.")
        return self.resampling(state.weights, M, generator)

    def follow(self, state: State, ancestors: Tensor, resampled: Tensor) -> State:
        """The third part: the state of the particles that continue `ancestors` (P, M), with equal weights in the
        populations `resampled` (P,)."""
        return state._replace(
            weights=state.weights.follow(ancestors, resampled),
            path=state.path.gather(1, ancestors),
            statistic=state.statistic.gather(1, ancestors),
        )

    def _weigh(self, state: State, statistic: Tensor, lmbda: Tensor, log_potential: Tensor) -> State:
        weights, applied, log_mean, dead = state.weights.add(log_potential)
        if dead.any():
            warnings.warn(
                f"Every particle of population {dead.nonzero().flatten().tolist()} has a weight of zero; "
                "it goes on with uniform weights.",
                stacklevel=4,
            )
        return State(
            weights,
            add(state.path, applied).masked_fill(dead[:, None], 0.0),
            statistic.masked_fill(dead[:, None], self.potential.initial),
            lmbda,
            state.log_normalizer + log_mean,
        )

    def _lmbda(self, state: State, statistic: Tensor, progress: float, telescopes: bool) -> Tensor:
        # What is the same under every lambda is computed once: infinite rewards, and what the paths have been given.
        infinite, decide = statistic.isinf(), self.tempering.infinities_decide(self.lmbda)
        decided = torch.where(infinite, statistic, 0.0) if decide else torch.zeros_like(statistic)
        base = add(state.weights.log, remainder(decided, state.path) if telescopes else decided)
        slope = torch.where(infinite, 0.0, statistic)

        def log_weights_at(value: Tensor) -> Tensor:
            return base + value[:, None] * slope

        lowest = state.lmbda if telescopes else torch.zeros_like(state.lmbda)
        return self.tempering.lmbda(
            Situation(progress, self.lmbda, statistic, state.weights.alive, lowest, log_weights_at)
        )

    def _level(self, statistic: Tensor, lmbda: Tensor) -> Tensor:
        level = tilt(statistic, lmbda)
        if self.tempering.infinities_decide(self.lmbda):
            level = torch.where(statistic.isinf(), statistic, level)
        return level


def _checked(rewards: Tensor, state: State) -> Tensor:
    rewards = rewards.detach().to("cpu", torch.float64)
    if rewards.shape != state.path.shape:
        raise ValueError(f"Expected rewards of shape {tuple(state.path.shape)}, but got {tuple(rewards.shape)}.")
    if rewards.isnan().any():
        raise ValueError("Expected rewards without NaN.")
    return rewards

"""Markov chains by re-noising: a finished image is noised, denoised again, and accepted by Metropolis' rule."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..smc import integer, real
from ..smc.potentials import tilt
from .base import Look, Plan, RewardFacts, Search, Start
from .renoising import Renoising, RenoisingSearch


@dataclass(frozen=True)
class Metropolis(Renoising):
    """Each particle is a Markov chain. A move brings its x0 back to an earlier noise level by the forward process and
    denoises it again; it is accepted with probability min(1, exp(lambda (r' - r))).

    "Noise, then denoise" is reversible for p(x0) where the denoising samples from p(x0 | x_t), which needs noise in the
    sampler (eta 1) and judging at the end of the loop, where the x0 prediction is the image. The acceptance ratio is
    then the tilt's alone, and a move leaves p(x0) exp(lambda r(x0)) invariant.

    A move costs the denoiser rows of `back` of the loop.

    The settings of every `Strategy` are there too.

    Attributes:
        at: when x0 predictions are judged: a share of the loop in (0, 1], or a step.
        back: how many steps are taken again: a share of the loop in (0, 1), or a number.
        lmbda: strength of the tilt, at least 0; None takes the reward's `default_lmbda`.
        moves: at least 1.
    """

    lmbda: float | None = None
    moves: int = 4
    at: float | int = field(default=1.0, kw_only=True)
    back: float | int = field(default=0.5, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(
            lmbda=real("lmbda", self.lmbda, 0.0, optional=True),
            moves=integer("moves", self.moves, 1),
        )

    @property
    def rounds(self) -> int:
        return self.moves

    def start(self, start: Start) -> Search:
        return _Metropolis(self, start)

    def check(self, reward: RewardFacts) -> None:
        super().check(reward)
        if self.lmbda is None and reward.default_lmbda is None:
            raise ValueError(f"Reward '{reward.name}' has no `default_lmbda`. Set `lmbda` in the settings.")


class _Metropolis(RenoisingSearch):
    def __init__(self, settings: Metropolis, start: Start) -> None:
        super().__init__(settings, start)
        lmbda = start.reward.default_lmbda if settings.lmbda is None else settings.lmbda
        assert lmbda is not None
        self.lmbda, self.left, self.generators = lmbda, settings.moves, start.generators
        self.rewards = torch.empty(0)
        """(P, K) of the chains' states, which are remembered."""

    def step(self, look: Look) -> Plan:
        if not len(self.rewards):
            self.rewards, states = look.rewards, look.everyone
        else:
            uniform = torch.stack(
                [torch.rand(look.rewards.shape[1], generator=g, dtype=torch.float64) for g in self.generators]
            )
            lmbda = torch.full((len(uniform),), self.lmbda, dtype=torch.float64)
            accepted = uniform.log() < tilt(look.rewards, lmbda) - tilt(self.rewards, lmbda)
            self.rewards = torch.where(accepted, look.rewards, self.rewards)
            states = torch.where(accepted, look.everyone, look.everyone + look.rewards.shape[1])
        if not self.left:
            self.over = True
            return Plan(states)
        self.left -= 1
        return Plan(states, remember=states, resume=self.earlier)

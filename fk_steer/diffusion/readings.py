"""What latent rewards are given to read in the course of a run."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..rewards.latent import Latents
from .particles import Particles
from .solver import Solver


class Readings:
    """Makes `Latents` of the live rows of a batch.

    Args:
        solver: knows the levels of the noise.
        particles: know which texts belong to the rows.
    """

    def __init__(self, solver: Solver, particles: Particles) -> None:
        self.solver, self.particles = solver, particles
        self._encoded: tuple[Tensor | None, ...] = ()

    def remember(self, encoded: Any) -> None:
        """Keep what the pipeline's `encode_prompt` returned, where that is a tensor with a row per particle."""
        parts = encoded if isinstance(encoded, (tuple, list)) else (encoded,)
        rows = self.particles.rows.total
        self._encoded = tuple(one if isinstance(one, Tensor) and len(one) == rows else None for one in parts)

    def noisy(self, sample: Tensor, x0: Tensor, index: int, positions: Tensor) -> Latents:
        """Of the samples (L, ...) of the live rows at a step, and the x0 predictions made of them.

        Args:
            index: of the step.
            positions: (M,) among the live rows, on the CPU.
        """
        alpha, sigma = self.solver.levels(index)
        own, timestep = positions.to(x0.device), self.solver.timesteps[index]
        return Latents(sample[own], x0[own], float(alpha), float(sigma), timestep, self._embeddings(positions))

    def clean(self, latents: Tensor, positions: Tensor) -> Latents:
        """Of the final latents (L, ...) of the live rows."""
        own = latents[positions.to(latents.device)]
        return Latents(own, own.float(), 1.0, 0.0, None, self._embeddings(positions))

    def _embeddings(self, positions: Tensor) -> tuple[Tensor | None, ...]:
        rows, origins = self.particles.rows.live[positions], self.particles.origins
        own = rows if origins is None else origins[rows]
        return tuple(None if one is None else one[own.to(one.device)] for one in self._encoded)

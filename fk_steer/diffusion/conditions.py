"""What particles are conditioned on, and must have in common if one is to continue another.

An image that is encoded for several particles is a draw from the autoencoder's posterior for each, from its own
generator. A row would then keep its draw when another particle moves into it. One draw for all particles of a
population, that of the first, leaves nothing behind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .components import call_names


def begins_with_image(pipe: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether the encoded image is where the particles begin, and not what they are conditioned on."""
    conditions = (arguments.get(name) for name in ("mask_image", "control_image"))
    return "strength" in call_names(pipe) and all(condition is None for condition in conditions)


class Conditions:
    """The draws of a call from the posteriors of encoded images, which all particles of a population have in common.

    What a particle's generator draws first, second, and so on is what that of the first particle drew there.
    """

    def __init__(self) -> None:
        self._population: dict[int, int] = {}
        self._generators: list[torch.Generator] = []  # kept, so that no other gets the identity of one
        self._count: Counter[int] = Counter()
        self._draws: dict[tuple[int, int], Tensor] = {}

    def begin(self, generators: Sequence[torch.Generator], populations: Sequence[int]) -> None:
        """The pipeline is about to be called with these generators, of particles of these populations."""
        self._generators += generators
        for generator, population in zip(generators, populations, strict=True):
            self._population[id(generator)] = population
            self._count[id(generator)] = 0

    def forget(self) -> None:
        """Nothing has been drawn yet."""
        self._draws.clear()

    def encode(self, inner: Any, *args: Any, **kwargs: Any) -> Any:
        """In place of an autoencoder's `encode`."""
        output = inner(*args, **kwargs)
        if hasattr(output, "latent_dist"):
            output.latent_dist = _Shared(output.latent_dist, self)
        return output

    def draw(self, posterior: Any, generator: Any) -> Tensor:
        """A sample of a posterior (B, ...), each row from its own generator."""
        sample: Tensor = posterior.sample(generator=generator)
        generators = generator if isinstance(generator, (list, tuple)) else [generator] * len(sample)
        if len(generators) != len(sample) or any(id(one) not in self._population for one in generators):
            return sample
        rows = []
        for row, one in zip(sample, generators):
            key = self._population[id(one)], self._count[id(one)]
            self._count[id(one)] += 1
            rows.append(self._draws.setdefault(key, row))
        return torch.stack(rows)


class _Shared:
    """A posterior whose samples are shared."""

    def __init__(self, posterior: Any, conditions: Conditions) -> None:
        self._posterior, self._conditions = posterior, conditions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._posterior, name)

    def sample(self, generator: Any = None) -> Tensor:
        return self._conditions.draw(self._posterior, generator)

"""What particles are conditioned on, and must have in common if one is to continue another.

An image that is encoded for several particles is a draw from the autoencoder's posterior for each, from its own
generator. A row would then keep its draw when another particle moves into it. One draw for all particles of a
population, that of the first, leaves nothing behind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .components import call_names


def begins_with_image(pipe: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether the encoded image is where the particles begin, and not what they are conditioned on."""
    return "strength" in call_names(pipe) and arguments.get("mask_image") is None


class Conditions:
    """The draws of a call from the posteriors of encoded images, one for each population and image."""

    def __init__(self) -> None:
        self._population: dict[int, int] = {}
        self._generators: list[torch.Generator] = []  # kept, so that no other gets the identity of one
        self._draws: dict[tuple[int, str], Tensor] = {}

    def own(self, generators: Sequence[torch.Generator], populations: Sequence[int]) -> None:
        """These generators draw for particles of these populations."""
        self._generators += generators
        self._population |= {id(generator): p for generator, p in zip(generators, populations, strict=True)}

    def encode(self, inner: Any, *args: Any, **kwargs: Any) -> Any:
        """In place of an autoencoder's `encode`."""
        output = inner(*args, **kwargs)
        if hasattr(output, "latent_dist"):
            output.latent_dist = _Shared(output.latent_dist, self)
        return output

    def draw(self, posterior: Any, generator: Any) -> Tensor:
        """A sample of a posterior, in which rows of one population that encode the same image are the same."""
        sample: Tensor = posterior.sample(generator=generator)
        generators = generator if isinstance(generator, (list, tuple)) else [generator] * len(sample)
        owners = [self._population.get(id(one)) for one in generators]
        if len(owners) != len(sample) or any(owner is None for owner in owners):
            return sample
        rows = []
        for row, parameters, owner in zip(sample, posterior.parameters, owners):
            assert owner is not None
            rows.append(self._draws.setdefault((owner, _digest(parameters)), row))
        return torch.stack(rows)


class _Shared:
    """A posterior whose samples are shared."""

    def __init__(self, posterior: Any, conditions: Conditions) -> None:
        self._posterior, self._conditions = posterior, conditions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._posterior, name)

    def sample(self, generator: Any = None) -> Tensor:
        return self._conditions.draw(self._posterior, generator)


def _digest(values: Tensor) -> str:
    content = values.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(content).hexdigest()

"""What particles are conditioned on, and must have in common if one is to continue another.

An image that is encoded for several particles is a draw from the autoencoder's posterior for each, from its own
generator; so is the noise that is added to a small image that is to be enlarged. A row would keep its draw when another
particle moves into it. One draw for all particles of a population, that of the first, leaves nothing behind. The noise
that a particle began with, which is added again and again to what a mask keeps of an image, goes where it goes.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .components import call_names


def begins_with_image(pipe: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether the encoded image is where the particles begin, and not what they are conditioned on."""
    names, given = call_names(pipe), {name for name, value in arguments.items() if value is not None}
    # `strength` is that of conditions where these have places of their own in a video.
    return "strength" in names and not (
        {"conditions", "frame_index"} & names or {"mask_image", "control_image"} & given
    )


class Conditions:
    """The draws of a call from the posteriors of encoded images, which all particles of a population have in common.

    What a particle's generator draws first, second, and so on is what that of the first particle drew there.
    """

    def __init__(self) -> None:
        self._population: dict[int, int] = {}
        self._generators: list[torch.Generator] = []  # kept, so that no other gets the identity of one
        self._count: Counter[int] = Counter()
        self._again = False
        self._draws: dict[tuple[int, int], Tensor] = {}
        self._populations: list[int] = []
        self._num_noises = 0
        self._noises: dict[tuple[int, int], Tensor] = {}

    def begin(self, generators: Sequence[torch.Generator], populations: Sequence[int], again: bool = False) -> None:
        """The pipeline is about to be called with these generators, of particles of these populations.

        Args:
            again: whether it has been called before for all particles, so that all draws are known: one that was not
                made for a population is that of the first, made for all.
        """
        self._again = again
        self._generators += generators
        self._populations, self._num_noises = list(populations), 0
        for generator, population in zip(generators, populations, strict=True):
            self._population[id(generator)] = population
            self._count[id(generator)] = 0

    def forget(self) -> None:
        """Nothing has been drawn yet."""
        self._draws.clear()
        self._noises.clear()

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
        for row, one in zip(sample, generators):
            key = self._population[id(one)], self._count[id(one)]
            self._count[id(one)] += 1
            if self._again and key not in self._draws:
                key = min((known for known in self._draws if known[1] == key[1]), default=key)
            if key in self._draws:
                row.copy_(self._draws[key])  # in place, for sums depend on the order in memory
            else:
                self._draws[key] = row.clone()
        return sample

    def add_noise(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In place of the `add_noise` of a scheduler other than that of the loop."""

        def shared(noise: Tensor) -> Tensor:
            if len(noise) != len(self._populations):
                return noise
            number, self._num_noises = self._num_noises, self._num_noises + 1
            rows = zip(self._populations, noise)
            return torch.stack([self._noises.setdefault((population, number), row) for population, row in rows])

        return _with_noise(inner, shared, args, kwargs)


class InitialNoise:
    """The noise with which the rows of a loop began, which a pipeline may add again in every step."""

    def __init__(self) -> None:
        self._seen: list[Tensor] = []

    def add(
        self, inner: Callable[..., Any], step: int, origins: Tensor | None, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """In place of a scheduler's `add_noise` or `scale_noise`.

        Args:
            step: the last that was taken; -1 for none.
            origins: (B,) the rows with which the particles began that are in the rows now; None for each its own.
        """

        def followed(noise: Tensor) -> Tensor:
            if step <= 0:  # what comes up later is made of the present samples
                self._seen.append(noise)
            if origins is None or len(noise) != len(origins) or not any(noise is one for one in self._seen):
                return noise
            return noise[origins.to(noise.device)]

        return _with_noise(inner, followed, args, kwargs)


def _with_noise(
    inner: Callable[..., Any], change: Callable[[Tensor], Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Call a method with a changed argument `noise`."""
    names = list(inspect.signature(inner).parameters)
    changed = [change(value) if name == "noise" else value for name, value in zip(names, args)]
    others = {name: change(value) if name == "noise" else value for name, value in kwargs.items()}
    return inner(*changed, *args[len(changed) :], **others)


class _Shared:
    """A posterior whose samples are shared."""

    def __init__(self, posterior: Any, conditions: Conditions) -> None:
        self._posterior, self._conditions = posterior, conditions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._posterior, name)

    def sample(self, generator: Any = None) -> Tensor:
        return self._conditions.draw(self._posterior, generator)

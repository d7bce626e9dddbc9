"""Randomness: every particle has a generator of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


Generators = torch.Generator | Sequence[torch.Generator] | None


def particle_generators(
    generator: Generators, seed: int | None, prompts: Sequence[Any], per_prompt: int, num_particles: int
) -> tuple[list[torch.Generator], list[torch.Generator]]:
    """One generator per row for the noise, one per population for what a search draws.

    Seeds derive from one number per prompt (drawn from the user's generator, or `seed`) and from the position of the
    population and particle within the prompt, so that neither depends on which other prompts share the batch. A prompt
    that is there twice gets other noise the second time: its populations are counted on from those of the first. Given
    one generator per population, each draws its own number; given one per particle, those are the ones used, and the
    search's are seeded by the `initial_seed()` of a population's first.

    Args:
        prompts: one value per prompt, equal for equal prompts.

    Raises:
        ValueError: for any other number of generators.
    """
    num_prompts = len(prompts)
    populations = num_prompts * per_prompt
    device = torch.device("cpu")
    if isinstance(generator, Sequence):
        generators = list(generator)
        if len(generators) == populations * num_particles:
            firsts = generators[::num_particles]
            return generators, [_child(first.initial_seed(), 0, device) for first in firsts]
        if len(generators) == populations:
            num_prompts, per_prompt = populations, 1
        if len(generators) != num_prompts:
            raise ValueError(
                f"Expected one generator, one per prompt ({num_prompts}), one per image asked for ({populations}) or "
                f"one per particle ({populations * num_particles}), but got {len(generators)}."
            )
        device, seeds = generators[0].device, [draw_seed(one) for one in generators]
    elif generator is not None:
        device, seeds = generator.device, [draw_seed(generator)] * num_prompts
    else:
        seeds = [draw_seed() if seed is None else seed] * num_prompts
    rows, resampling = [], []
    seen: Counter[tuple[int, Any]] = Counter()
    for position, prompt_seed in enumerate(seeds):
        key = prompt_seed, position if isinstance(generator, Sequence) else prompts[position]
        first = seen[key]
        seen[key] += per_prompt
        for image in range(first, first + per_prompt):
            resampling.append(_child(prompt_seed, image, torch.device("cpu")))
            rows += [_child(prompt_seed, image, device, particle) for particle in range(num_particles)]
    return rows, resampling


def fresh_generators(generators: list[torch.Generator]) -> list[torch.Generator]:
    """One new generator for each, seeded from it."""
    return [torch.Generator().manual_seed(draw_seed(generator)) for generator in generators]


def draw_seed(generator: torch.Generator | None = None) -> int:
    """A number drawn from `generator`, or from torch's own."""
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**63 - 1, (), generator=generator, device=device))


def _child(seed: int, image: int, device: torch.device, *particle: int) -> torch.Generator:
    sequence = np.random.SeedSequence(seed, spawn_key=(image, *particle))
    return torch.Generator(device).manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))

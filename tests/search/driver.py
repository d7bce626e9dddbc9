"""Searches on the one-dimensional diffusion, whose states are numbers: what the engine does to a pipeline's loop, in a
page.

The loop has one step more than the diffusion: in the last one the state is clean, its x0 prediction is itself, and
nothing moves, as in a sampler whose last step has no noise. Rows that sleep are not computed: their states become NaN
and their rewards are enormous, so that whoever looks at either is found out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from diffusion_1d import Diffusion1D
from torch import Tensor

from fk_steer.search import Look, Outcome, Plan, RewardFacts, Search, Start, Strategy, place


@dataclass
class Seen:
    """An event: what was seen, what was said, and the states (P, K) before it and (P, M) after it."""

    look: Look
    plan: Plan
    before: Tensor
    after: Tensor
    ancestors: Tensor
    slots: Tensor


@dataclass
class Run:
    """A loop that has ended.

    Attributes:
        x: (P, K) the final states, in the order of `slots`.
        visited: the steps, in the order in which the loop came to them.
        rows: of the denoiser, those that sleep not counted.
        path: for each visit the states (P, num_slots) of all slots before the step.
    """

    search: Search
    x: Tensor = field(default_factory=lambda: torch.empty(0))
    slots: Tensor = field(default_factory=lambda: torch.empty(0))
    outcome: Outcome | None = None
    visited: list[int] = field(default_factory=list)
    rows: int = 0
    seen: list[Seen] = field(default_factory=list)
    path: list[Tensor] = field(default_factory=list)


def num_steps(model: Diffusion1D) -> int:
    return model.num_steps + 1


def start(strategy: Strategy, model: Diffusion1D, num_populations: int, **facts: object) -> Search:
    """The search of a run, with generators of its own for each population."""
    generators = [torch.Generator().manual_seed(1000 + p) for p in range(num_populations)]
    return strategy.start(Start(num_populations, num_steps(model), generators, RewardFacts(**facts)))  # type: ignore[arg-type]


def drive(
    search: Search,
    model: Diffusion1D,
    shape: tuple[int, int],
    *,
    x: Tensor | None = None,
    first: int = 0,
    reward: Callable[[Tensor], Tensor] = lambda x0: x0,
    noisy: Callable[[int], bool] = lambda step: True,
    seed: int = 0,
) -> Run:
    """Run the loop.

    Args:
        shape: P populations of as many slots.
        x: (P, num_slots) what to begin with, at step `first`; None for samples of noise.
        noisy: in which steps the sampler adds noise.
    """
    generator = torch.Generator().manual_seed(seed)
    P, num_slots = shape
    states = model.initial(shape, generator) if x is None else x.clone()
    slots = torch.arange(num_slots).expand(P, num_slots)
    memory: dict[int, Tensor] = {}
    quiet, stopped = torch.zeros(shape, dtype=torch.bool), torch.zeros(P, dtype=torch.bool)
    asleep = torch.zeros(P, dtype=torch.bool)
    run, index = Run(search), first
    while index < num_steps(model):
        run.visited.append(index)
        run.path.append(states.clone())
        run.rows += sum(len(set(row)) for row, sleeps in zip(slots.tolist(), asleep.tolist()) if not sleeps)
        present = states.gather(1, slots)
        if index in search.events:
            scored = index not in search.unscored
            rewards = reward(model.predict_x0(present, index)) if scored else torch.zeros(present.shape).double()
            rewards = torch.where(asleep[:, None], 1e9, rewards)
            look = Look(index, num_steps(model), slots, rewards, noisy(index) or noisy(index + 1))
            plan = search.step(look)
            slots, order = place(plan.ancestors, slots, num_slots)
            ancestors = plan.ancestors.gather(1, order)
            if plan.stopped is not None:
                stopped = plan.stopped
                slots = torch.where(stopped[:, None], slots[:, :1], slots)
            search.adopt(ancestors)
            remembered = memory.get(plan.resume if plan.by == "memory" and plan.resume is not None else index)
            known = present if remembered is None else torch.cat([present, remembered], 1)
            if plan.remember is not None:
                memory[index] = known.gather(1, plan.remember)
            before, present = present, known.gather(1, ancestors)
            quiet = torch.zeros(slots.shape, dtype=torch.bool) if plan.quiet is None else plan.quiet.gather(1, order)
            asleep = torch.zeros(P, dtype=torch.bool) if plan.asleep is None else plan.asleep
            run.seen.append(Seen(look, plan, before, present, ancestors, slots))
            if plan.resume is not None:
                if plan.by == "renoise":
                    present = renoise(model, model.predict_x0(present, index), plan.resume, generator)
                elif plan.by == "leap":
                    assert plan.resume > index
                    present = leap(model, present, index, plan.resume)
                states = _written(present, slots, num_slots, asleep)
                index = plan.resume
                continue
        if index < model.num_steps:
            still = leap(model, present, index, index + 1)
            moved = model.move(present, index, generator) if noisy(index) else still
            present = torch.where(quiet | stopped[:, None], still, moved)
        states = _written(present, slots, num_slots, asleep)
        index += 1
    run.x, run.slots = states.gather(1, slots), slots
    run.outcome = search.finish(reward(run.x))
    return run


def renoise(model: Diffusion1D, x0: Tensor, step: int, generator: torch.Generator) -> Tensor:
    a = model.alphas[step]
    return a.sqrt() * x0 + (1 - a).sqrt() * torch.randn(x0.shape, generator=generator, dtype=torch.float64)


def leap(model: Diffusion1D, x: Tensor, step: int, target: int) -> Tensor:
    """DDIM without noise, in one step."""
    a, b = model.alphas[step], model.alphas[target]
    x0 = model.predict_x0(x, step)
    return b.sqrt() * x0 + (1 - b).sqrt() * (x - a.sqrt() * x0) / (1 - a).sqrt()


def _written(present: Tensor, slots: Tensor, num_slots: int, asleep: Tensor) -> Tensor:
    states = torch.full((len(slots), num_slots), torch.nan, dtype=torch.float64)
    return states.scatter(1, slots, present).masked_fill(asleep[:, None], torch.nan)

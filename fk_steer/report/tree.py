"""The family tree of a population: who was seen when, and whom each continues."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from .table import Seen, ancestors_of, particles_of
from .trace import Trace, TraceEvent


class Fate(str, Enum):
    """What became of a particle."""

    WINNER = "winner"
    """It is the best particle or an ancestor of it."""
    ALIVE = "alive"
    """It is, or has a descendant, in the last event of its pass."""
    PRUNED = "pruned"
    """Neither."""


@dataclass(frozen=True)
class Node:
    """A particle as it was seen at an event.

    Attributes:
        column: index into `Tree.columns` of the event.
        slot: the row of the population that it lived in.
        rank: among the particles of the event by reward, from 1.
        reward: may be infinite or NaN.
        scores: what that was made from, by name.
        details: what those were made of, by name, see `TraceEvent.details`.
        weight: its share of the weights, in [0, 1]; None where the search does not weigh the particles.
        parent: index into `Tree.nodes` of the particle that it continues; None for those that a pass begins with.
        children: how many particles continue it directly.
        fate: what became of it.
        picture: of its x0 prediction, a 'data:' URL; None where none is kept.
    """

    column: int
    slot: int
    rank: int
    reward: float
    scores: dict[str, float]
    details: dict[str, float]
    weight: float | None
    parent: int | None
    children: int
    fate: Fate
    picture: str | None


@dataclass(frozen=True)
class Column:
    """An event.

    Attributes:
        run: the pass over the population that it belongs to, from 0.
        step, final: of the event, see `TraceEvent`.
        num_steps: of the pass.
        size: particles scored.
        lmbda: in force; None for none.
        ess: effective sample size, from 1 to `size`; None where the search does not weigh the particles.
        resampled: whether copies of some particles take the place of others.
        resume: the step that the search went on with instead of the next; None for the next.
        stopped: whether the reward asked for was reached, and the best particle goes on alone.
        best, mean: of the rewards that are finite; None if there are none.
    """

    run: int
    step: int
    final: bool
    num_steps: int
    size: int
    lmbda: float | None
    ess: float | None
    resampled: bool
    resume: int | None
    stopped: bool
    best: float | None
    mean: float | None


@dataclass(frozen=True)
class Tree:
    """All passes over a population.

    Attributes:
        prompt, reward: as in the trace.
        columns: the events in the order in which they happened.
        nodes: column by column.
        winner: index of the best particle: the first of those returned, or before the end the best of the last event;
            None for a tree without nodes.
        finished: whether particles were returned.
    """

    prompt: str
    reward: str
    columns: list[Column] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    winner: int | None = None
    finished: bool = False

    @property
    def num_runs(self) -> int:
        return self.columns[-1].run + 1 if self.columns else 0

    def lineage(self, node: int | None) -> list[int]:
        """A node and its ancestors, the first one last."""
        found = []
        while node is not None:
            found.append(node)
            node = self.nodes[node].parent
        return found


def family_tree(trace: Trace, population: int = 0) -> Tree:
    """The family tree of a population, as far as its trace goes.

    Args:
        population: index into `trace.prompts`.

    Raises:
        IndexError: for a population that is not there.
    """
    if not 0 <= population < len(trace.prompts):
        raise IndexError(f"There is no population {population}: the trace has {len(trace.prompts)}.")
    columns: list[Column] = []
    found: list[dict[str, Any]] = []
    parents: dict[int, int] = {}
    places: list[dict[Seen, int]] = []
    last: list[int] = []
    for run, (one, own) in enumerate(trace.passes(population)):
        numbers: dict[Seen, int] = {}
        ancestors = ancestors_of(one, own)
        for index, event in enumerate(one.events):
            particles = particles_of(event, own)
            rewards = [event.rewards[own][place] for place, _, _ in particles]
            ranking = sorted(map(_order, rewards))
            for reward, (place, slot, weight) in zip(rewards, particles):
                numbers[index, slot] = len(found)
                if (index, slot) in ancestors:
                    parents[len(found)] = numbers[ancestors[index, slot]]
                found.append(
                    {
                        "column": len(columns),
                        "slot": slot,
                        "rank": 1 + len(ranking) - bisect_right(ranking, _order(reward)),
                        "reward": reward,
                        "scores": {name: values[own][place] for name, values in event.scores.items()},
                        "details": _details(event, own, place),
                        "weight": weight,
                        "picture": event.predictions[own][place] if event.predictions else None,
                    }
                )
            columns.append(_column(event, own, rewards, run, one.num_steps))
        places.append(numbers)
        last += [number for (index, _), number in numbers.items() if index == len(one.events) - 1]

    returned = trace.returned[population] if trace.returned else []
    winner: int | None = None
    if returned:
        number, slot = returned[0]
        winner = places[number][len(trace.passes(population)[number][0].events) - 1, slot]
    elif found:
        leaders = [index for index, entry in enumerate(found) if entry["column"] == len(columns) - 1]
        winner = max(leaders, key=lambda index: _order(found[index]["reward"]))

    def lineages(of: Iterable[int | None]) -> set[int]:
        reached: set[int] = set()
        for node in of:
            while node is not None and node not in reached:
                reached.add(node)
                node = parents.get(node)
        return reached

    lit, alive, children = lineages([winner]), lineages(last), Counter(parents.values())
    nodes = []
    for index, entry in enumerate(found):
        fate = Fate.WINNER if index in lit else Fate.ALIVE if index in alive else Fate.PRUNED
        nodes.append(Node(**entry, parent=parents.get(index), children=children[index], fate=fate))
    return Tree(trace.prompts[population], trace.reward, columns, nodes, winner, bool(returned))


def _column(event: TraceEvent, own: int, rewards: list[float], run: int, num_steps: int) -> Column:
    finite, ess = [reward for reward in rewards if math.isfinite(reward)], _known(event.ess[own])
    return Column(
        run=run,
        step=event.step,
        final=event.final,
        num_steps=num_steps,
        size=len(rewards),
        lmbda=_known(event.lmbda[own]),
        ess=None if ess is None else min(ess, float(len(rewards))),
        resampled=event.resampled[own],
        resume=event.resume,
        stopped=event.stopped[own],
        best=max(finite, default=None),
        mean=sum(finite) / len(finite) if finite else None,
    )


def _details(event: TraceEvent, own: int, place: int) -> dict[str, float]:
    """What all parts say of a particle; by their names too where several say something."""
    several = len(event.details) > 1
    return {
        f"{part}: {name}" if several else name: value
        for part, said in event.details.items()
        for name, value in said[own][place].items()
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _order(reward: float) -> tuple[bool, float]:
    return (False, 0.0) if math.isnan(reward) else (True, reward)

"""The family tree of a population: who was seen when, and whom each continues."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from .table import Seen, ancestors_of
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
    found: list[tuple[int, int, float, TraceEvent, int, int]] = []
    parents: dict[int, int] = {}
    places: list[dict[Seen, int]] = []
    last: list[int] = []
    for run, (one, own) in enumerate(trace.passes(population)):
        numbers: dict[Seen, int] = {}
        ancestors = ancestors_of(one, own)
        for index, event in enumerate(one.events):
            for place, slot in enumerate(event.slots_before[own]):
                numbers[index, slot] = len(found)
                if (index, slot) in ancestors:
                    parents[len(found)] = numbers[ancestors[index, slot]]
                found.append((len(columns), slot, event.rewards[own][place], event, own, place))
            columns.append(_column(event, own, run, one.num_steps))
        places.append(numbers)
        if one.events:
            last += [numbers[len(one.events) - 1, slot] for slot in one.events[-1].slots_before[own]]

    returned = trace.returned[population] if trace.returned else []
    winner: int | None = None
    if returned:
        number, slot = returned[0]
        winner = places[number][len(trace.passes(population)[number][0].events) - 1, slot]
    elif found:
        leaders = [index for index, entry in enumerate(found) if entry[0] == len(columns) - 1]
        winner = max(leaders, key=lambda index: _order(found[index][2]))

    def lineages(of: Iterable[int | None]) -> set[int]:
        reached: set[int] = set()
        for node in of:
            while node is not None and node not in reached:
                reached.add(node)
                node = parents.get(node)
        return reached

    lit, alive, children = lineages([winner]), lineages(last), Counter(parents.values())
    nodes = []
    for index, (column, slot, reward, event, own, place) in enumerate(found):
        fate = Fate.WINNER if index in lit else Fate.ALIVE if index in alive else Fate.PRUNED
        nodes.append(
            Node(
                column=column,
                slot=slot,
                rank=1 + sum(_order(other) > _order(reward) for other in event.rewards[own]),
                reward=reward,
                scores={name: values[own][place] for name, values in event.scores.items()},
                weight=None if math.isnan(event.ess[own]) else math.exp(event.log_weights[own][place]),
                parent=parents.get(index),
                children=children[index],
                fate=fate,
                picture=event.predictions[own][place] if event.predictions else None,
            )
        )
    return Tree(trace.prompts[population], trace.reward, columns, nodes, winner, bool(returned))


def _column(event: TraceEvent, own: int, run: int, num_steps: int) -> Column:
    rewards = [reward for reward in event.rewards[own] if math.isfinite(reward)]
    return Column(
        run=run,
        step=event.step,
        final=event.final,
        num_steps=num_steps,
        size=len(event.rewards[own]),
        lmbda=_known(event.lmbda[own]),
        ess=_known(event.ess[own]),
        resampled=event.resampled[own],
        resume=event.resume,
        best=max(rewards, default=None),
        mean=sum(rewards) / len(rewards) if rewards else None,
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _order(reward: float) -> tuple[bool, float]:
    return (False, 0.0) if math.isnan(reward) else (True, reward)

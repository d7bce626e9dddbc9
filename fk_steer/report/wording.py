"""Numbers, and what there is to say of a family tree, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping

from .tree import Column, Fate, Tree


def number(value: float | None) -> str:
    """A reward or another quantity in a few digits."""
    if value is None or math.isnan(value):
        return "unknown" if value is None else "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"


def short(value: float) -> str:
    """A number in three digits."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def told_of_node(tree: Tree, index: int) -> str:
    """A node in words."""
    node = tree.nodes[index]
    column = tree.columns[node.column]
    run = f"pass {column.run + 1}, " if tree.num_runs > 1 else ""
    what = "final image" if column.final else f"step {column.step} of {column.num_steps}"
    parts = [f"{run}{what}, particle {node.slot}", f"reward {number(node.reward)} ({node.rank} of {column.size})"]
    if len(node.scores) > 1:
        parts.append(", ".join(f"{name} {number(score)}" for name, score in node.scores.items()))
    parts += told_of_details(node.details)
    if node.weight is not None:
        parts.append(f"weight {100 * node.weight:.0f}%")
    if node.parent is not None and tree.nodes[node.parent].slot != node.slot:
        parts.append(f"continues particle {tree.nodes[node.parent].slot}")
    if node.children > 1:
        parts.append(f"goes on as {node.children} particles")
    if index == tree.winner:
        parts.append("the best one" if tree.finished else "in the lead")
    elif node.fate is Fate.WINNER:
        parts.append("ancestor of the best one" if tree.finished else "ancestor of the leader")
    elif node.fate is Fate.PRUNED:
        parts.append("pruned" if node.children == 0 else "without descendants at the end")
    text = "; ".join(parts)
    return text[0].upper() + text[1:]


MOST_DETAILS = 12
"""Named of a node."""


def told_of_details(details: Mapping[str, float]) -> list[str]:
    """What a reward was made of, the lowest numbers where there are many."""
    shown = details if len(details) <= MOST_DETAILS else sorted(details, key=details.__getitem__)[:MOST_DETAILS]
    # What is told is split at semicolons.
    parts = [f"{name.replace('; ', ', ')} {number(details[name])}" for name in details if name in shown]
    return [*parts, f"{len(details) - len(parts)} more, all higher"] if len(parts) < len(details) else parts


def told_of_event(column: Column, index: int, count: int) -> str:
    """An event in words."""
    what = "final images" if column.final else f"step {column.step} of {column.num_steps}"
    parts = [f"event {index + 1} of {count}: {what}"]
    if column.best is not None:
        parts.append(f"best reward {number(column.best)}")
    if column.ess is not None:
        parts.append(f"ESS {column.ess:.1f} of {column.size}")
    if column.lmbda is not None:
        parts.append(f"lambda {short(column.lmbda)}")
    return ", ".join(parts)


def summary(tree: Tree) -> str:
    """The tree in a sentence, for those who do not see it."""
    first, last, nodes = tree.columns[0], tree.columns[-1], tree.nodes
    passes = f" in {tree.num_runs} passes" if tree.num_runs > 1 else ""
    events = f"{len(tree.columns)} event{'s'[: len(tree.columns) != 1]}"
    text = f"{first.size} particle{'s'[: first.size != 1]} over {events}{passes}."
    if tree.winner is not None:
        lineage = tree.lineage(tree.winner)
        began, best = nodes[lineage[-1]], nodes[tree.winner]
        slots = [nodes[index].slot for index in reversed(lineage)]
        changes = [slot for slot, before in zip(slots, [None, *slots]) if slot != before]
        text += f" The {'best' if tree.finished else 'leading'} one, with reward {number(best.reward)},"
        text += f" descends from particle {began.slot}" if len(lineage) > 1 else f" is particle {best.slot}"
        text += f" by way of {', '.join(map(str, changes[1:]))}." if len(changes) > 1 else "."
    pruned = sum(node.fate is Fate.PRUNED for node in nodes)
    if pruned:
        text += f" {pruned} of {len(nodes)} predictions have no descendants {'at the end' if tree.finished else 'now'}."
    if all(column.ess is None for column in tree.columns) and last.size > 1:
        text += " This search does not weigh its particles: there is no effective sample size."
    return text

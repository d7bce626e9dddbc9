"""Lineage plots."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from matplotlib.colors import Normalize
from matplotlib.figure import Figure


if TYPE_CHECKING:
    from .trace import Trace


def plot_lineages(trace: Trace, population: int = 0) -> Figure:
    """Who descends from whom in one population, and how its weights and rewards went.

    Top: one line per particle from event to event, coloured by the reward of its x0 prediction; the best final image's
    lineage is drawn wide and particles without descendants end in a cross. Middle: effective sample size as a fraction
    of the particles alive, filled markers where the population was resampled. Bottom: all rewards, and the best.

    Args:
        trace: of a finished run.
        population: index into `trace.prompts`.

    Raises:
        IndexError: for a population that is not there.
    """
    events = trace.events
    prompt = trace.prompts[population]
    rewards = [dict(zip(event.slots_before[population], event.rewards[population])) for event in events]
    finite = [value for by_slot in rewards for value in by_slot.values() if math.isfinite(value)] or [0.0]
    colour = Normalize(min(finite), max(finite))
    steps = [event.step for event in events]
    best = _best_lineage(trace, population)

    figure = Figure(figsize=(9, 7), layout="constrained")
    tree, ess, levels = figure.subplots(3, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1, 1.4]})
    before, origin = 0, {slot: slot for slot in rewards[0]}
    for index, event in enumerate(events):
        for slot, start in origin.items():
            tree.plot(
                [before, event.step],
                [start, slot],
                color="0.25" if best[index] == slot else "0.75",
                linewidth=2.5 if best[index] == slot else 1.0,
                zorder=1,
            )
        continued = set(event.parents[population])
        ends = [slot for slot in rewards[index] if slot not in continued]
        tree.plot([event.step] * len(ends), ends, "x", color="0.4", markersize=9, zorder=3)
        points = tree.scatter(
            [event.step] * len(rewards[index]),
            list(rewards[index]),
            c=list(rewards[index].values()),
            norm=colour,
            cmap="viridis",
            zorder=2,
        )
        before, origin = event.step, dict(zip(event.slots[population], event.parents[population]))
    tree.set(ylabel="particle", title=f"{trace.reward}: {prompt}")
    tree.invert_yaxis()
    tree.yaxis.get_major_locator().set_params(integer=True)
    figure.colorbar(points, ax=tree, label="reward")

    fractions = [event.ess[population] / len(event.slots_before[population]) for event in events]
    ess.plot(steps, fractions, color="0.4", marker="o", markerfacecolor="white")
    resampled = [index for index, event in enumerate(events) if event.resampled[population]]
    ess.plot([steps[i] for i in resampled], [fractions[i] for i in resampled], "o", color="0.2", label="resampled")
    ess.axhline(trace.steering["ess_threshold"], color="0.6", linestyle=":", label="threshold")
    ess.set(ylabel="ESS / particles", ylim=(0, 1.05))
    ess.legend(loc="upper left", fontsize="small")

    for step, by_slot in zip(steps, rewards):
        levels.plot([step] * len(by_slot), list(by_slot.values()), ".", color="0.6")
    levels.plot(steps, [max(by_slot.values()) for by_slot in rewards], color="0.2", label="best")
    levels.set(ylabel="reward", xlabel="denoising step")
    levels.legend(loc="upper left", fontsize="small")
    return figure


def _best_lineage(trace: Trace, population: int) -> list[int]:
    """The slot of the best final image's ancestor at each event."""
    last = trace.events[-1]
    slots, rewards = last.slots_before[population], last.rewards[population]
    slot = slots[rewards.index(max(rewards))]
    lineage = [slot]
    for event in reversed(trace.events[:-1]):
        slot = dict(zip(event.slots[population], event.parents[population]))[slot]
        lineage.append(slot)
    return lineage[::-1]

"""Lineage plots."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from .table import Seen, ancestors_of


if TYPE_CHECKING:
    from .trace import Trace


def plot_lineages(trace: Trace, population: int = 0) -> Figure:
    """Who descends from whom in one population, and how its weights and rewards went.

    Top: one line per particle from event to event, coloured by the reward of its x0 prediction; the best final image's
    lineage is drawn wide and particles without descendants end in a cross. Middle: effective sample size as a fraction
    of the particles alive, where they have weights, with filled markers where the population was resampled. Bottom: all
    rewards, and the best.

    Args:
        trace: of a finished run.
        population: index into `trace.prompts`.

    Raises:
        IndexError: for a population that is not there.
        ValueError: for a trace without events.
    """
    if not trace.events:
        raise ValueError("There is no lineage to plot: the trace has no events. Plot it when the run is finished.")
    events, prompt = trace.events, trace.prompts[population]
    rewards = [dict(zip(event.slots_before[population], event.rewards[population])) for event in events]
    finite = [value for by_slot in rewards for value in by_slot.values() if math.isfinite(value)] or [0.0]
    colour = Normalize(min(finite), max(finite))
    steps = [event.step for event in events]
    # A search that goes back sees the same step again: its events stand side by side.
    goes_back = any(later <= earlier for earlier, later in zip(steps, steps[1:]))
    places = list(range(1, len(events) + 1)) if goes_back else steps
    ancestors = ancestors_of(trace, population)
    best, continued = set(_best_lineage(trace, population)), set(ancestors.values())

    figure = Figure(figsize=(9, 7), layout="constrained")
    tree, ess, levels = figure.subplots(3, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1, 1.4]})
    for index, by_slot in enumerate(rewards):
        for slot in by_slot:
            before, start = ancestors.get((index, slot), (-1, slot))
            tree.plot(
                [places[before] if before >= 0 else 0, places[index]],
                [start, slot],
                color="0.25" if (index, slot) in best else "0.75",
                linewidth=2.5 if (index, slot) in best else 1.0,
                zorder=1,
            )
        ends = [slot for slot in by_slot if (index, slot) not in continued and index < len(events) - 1]
        tree.plot([places[index]] * len(ends), ends, "x", color="0.4", markersize=9, zorder=3)
        points = tree.scatter(
            [places[index]] * len(by_slot),
            list(by_slot),
            c=list(by_slot.values()),
            norm=colour,
            cmap="viridis",
            zorder=2,
        )
    tree.set(ylabel="particle", title=f"{trace.reward}: {prompt}")
    tree.invert_yaxis()
    tree.yaxis.get_major_locator().set_params(integer=True)
    figure.colorbar(points, ax=tree, label="reward")

    fractions = [event.ess[population] / len(event.slots_before[population]) for event in events]
    ess.plot(places, fractions, color="0.4", marker="o", markerfacecolor="white")
    resampled = [index for index, event in enumerate(events) if event.resampled[population]]
    ess.plot([places[i] for i in resampled], [fractions[i] for i in resampled], "o", color="0.2", label="resampled")
    threshold = trace.steering.get("resampling", {}).get("ess_threshold")
    if threshold is not None:
        ess.axhline(threshold, color="0.6", linestyle=":", label="threshold")
    ess.set(ylabel="ESS / particles", ylim=(0, 1.05))
    ess.legend(loc="upper left", fontsize="small")

    for place, by_slot in zip(places, rewards):
        levels.plot([place] * len(by_slot), list(by_slot.values()), ".", color="0.6")
    levels.plot(places, [max(by_slot.values()) for by_slot in rewards], color="0.2", label="best")
    levels.set(ylabel="reward", xlabel="denoising step")
    if goes_back:
        levels.set_xticks(places, [str(step) for step in steps])
    levels.legend(loc="upper left", fontsize="small")
    return figure


def _best_lineage(trace: Trace, population: int) -> list[Seen]:
    """The best final image's particle and its ancestors, the last one first."""
    last = trace.events[-1]
    slots, rewards = last.slots_before[population], last.rewards[population]
    ancestors = ancestors_of(trace, population)
    lineage = [(len(trace.events) - 1, slots[rewards.index(max(rewards))])]
    while lineage[-1] in ancestors:
        lineage.append(ancestors[lineage[-1]])
    return lineage

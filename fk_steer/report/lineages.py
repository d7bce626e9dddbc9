"""Lineage plots: the family tree of a population as lines and dots, for papers and notebooks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from llava_reward_guide.packages import require

from .tree import Fate, Tree, family_tree


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .trace import Trace


def plot_lineages(trace: Trace, population: int = 0) -> Figure:
    """Who descends from whom in one population, and how its weights and rewards went.

    Top: one line per particle from event to event, coloured by the reward of its x0 prediction; the lineage of the
    image returned first is drawn wide and particles without descendants end in a cross. Middle: effective sample size
    as a fraction of the particles alive, where they have weights, with filled markers where the population was
    resampled. Bottom: all rewards, and the best of each event. A search of several passes has them side by side.

    Args:
        trace: of a finished run.
        population: index into `trace.prompts`.

    Raises:
        IndexError: for a population that is not there.
        ValueError: for a trace without events.
        ImportError: without Matplotlib.
    """
    require("matplotlib")
    from matplotlib.figure import Figure

    if not trace.events:
        raise ValueError("There is no lineage to plot: the trace has no events. Plot it when the run is finished.")
    tree = family_tree(trace, population)
    steps = [column.step for column in tree.columns]
    # Later passes, and a search that goes back, see the same step again: their events stand side by side.
    in_order = tree.num_runs == 1 and all(later > earlier for earlier, later in zip(steps, steps[1:]))
    places = steps if in_order else list(range(1, len(steps) + 1))

    figure = Figure(figsize=(9, 7), layout="constrained")
    particles, ess, rewards = axes = figure.subplots(3, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1, 1.4]})
    _plot_particles(particles, tree, places)
    _plot_ess(ess, tree, places, trace.steering.get("resampling", {}).get("ess_threshold"))
    _plot_rewards(rewards, tree, places)
    rewards.set(ylabel="reward", xlabel="denoising step")
    if not in_order:
        rewards.set_xticks(places, [str(step) for step in steps])
    begin = [i for i in range(1, len(places)) if tree.columns[i].run != tree.columns[i - 1].run]
    for index in begin:
        for one in axes:
            one.axvline(places[index] - 0.5, color="0.85", linewidth=1.0, zorder=0)
    return figure


def _plot_particles(axes: Axes, tree: Tree, places: list[int]) -> None:
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    finite = [node.reward for node in tree.nodes if math.isfinite(node.reward)] or [0.0]
    for node in tree.nodes:
        here, winning = places[node.column], node.fate is Fate.WINNER
        if node.parent is not None:
            parent = tree.nodes[node.parent]
            start, slot = float(places[parent.column]), parent.slot
        else:
            # The noise that a pass begins with is half a column before its first event, or at step 0.
            start, slot = (0.0 if tree.columns[node.column].run == 0 else here - 0.5), node.slot
        axes.plot(
            [start, here],
            [slot, node.slot],
            color="0.25" if winning else "0.75",
            linewidth=2.5 if winning else 1.0,
            zorder=1,
        )
    last = {column.run: index for index, column in enumerate(tree.columns)}
    ends = [node for node in tree.nodes if not node.children and node.column not in last.values()]
    axes.plot(
        [places[node.column] for node in ends], [node.slot for node in ends], "x", color="0.4", markersize=9, zorder=3
    )
    points = axes.scatter(
        [places[node.column] for node in tree.nodes],
        [node.slot for node in tree.nodes],
        c=[node.reward for node in tree.nodes],
        norm=Normalize(min(finite), max(finite)),
        cmap="viridis",
        zorder=2,
    )
    axes.set(ylabel="particle", title=f"{tree.reward}: {tree.prompt}")
    axes.invert_yaxis()
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.figure.colorbar(points, ax=axes, label="reward")


def _plot_ess(axes: Axes, tree: Tree, places: list[int], threshold: float | None) -> None:
    fractions = [math.nan if column.ess is None else column.ess / column.size for column in tree.columns]
    axes.plot(places, fractions, color="0.4", marker="o", markerfacecolor="white")
    resampled = [index for index, column in enumerate(tree.columns) if column.resampled]
    axes.plot([places[i] for i in resampled], [fractions[i] for i in resampled], "o", color="0.2", label="resampled")
    if threshold is not None:
        axes.axhline(threshold, color="0.6", linestyle=":", label="threshold")
    axes.set(ylabel="ESS / particles", ylim=(0, 1.05))
    axes.legend(loc="upper left", fontsize="small")


def _plot_rewards(axes: Axes, tree: Tree, places: list[int]) -> None:
    axes.plot([places[node.column] for node in tree.nodes], [node.reward for node in tree.nodes], ".", color="0.6")
    best = [math.nan if column.best is None else column.best for column in tree.columns]
    axes.plot(places, best, color="0.2", label="best")
    axes.legend(loc="upper left", fontsize="small")

"""A trace as a table."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from .trace import Trace, TraceEvent


if TYPE_CHECKING:
    import pandas


def to_dataframe(trace: Trace) -> pandas.DataFrame:
    """A trace as a data frame of `rows_of`.

    Raises:
        ImportError: without pandas.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError("`Trace.to_dataframe` needs pandas: pip install pandas") from error
    rows = rows_of(trace)
    scores = dict.fromkeys(name for row in rows for name in row if name not in _COLUMNS)
    return pandas.DataFrame(rows, columns=[*_COLUMNS, *scores])


_COLUMNS = (
    *("population", "prompt", "pass", "event", "step", "progress", "timestep", "final"),
    *("slot", "reward", "log_weight", "parent_event", "parent_slot", "descendants", "returned"),
    *("lmbda", "ess", "resampled", "distinct_roots", "resume", "stopped", "nfe", "reward_calls"),
)


def rows_of(trace: Trace) -> list[dict[str, Any]]:
    """A row for each particle of each event of each pass, population by population, in the order in which they were
    scored.

    Of the particle there are its `slot`, `reward`, `score.NAME` for each part of the reward, `log_weight` (NaN where it
    has none), the event and slot that it continues (None in the first event), how many `descendants` continue it
    directly, and its rank among those `returned`, from 0 (None unless it was). Of the event, as in `TraceEvent`:
    `step`, `progress`, `timestep`, `final`, `lmbda`, `ess`, `resampled`, `distinct_roots`, `resume`, `stopped`, and
    the counts of its pass so far, `nfe` and `reward_calls`, of all populations together.
    """
    rows = []
    for population, prompt in enumerate(trace.prompts):
        ranks = {tuple(one): rank for rank, one in enumerate(trace.returned[population] if trace.returned else [])}
        for number, (one, own) in enumerate(trace.passes(population)):
            ancestors = ancestors_of(one, own)
            children = Counter(ancestors.values())
            for index, event in enumerate(one.events):
                for place, slot, weight in particles_of(event, own):
                    before, parent = ancestors.get((index, slot), (None, None))
                    rows.append(
                        {
                            "population": population,
                            "prompt": prompt,
                            "pass": number,
                            "event": index,
                            "step": event.step,
                            "progress": event.progress,
                            "timestep": event.timestep,
                            "final": event.final,
                            "slot": slot,
                            "reward": event.rewards[own][place],
                            **{f"score.{name}": values[own][place] for name, values in event.scores.items()},
                            "log_weight": math.nan if weight is None else math.log(weight) if weight else -math.inf,
                            "parent_event": before,
                            "parent_slot": parent,
                            "descendants": children[index, slot],
                            "returned": ranks.get((number, slot)) if event.final else None,
                            "lmbda": event.lmbda[own],
                            "ess": event.ess[own],
                            "resampled": event.resampled[own],
                            "distinct_roots": event.distinct_roots[own],
                            "resume": event.resume,
                            "stopped": event.stopped[own],
                            "nfe": event.nfe,
                            "reward_calls": event.reward_calls,
                        }
                    )
    return rows


Seen = tuple[int, int]
"""A particle as it was seen: number of the event, slot."""


def particles_of(event: TraceEvent, population: int) -> list[tuple[int, int, float | None]]:
    """(place in the event's lists, slot, weight) of the particles of a population; a weight is None if there is none.

    One that goes on alone, as its reward was as high as asked for, is in the lists as often as there were particles.
    """
    weighed = not math.isnan(event.ess[population])
    places: dict[int, int] = {}
    weights: dict[int, float] = {}
    for place, (slot, weight) in enumerate(zip(event.slots_before[population], event.log_weights[population])):
        places.setdefault(slot, place)
        weights[slot] = weights.get(slot, 0.0) + math.exp(weight)
    return [(place, slot, min(weights[slot], 1.0) if weighed else None) for slot, place in places.items()]


def ancestors_of(trace: Trace, population: int) -> dict[Seen, Seen]:
    """The particle that each one of a pass continues; none for those of the first event."""
    return {
        (index, slot): (before, parent)
        for index, event in enumerate(trace.events[:-1], 1)
        for slot, parent, before in zip(
            event.slots[population], event.parents[population], event.parent_events[population]
        )
    }

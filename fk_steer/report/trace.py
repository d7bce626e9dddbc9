"""What happened in a steered run: every scoring event, and where the time went."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..files import write_atomically, write_json
from ..records import read_record


if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class TraceEvent:
    """One scoring event over P populations. K particles were alive before it, M after it. Lists of lists are
    per population.

    Attributes:
        step: index of the denoising step whose x0 predictions were scored; the number of steps for the final images.
        progress: share of the denoiser calls made, in (0, 1]; 1 for the final images.
        timestep: of the step, as the scheduler counts; None for the final images.
        lmbda: (P,) the lambda in force.
        rewards: (P, K) in the order of `slots_before`.
        scores: what the rewards were made from: (P, K) for each part of a composite reward, and as they came.
        log_weights: (P, K) normalised, carried weights included, before resampling.
        ess: (P,) effective sample size of those weights, from 1 to K; NaN where the search does not weigh the
            particles, as where all follow the best, and the weights are equal ones.
        resampled: (P,) whether the population was resampled.
        slots_before: (P, K) which of the pipeline's rows of that prompt (0 to `num_particles` - 1) were alive.
        slots: (P, M) which are alive afterwards.
        parents: (P, M) the slot that the particle in `slots` at the same position came from.
        parent_events: (P, M) the number of the event, in `Trace.events`, at which that particle was seen there: this
            one, or an earlier one if a search went back.
        distinct_roots: (P,) how many of the initial particles still have descendants.
        resume: the step that the search went on with instead of the next; None for the next.
        stopped: (P,) whether the prompt had reached the reward asked for and goes on with its best particle alone.
        nfe: rows the denoiser has been run on so far; two per particle and step under classifier-free guidance.
        reward_calls: images scored so far, this event included, once for each leaf of the reward.
        predictions: (P, K) with `keep_predictions`, small pictures of the x0 predictions as 'data:' URLs; else empty.
        details: (P, K) for each part of the reward that says more than a score what it made that of, numbers by name,
            such as the answers to a checklist's questions; nothing for particles that it was not asked about.
    """

    step: int
    progress: float
    timestep: float | None
    lmbda: list[float]
    rewards: list[list[float]]
    scores: dict[str, list[list[float]]]
    log_weights: list[list[float]]
    ess: list[float]
    resampled: list[bool]
    slots_before: list[list[int]]
    slots: list[list[int]]
    parents: list[list[int]]
    parent_events: list[list[int]]
    distinct_roots: list[int]
    resume: int | None
    stopped: list[bool]
    nfe: int
    reward_calls: int
    predictions: list[list[str]] = field(default_factory=list)
    details: dict[str, list[list[dict[str, float]]]] = field(default_factory=dict)

    @property
    def final(self) -> bool:
        """Whether the final images were scored."""
        return self.timestep is None

    def __repr__(self) -> str:
        where = "the final images" if self.final else f"step {self.step}"
        sizes = " + ".join(map(str, map(len, self.rewards)))
        return f"TraceEvent({where}: {sizes} particles, best reward {_brief(map(_best, self.rewards))})"

    def of(self, population: int) -> TraceEvent:
        """The same for one population alone, but for the counts, which are of the run."""
        lists = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        own: dict[str, Any] = {
            name: [values[population]] for name, values in lists.items() if isinstance(values, list) and values
        }
        scores = {name: [values[population]] for name, values in self.scores.items()}
        details = {name: [values[population]] for name, values in self.details.items()}
        return dataclasses.replace(self, **own, scores=scores, details=details)


@dataclass
class Trace:
    """Everything needed to understand a run.

    Attributes:
        prompts: P texts the reward saw, one per population.
        reward: its name.
        relative: whether it only compares the particles of a prompt, see `fk_steer.rewards.Reward`.
        steering: the settings, `Strategy.describe()`, with what was left open chosen.
        scheduler: the class of the sampler in the denoising loop.
        num_steps: of the denoising loop.
        events: in order; the last one scores the final images.
        log_normalizer: (P,) estimate of log E[exp(lambda r(x0))] under the unsteered pipeline; NaN where the settings
            do not give one (truncation selection, standardised or pairwise rewards, no exact terminal weight).
        nfe: rows the denoiser was run on, those of `retries` too; a ControlNet's are not counted.
        nfe_saved: rows it was not run on because prompts had reached the reward asked for; with `rollover` they are
            spent on `retries`.
        denoiser_calls: calls those rows were spread over.
        reward_calls: images scored, once for each leaf of the reward.
        reward_calls_by_part: the same by name of the reward.
        retries: further passes of strategies that make several, and of `rollover`: the populations that were run, and
            the trace of it. The counts above and the seconds include what they cost, those of events do not.
        returned: (P, k) [pass, slot] of the particles that were returned, best first: the number of the pass over that
            population, as `passes` counts them, and where the particle was in its last event. Empty before the end.
        chosen: where settings or a budget chose them: 'steps', 'sampler', 'num_particles', and with a budget 'calls',
            which the run takes per image at most, and 'budget' itself. Empty where the pipeline and its call did.
        seconds: wall time in 'denoiser', 'decode', 'reward' and 'rest', which add up to 'total'.
    """

    prompts: list[str]
    reward: str
    steering: dict[str, Any]
    relative: bool = False
    scheduler: str = ""
    num_steps: int = 0
    events: list[TraceEvent] = field(default_factory=list)
    log_normalizer: list[float] = field(default_factory=list)
    nfe: int = 0
    nfe_saved: int = 0
    denoiser_calls: int = 0
    reward_calls: int = 0
    reward_calls_by_part: dict[str, int] = field(default_factory=dict)
    retries: list[tuple[list[int], Trace]] = field(default_factory=list)
    returned: list[list[list[int]]] = field(default_factory=list)
    chosen: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        prompts = repr(self.prompts[0][:40]) if len(self.prompts) == 1 else f"{len(self.prompts)} populations"
        further = f" and {len(self.retries)} further passes" if self.retries else ""
        best = f", best reward {_brief(map(_best, self.rewards))}" if self.returned else ""
        return f"Trace({prompts}: {len(self.events)} events{further}, NFE {self.nfe}{best})"

    @property
    def rewards(self) -> list[list[float]]:
        """The rewards (P, k) of the particles that were returned, best first; empty before the end."""
        found = []
        for population, returned in enumerate(self.returned):
            passes = self.passes(population)
            last = [dict(zip(t.events[-1].slots_before[p], t.events[-1].rewards[p])) for t, p in passes]
            found.append([last[number][slot] for number, slot in returned])
        return found

    def passes(self, population: int = 0) -> list[tuple[Trace, int]]:
        """The passes over a population in the order in which they were made, this one first, and which of theirs it
        is."""
        found: list[tuple[Trace, int]] = [(self, population)]
        for populations, trace in self.retries:
            if population in populations:
                found += trace.passes(populations.index(population))
        return found

    def add(self, populations: list[int], further: Trace) -> None:
        """Another pass over some populations."""
        self.retries.append((populations, further))
        for count in ("nfe", "nfe_saved", "denoiser_calls", "reward_calls"):
            setattr(self, count, getattr(self, count) + getattr(further, count))
        for part, calls in further.reward_calls_by_part.items():
            self.reward_calls_by_part[part] = self.reward_calls_by_part.get(part, 0) + calls
        for part, seconds in further.seconds.items():
            self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    def of(self, population: int) -> Trace:
        """The same for one population alone, but for counts and seconds, which are of the run."""
        return dataclasses.replace(
            self,
            prompts=[self.prompts[population]],
            events=[event.of(population) for event in self.events],
            log_normalizer=self.log_normalizer[population : population + 1],
            returned=self.returned[population : population + 1],
            retries=[
                ([0], trace.of(populations.index(population)))
                for populations, trace in self.retries
                if population in populations
            ],
        )

    def to_dict(self) -> dict[str, Any]:
        """The trace as plain values. Infinities and NaN become the strings 'inf', '-inf' and 'nan', so that the JSON is
        standard."""
        return strict(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Trace:
        """Inverse of `to_dict`."""
        events = [_event(event, len(values["prompts"])) for event in values["events"]]
        retries = [(populations, cls.from_dict(trace)) for populations, trace in values["retries"]]
        log_normalizer = lenient(values["log_normalizer"])
        trace = cls(**{**values, "events": events, "retries": retries, "log_normalizer": log_normalizer})
        if trace.returned:
            _check_returned(trace)
        return trace

    def save(self, path: str | Path) -> None:
        """Write the trace as JSON, at once or not at all."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a trace that `save` has written.

        Raises:
            OSError: if the file cannot be opened.
            UnreadableFile: if it holds no trace; the message names it.
        """
        return read_record(Path(path), cls.from_dict)

    def plot(self, population: int = 0) -> Figure:
        """The lineage tree of one population, coloured by reward, over its effective sample size and best reward.

        Args:
            population: index into `prompts`.
        """
        from .lineages import plot_lineages

        return plot_lineages(self, population)

    def save_html(self, path: str | Path) -> None:
        """Write a page with the family tree of every population, which opens in any browser without a network.

        With `keep_predictions=True` in the call the nodes are pictures of the x0 predictions, else dots whose colour is
        the reward.

        Args:
            path: of the file.

        Raises:
            ValueError: for a trace without events.
        """
        from .page import trace_page

        write_atomically(path, trace_page(self).encode())

    def to_dataframe(self) -> pandas.DataFrame:
        """A table with a row for each particle of each event of each pass, see `report.table.rows_of` for its columns.

        Raises:
            ImportError: without pandas.
        """
        from .table import to_dataframe

        return to_dataframe(self)


class Stopwatch:
    """Seconds by part. On a CUDA device events are recorded instead of waiting for it, and read at the end.

    Parts do not nest: time spent in a part inside another is counted in both.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._cuda = self._device.type == "cuda"
        self._spans: dict[str, list[tuple[Any, Any]]] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = self._now()
        try:
            yield
        finally:
            self._spans.setdefault(part, []).append((start, self._now()))

    def seconds(self) -> dict[str, float]:
        if self._cuda:
            torch.cuda.synchronize(self._device)
            return {part: sum(a.elapsed_time(b) for a, b in spans) / 1e3 for part, spans in self._spans.items()}
        return {part: sum(b - a for a, b in spans) for part, spans in self._spans.items()}

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


def _best(rewards: Iterable[float]) -> float:
    return max((reward for reward in rewards if not math.isnan(reward)), default=math.nan)


def _brief(rewards: Iterable[float]) -> str:
    """A few of some rewards."""
    shown = [f"{reward:.4g}" for reward in rewards]
    return ", ".join(shown[:3]) + (", ..." if len(shown) > 3 else "")


def _event(values: dict[str, Any], populations: int) -> TraceEvent:
    values = dict(values)
    pictures = values.pop("predictions", [])
    if pictures and [len(row) for row in pictures] != [len(row) for row in values["rewards"]]:
        raise ValueError("expected a picture of each particle")
    if not all(isinstance(picture, str) and picture.startswith("data:image/") for row in pictures for picture in row):
        raise ValueError("expected pictures to be 'data:' URLs")
    event = TraceEvent(**lenient(values), predictions=pictures)
    for name in ("rewards", "log_weights", "ess", "resampled", "slots_before", "slots", "parents", "parent_events"):
        if not isinstance(value := getattr(event, name), list) or len(value) != populations:
            raise ValueError(f"expected `{name}` of an event to be a list of {populations}, got {value!r:.40}")
    for before, rewards in zip(event.slots_before, event.rewards):
        if len(before) != len(rewards):
            raise ValueError("expected a reward for each particle")
    for name, said in event.details.items():
        if [len(row) for row in said] != [len(row) for row in event.rewards]:
            raise ValueError(f"expected details of {name!r} for each particle")
    return event


def _check_returned(trace: Trace) -> None:
    """Raise ValueError for particles returned that are in no last event."""
    try:
        complete = len(trace.rewards) == len(trace.prompts)
    except (LookupError, TypeError, ValueError):
        complete = False
    if not complete:
        raise ValueError("expected `returned` to name particles of the last events of passes")


def told(chosen: Mapping[str, Any]) -> str:
    """What was chosen for a run, see `Trace.chosen`, in a line; empty if nothing was."""
    if not chosen:
        return ""
    steps = f"{chosen['steps']} steps, " if chosen["steps"] else ""
    line = f"{steps}{chosen['sampler']}, {chosen['num_particles']} particle{'s'[: chosen['num_particles'] > 1]}"
    if chosen["budget"] is None:
        return line
    return f"{line}: {chosen['calls']} of {chosen['budget']} denoiser calls per image"


def strict(value: Any) -> Any:
    """`value` with infinities and NaN as strings, for standard JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    return [strict(item) for item in value] if isinstance(value, (list, tuple)) else value


def lenient(value: Any) -> Any:
    """Inverse of `strict` for values that hold no other strings."""
    if isinstance(value, str):
        return float(value)
    if isinstance(value, dict):
        return {key: lenient(item) for key, item in value.items()}
    return [lenient(item) for item in value] if isinstance(value, list) else value

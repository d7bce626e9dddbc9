"""What `fk-steer prefer` does: from candidates to a dataset of preferences.

A folder is the record of a run:

    settings.json           what the candidates are, and what decides
    candidates/             of prompts, the runs that made the candidates, as `fk-steer generate` leaves them
    prompts/00000.json      all that was said of the candidates of a prompt, and the pairs that are kept; its presence
                            says that the prompt is done
    data/train-*.parquet    the dataset
    README.md               its card
    summary.json            what was kept and why the rest was not; written last
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llava_reward_guide.packages import require

from ..combinations import by_reward
from ..console import console, progress_bar
from ..files import alone, check_settings, record_settings, write_json
from ..generate import Generation, generate_into
from ..loading import check_names
from ..records import UnreadableFile, read_record, say_set_aside, set_aside
from ..rewards.chat import check_recordable
from ..smc import integer, is_named, real, unknown
from .candidates import Candidate, Source, digest, grouped, read_source
from .dataset import Row, write, write_card
from .judging import OfPrompt, Recorded
from .media import kind_of, opened
from .panel import load_panel
from .record import checked, decided, rows_of
from .rules import OUTCOMES, RULES, Judge, Sifted, sift


RECORDED = "recorded"
"""Judge: the rewards that candidates got when they were made."""


@dataclass(frozen=True)
class Preference:
    """What decides, and which pairs are kept.

    Attributes:
        judge: name of a reward, or of several combined; None for the rewards that candidates got when they were made.
        judge_options: of it, see `load_reward`.
        rule: one of `RULES`.
        margin: the least margin of a pair that is kept, in the judge's units; at 0 it need only be positive.
        most: pairs of a prompt at most; None for all.
        limit: prompts at most; None for all.

    Raises:
        ValueError: for an unknown reward or rule, a value out of range, or a password among the options.
    """

    judge: str | None = None
    judge_options: Mapping[str, Any] = field(default_factory=dict)
    rule: str = "best-worst"
    margin: float = 0.0
    most: int | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if not is_named(self.rule, RULES):
            raise unknown("rule", self.rule, RULES)
        object.__setattr__(self, "margin", real("margin", self.margin, 0.0))
        for name in ("most", "limit"):
            object.__setattr__(self, name, integer(name, getattr(self, name), 1, optional=True))
        if self.judge is not None:
            check_names(self.judge)
            for options in by_reward(self.judge, self.judge_options).values():
                check_recordable(options)

    def sifted(self, number: int, judge: Judge) -> Sifted:
        """The pairs of so many candidates that are kept, by what a judge says of them."""
        return sift(self.rule, number, judge, self.margin, self.most)


@dataclass(frozen=True)
class Fresh:
    """Candidates that are made first.

    Attributes:
        runs: name of a folder in `candidates` -> what is made there.
        batch_size: denoiser rows at a time, see `generate_into`; None for all.
    """

    runs: Mapping[str, Generation]
    batch_size: int | None = None


def prefer(
    sources: Sequence[Path],
    out: Path,
    preference: Preference,
    *,
    fresh: Fresh | None = None,
    batch_size: int = 16,
    device: str | None = None,
    repair: bool = False,
) -> dict[str, Any]:
    """Decide about the prompts that are missing in a folder, and write the dataset; at once if it is there.

    Args:
        sources: folders or lists of candidates, see `read_source`.
        out: the folder.
        preference: what decides.
        fresh: candidates to make first, instead of sources.
        batch_size: candidates or pairs per call of the judge.
        device: None for CUDA if there is a device, else the CPU.
        repair: set aside records that cannot be read, in `.unreadable` within the folder, and make them anew.

    Returns:
        The summary: 'prompts', 'candidates', 'copies' and 'unreadable images' left out, 'pairs' by what became of them,
        'prompts with pairs', 'rows', 'failed requests' and 'files'.

    Raises:
        ValueError: if the folder was made with other settings, there are no two candidates of any prompt, or what
            should decide does not fit them; `UnreadableFile` for broken records, unless `repair`.
        OSError: if a file cannot be read or written. What was finished is there.
        RewardError: if a judge does not answer at all.
        ImportError: without pyarrow.
    """
    require("pyarrow")
    if bool(sources) == (fresh is not None):
        raise ValueError("Expected folders of candidates, or prompts to make them for, and not both.")
    if fresh is not None:
        if len(fresh.runs) == 0:
            raise ValueError("Expected prompts to make candidates for, but got none.")
        sources = [out / "candidates" / name for name in fresh.runs]
        for place, generation in zip(sources, fresh.runs.values()):
            console.print(f"Candidates in {place}:", markup=False, highlight=False, soft_wrap=True)
            generate_into(place, generation, batch_size=fresh.batch_size, device=device, repair=repair, pages=False)
    run = _Run.of([read_source(place) for place in sources], out, preference)
    if repair:
        run.repair()
    check_settings(out, run.settings)
    if (summary := run.finished()) is not None:
        return summary
    with alone(out):
        for folder in (out / "prompts", out / "data"):
            # What a killed run was at.
            for file in folder.glob(".*.tmp"):
                file.unlink(missing_ok=True)
        record_settings(out, run.settings)
        missing = [number for number in range(len(run.groups)) if run.record(number) is None]
        if missing:
            _decide(run, missing, batch_size, device)
        return run.finish()


@dataclass(frozen=True)
class _Run:
    out: Path
    preference: Preference
    sources: Sequence[Source]
    groups: Sequence[Sequence[Candidate]]
    settings: dict[str, Any]
    kind: str

    @classmethod
    def of(cls, sources: Sequence[Source], out: Path, preference: Preference) -> _Run:
        for source in sources:
            if source.unfinished:
                console.print(
                    f"{source.place}: {source.unfinished} prompts are not finished, and left out.",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )
        if preference.judge is None:
            _check_recorded(sources)
        candidates = [one for source in sources for one in source.candidates]
        by_call = preference.judge is None and any(source.relative for source in sources)
        groups = [group for group in grouped(candidates, by_call) if len(group) > 1]
        if not groups:
            raise ValueError(_lonely(sources, len(candidates), by_call))
        groups = groups[: preference.limit]
        recorded = sources[0].reward if preference.judge is None else None
        settings = {
            **asdict(preference),
            "judge": preference.judge or RECORDED,
            "judge_options": json.loads(sources[0].reward_options) if recorded else dict(preference.judge_options),
            "recorded": recorded,
            "sources": [source.place.absolute().name for source in sources],
            "candidates_sha256": digest(groups),
        }
        return cls(out, preference, sources, groups, json.loads(json.dumps(settings)), kind_of(groups[0]))

    def place(self, number: int) -> Path:
        return self.out / "prompts" / f"{number:05d}.json"

    def record(self, number: int) -> dict[str, Any] | None:
        """What is known of a group; None for nothing yet."""
        try:
            return read_record(self.place(number), lambda values: checked(values, self.groups[number]))
        except FileNotFoundError:
            return None

    def repair(self) -> None:
        for number in range(len(self.groups)):
            try:
                self.record(number)
            except UnreadableFile as problem:
                with suppress(FileNotFoundError):
                    set_aside(problem.path, self.out)
                    say_set_aside(problem)
                (self.out / "summary.json").unlink(missing_ok=True)

    def finished(self) -> dict[str, Any] | None:
        """The summary, if everything is there."""
        try:
            summary = read_record(self.out / "summary.json", dict)
        except FileNotFoundError:
            return None
        return summary if all((self.out / one["file"]).is_file() for one in summary["files"]) else None

    def finish(self) -> dict[str, Any]:
        """Write the dataset and the summary."""
        rows: list[Row] = []
        counts: Counter[str] = Counter()
        outcomes: Counter[str] = Counter()
        for number, group in enumerate(self.groups):
            record = self.record(number)
            assert record is not None
            own = rows_of(number, group, record, self.settings)
            rows += own
            outcomes.update(record["outcomes"])
            for name in ("copies", "unreadable images", "failed requests"):
                counts[name] += record[name]
            counts["candidates"] += len(group)
            counts["prompts with pairs"] += bool(own)
        files = write(self.out, rows, self.kind)
        summary = {
            "kind": self.kind,
            "prompts": len(self.groups),
            **{name: counts[name] for name in ("candidates", "copies", "unreadable images")},
            "pairs": {outcome: outcomes[outcome] for outcome in OUTCOMES},
            "prompts with pairs": counts["prompts with pairs"],
            "rows": len(rows),
            "failed requests": counts["failed requests"],
            "files": files,
        }
        write_card(self.out, self.kind, "\n".join(told(summary, self.settings)))
        write_json(self.out / "summary.json", summary)
        return summary


def told(summary: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """A summary in words, a line each."""
    by = settings["judge"] if settings["recorded"] is None else f"the recorded {settings['recorded']}"
    pairs = {outcome: count for outcome, count in summary["pairs"].items() if count}
    lines = [
        f"{summary['rows']} pairs from {summary['prompts with pairs']} of {summary['prompts']} prompts, by {by} and "
        f"the rule {settings['rule']}.",
        f"Looked at: {', '.join(f'{count} {outcome}' for outcome, count in pairs.items()) or 'nothing'}.",
    ]
    left_out = {name: summary[name] for name in ("copies", "unreadable images", "failed requests") if summary[name]}
    if left_out:
        lines.append(f"Besides: {', '.join(f'{count} {name}' for name, count in left_out.items())}.")
    return lines


def _check_recorded(sources: Sequence[Source]) -> None:
    for source in sources:
        if source.reward is None:
            raise ValueError(f"{source.place} holds no rewards to decide by. Name what should decide with --judge.")
    if len({(source.reward, source.reward_options) for source in sources}) > 1:
        names = ", ".join(dict.fromkeys(f"{source.reward} {source.reward_options}" for source in sources))
        raise ValueError(f"The rewards in these folders are of several kinds ({names}). Name one with --judge.")


def _lonely(sources: Sequence[Source], candidates: int, by_call: bool) -> str:
    hints = " ".join(dict.fromkeys(source.hint for source in sources))
    if by_call and any(source.relative for source in sources):
        return (
            f"The recorded rewards only compare the particles of a call, and there are no two of any ({candidates} "
            f"images in all). {hints} Or name what should decide with --judge."
        )
    return f"There are no two candidates of any prompt, of {candidates} in all. {hints}"


def _decide(run: _Run, missing: Sequence[int], batch_size: int, device: str | None) -> None:
    preference, see = run.preference, opened(run.kind)
    name, options, rule = preference.judge, preference.judge_options, preference.rule
    panel = None if name is None else load_panel(name, options, rule, run.kind, batch_size, device)

    def judge_of(candidates: Sequence[Candidate], items: Sequence[Any]) -> OfPrompt | Recorded:
        return Recorded(candidates) if panel is None else OfPrompt(panel, candidates, items)

    with progress_bar() as bar:
        task = bar.add_task("prompts", total=len(run.groups), completed=len(run.groups) - len(missing))
        for number in missing:
            write_json(run.place(number), decided(run.groups[number], see, judge_of, preference.sifted))
            bar.advance(task)

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

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llava_reward_guide.images import ImageError
from llava_reward_guide.packages import require

from ..combinations import by_reward
from ..console import console, progress_bar
from ..files import alone, check_settings, record_settings, write_json
from ..generate import Generation, generate_into
from ..loading import check_names, load_guide
from ..records import UnreadableFile, read_record, say_set_aside, set_aside
from ..rewards.base import as_reward
from ..rewards.chat import check_recordable
from ..rewards.chat.unified import TASKS
from ..rewards.chat.unified_reward import UnifiedReward
from ..rewards.loading import default_device
from ..smc import integer, is_named, real, unknown
from .candidates import Candidate, Source, digest, grouped, read_source
from .dataset import Row, Side, write, write_card
from .judging import OfPrompt, Panel, Recorded, kind_of, opened, pairwise_of
from .rules import OUTCOMES, RULES, Sifted, sift


RECORDED = "recorded"
"""Judge: the rewards that candidates got when they were made."""

PAIRING = {
    "image": ("pair", "point"),
    "video": ("video-pair", "video"),
    "text": ("answer-pair", "answer"),
    "video-text": ("video-answer-pair", "video-answer"),
}
"""Kind of candidates -> the variants of UnifiedReward that compare two of them and score each."""


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
            return read_record(self.place(number), lambda values: _checked(values, self.groups[number]))
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
            own = _rows(number, group, record, self)
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


def _checked(values: dict[str, Any], group: Sequence[Candidate]) -> dict[str, Any]:
    names = [one["name"] for one in values["candidates"]]
    if values["prompt"] != group[0].prompt or names != [one.name for one in group]:
        raise ValueError("of another prompt")
    for name in ("pairs", "outcomes", "copies", "unreadable images", "failed requests", "comparisons"):
        values[name]
    return values


def _panel(run: _Run, batch_size: int, device: str | None) -> Callable[[Sequence[Candidate], Sequence[Any]], Any]:
    preference = run.preference
    if preference.judge is None:
        return lambda candidates, items: Recorded(candidates)
    target = default_device(device)
    options = dict(preference.judge_options)
    if preference.judge == UnifiedReward.name:
        pair, point = PAIRING[run.kind]
        given = options.pop("variant", None)
        compares = given in TASKS and TASKS[given].compares
        if preference.rule == "unified-reward":
            pair, point = (given if compares else pair), (point if compares or given is None else given)
            judges = [load_guide(UnifiedReward.name, target, **options, variant=one) for one in (point, pair)]
            return Panel(judges[0], judges[1], run.kind, batch_size).of
        options["variant"] = given or point
    judge = as_reward(load_guide(preference.judge, target, **options))
    compares = pairwise_of(judge) is not None
    if compares and preference.rule == "unified-reward":
        raise ValueError(
            f"The rule 'unified-reward' also scores winners and losers, and '{preference.judge}' with these options "
            "only compares two. Choose the judge unified-reward, which does both, a judge that scores, or another "
            "--rule."
        )
    return Panel(None if compares else judge, judge if compares else None, run.kind, batch_size).of


def _decide(run: _Run, missing: Sequence[int], batch_size: int, device: str | None) -> None:
    of_prompt = _panel(run, batch_size, device)
    see = opened(run.kind)
    with progress_bar() as bar:
        task = bar.add_task("prompts", total=len(run.groups), completed=len(run.groups) - len(missing))
        for number in missing:
            write_json(run.place(number), _decided(run, run.groups[number], of_prompt, see))
            bar.advance(task)


def _decided(
    run: _Run,
    group: Sequence[Candidate],
    of_prompt: Callable[[Sequence[Candidate], Sequence[Any]], Any],
    see: Callable[[Candidate], Any],
) -> dict[str, Any]:
    """The record of a prompt."""
    preference = run.preference
    hashes = [hashlib.sha256(one.path.read_bytes()).hexdigest() for one in group]
    known: set[tuple[str, str | None]] = set()
    places: list[int] = []
    items: list[Any] = []
    copies = unreadable = 0
    for place, (one, sha256) in enumerate(zip(group, hashes)):
        if (sha256, one.answer) in known:
            # Of resampled particles some are the same image to the last bit.
            copies += 1
            continue
        known.add((sha256, one.answer))
        try:
            items.append(see(one))
        except ImageError:
            unreadable += 1
            continue
        places.append(place)
    judge: OfPrompt | Recorded = of_prompt([group[place] for place in places], items)
    sifted = Sifted((), {})
    if len(places) > 1:
        sifted = sift(preference.rule, len(places), judge, preference.margin, preference.most)
    said = judge.verdicts
    numbers = {place: number for number, place in enumerate(places)}
    return {
        "prompt": group[0].prompt,
        "candidates": [
            {
                "name": one.name,
                "sha256": sha256,
                "seed": one.seed,
                "model": one.model,
                "score": said.scores.get(numbers.get(place, -1)),
                "reply": said.replies.get(numbers.get(place, -1)),
            }
            for place, (one, sha256) in enumerate(zip(group, hashes))
        ],
        "comparisons": [
            {
                "first": places[first],
                "second": places[second],
                "forward": verdict.forward,
                "backward": verdict.backward,
                "replies": list(said.spoken.get((first, second), (None, None))),
            }
            for (first, second), verdict in said.comparisons.items()
        ],
        "pairs": [
            {**asdict(pair), "chosen": places[pair.chosen], "rejected": places[pair.rejected]} for pair in sifted.pairs
        ],
        "outcomes": {outcome: sifted.outcomes.get(outcome, 0) for outcome in OUTCOMES},
        "copies": copies,
        "unreadable images": unreadable,
        "failed requests": said.failed,
        "template": said.template,
    }


def _rows(number: int, group: Sequence[Candidate], record: Mapping[str, Any], run: _Run) -> list[Row]:
    settings = run.settings
    rows = []
    for rank, pair in enumerate(record["pairs"]):
        sides = [
            Side(
                group[place].path,
                record["candidates"][place]["sha256"],
                group[place].name,
                group[place].seed,
                group[place].model,
                score,
                record["candidates"][place]["reply"],
                group[place].answer,
            )
            for place, score in (
                (pair["chosen"], pair["chosen_score"]),
                (pair["rejected"], pair["rejected_score"]),
            )
        ]
        rows.append(
            Row(
                f"{number:05d}-{rank:03d}",
                record["prompt"],
                sides[0],
                sides[1],
                pair["margin"],
                pair["probability"],
                settings["rule"],
                settings["recorded"] or settings["judge"],
                json.dumps(settings["judge_options"], sort_keys=True),
                record["template"],
                tuple(_replies(record["comparisons"], pair["chosen"], pair["rejected"])),
            )
        )
    return rows


def _replies(comparisons: Sequence[Mapping[str, Any]], chosen: int, rejected: int) -> list[str]:
    """What was said of the two; where they were not compared, of either and its own opponent."""
    sides = [{one["first"], one["second"]} for one in comparisons]
    both = [one for one, players in zip(comparisons, sides) if players == {chosen, rejected}]
    either = [one for one, players in zip(comparisons, sides) if players & {chosen, rejected}]
    return [reply for one in both or either for reply in one["replies"] if reply is not None]

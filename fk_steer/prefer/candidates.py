"""The candidates of prompts, read from folders of runs, folders of images and lists of answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llava_reward_guide.texts import read_json, read_json_lines, read_table

from ..evaluation.folders import prompt_folders
from ..evaluation.generation import SampleRecord
from ..records import read_record
from ..report.results import UNSTEERED, picture_path
from ..report.trace import Trace


LISTS = ("metadata.jsonl", "metadata.csv")
"""Files that say of the images in their folder what they are of, as `imagefolder` datasets have them."""

ANIMATIONS = (".webp", ".gif", ".apng")
"""How the names of files end that hold a video if they have more than one frame."""


@dataclass(frozen=True)
class Candidate:
    """An image, a video, or a text about an image.

    Attributes:
        name: where it comes from, by the name of its folder: 'run/000/03.png'; an answer by its number too.
        path: the file; of an answer, that of the image it is about.
        prompt: what it was made for; of an answer, the question.
        seed: it was made with; None if that is not known.
        model: that made it; None if that is not known.
        reward: it got when it was made; None if that is not known.
        population: what its reward can be compared with, if rewards only compare particles of one call: the call.
        answer: the text; None for an image or video.
    """

    name: str
    path: Path
    prompt: str
    seed: int | None = None
    model: str | None = None
    reward: float | None = None
    population: str = ""
    answer: str | None = None


@dataclass(frozen=True)
class Source:
    """What a folder or list holds.

    Attributes:
        place: the folder or list.
        candidates: in the order of their prompts.
        reward: name of the reward that gave the recorded ones; None if there are none.
        reward_options: of it.
        relative: whether the recorded rewards only compare the particles of a call.
        unfinished: how many prompts of a run are left out because they are not finished.
        hint: what gives more candidates of a prompt; for messages.
    """

    place: Path
    candidates: tuple[Candidate, ...]
    reward: str | None = None
    reward_options: str = "{}"
    relative: bool = False
    unfinished: int = 0
    hint: str = "Put several images of each prompt there."


def read_source(place: Path) -> Source:
    """The candidates in a folder of `fk-steer generate` or `fk-steer bench`, in another folder in GenEval's layout, in
    a folder of images with `metadata.jsonl` or `metadata.csv`, or in such a list itself; or the answers in a list.

    Raises:
        OSError: if there is no such folder, or nothing of this in it.
        ValueError: if what is there cannot be read, naming it.
    """
    if not place.exists():
        raise FileNotFoundError(f"Expected a folder of images or runs at {place}, but there is none.")
    if place.is_file():
        return _listed(place)
    settings = _settings(place)
    if "prompts" in settings and "compare" in settings:
        return _generated(place, settings)
    if "samples_per_prompt" in settings:
        return _benched(place, settings)
    for name in LISTS:
        if (place / name).is_file():
            return _listed(place / name)
    if candidates := _in_layout(place):
        return Source(place, tuple(candidates))
    raise FileNotFoundError(
        f"Expected candidates in {place}: a folder of `fk-steer generate` or `fk-steer bench`, images in GenEval's "
        f"layout (00000/metadata.jsonl, 00000/samples/00000.png), or images with a {' or '.join(LISTS)}. It holds none."
    )


def grouped(candidates: Iterable[Candidate], by_population: bool) -> list[list[Candidate]]:
    """The candidates of each prompt, in the order in which prompts first come; those of a prompt without others too.

    Args:
        by_population: whether only those of one call are together.
    """
    groups: dict[tuple[str, str, str], list[Candidate]] = {}
    for one in candidates:
        # Answers to one question about two images have nothing to do with each other.
        about = one.path.as_posix() if one.answer is not None else ""
        groups.setdefault((one.prompt, about, one.population if by_population else ""), []).append(one)
    return list(groups.values())


def digest(groups: Sequence[Sequence[Candidate]]) -> str:
    """SHA-256 of all that is known of candidates without opening their files."""
    content = [
        [one.name, one.path.stat().st_size, one.prompt, one.seed, one.model, one.reward, one.answer]
        for group in groups
        for one in group
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _settings(folder: Path) -> dict[str, Any]:
    try:
        return read_record(folder / "settings.json", dict)
    except FileNotFoundError:
        return {}


def _model(settings: dict[str, Any]) -> str:
    return settings["model"] if settings.get("lora") is None else f"{settings['model']} with {settings['lora']}"


def _generated(folder: Path, settings: dict[str, Any]) -> Source:
    candidates: list[Candidate] = []
    relative, unfinished = False, 0
    for index, prompt in enumerate(settings["prompts"]):
        here = folder / f"{index:03d}"
        prefixes = ("", UNSTEERED) if settings["compare"] else ("",)
        try:
            traces = {prefix: Trace.load(here / f"{prefix}trace.json") for prefix in prefixes}
        except FileNotFoundError:
            unfinished += 1
            continue
        for prefix, trace in traces.items():
            relative = relative or trace.relative
            for rank, reward in enumerate(trace.rewards[0]):
                path = picture_path(here, f"{prefix}{rank:02d}")
                candidates.append(
                    Candidate(
                        f"{folder.absolute().name}/{here.name}/{path.name}",
                        path,
                        prompt,
                        settings["seed"],
                        _model(settings),
                        reward,
                        f"{here.absolute()}/{prefix}",
                    )
                )
    return Source(
        folder,
        tuple(candidates),
        settings["reward"],
        json.dumps(settings["reward_options"], sort_keys=True),
        relative,
        unfinished,
        "Generate with more --particles.",
    )


def _benched(folder: Path, settings: dict[str, Any]) -> Source:
    candidates = []
    for path in sorted(folder.glob("*/records/*.json")):
        record = read_record(path, SampleRecord.from_dict)
        number = path.parents[1].name
        image = path.parents[1] / "samples" / f"{record.sample:05d}.png"
        candidates.append(
            Candidate(
                f"{folder.absolute().name}/{number}/samples/{image.name}",
                image,
                record.prompt,
                record.seed,
                _model(settings),
                record.reward,
                str(image.absolute()),
            )
        )
    trace = next(iter(sorted(folder.glob("*/traces/*.json"))), None)
    return Source(
        folder,
        tuple(candidates),
        settings["reward"],
        json.dumps(settings["reward_options"], sort_keys=True),
        trace is not None and Trace.load(trace).relative,
        hint="`fk-steer bench` keeps the best particle of each call alone: run it with --samples-per-prompt 2 or more, "
        "or use `fk-steer generate`, which keeps all particles.",
    )


def _in_layout(folder: Path) -> list[Candidate]:
    candidates = []
    for record, images in prompt_folders(folder):
        if not images:
            continue
        prompt = _text(read_json(record), ("prompt",), str(record))
        candidates += [
            Candidate(f"{folder.absolute().name}/{path.relative_to(folder).as_posix()}", path, prompt)
            for path in images
        ]
    return candidates


def _listed(file: Path) -> Source:
    rows = read_json_lines(file) if file.suffix.lower() == ".jsonl" else list(enumerate(read_table(file), start=2))
    candidates: list[Candidate] = []
    for number, row in rows:
        where = f"line {number} of {file}"
        if not isinstance(row, dict):
            raise ValueError(f"Expected an object in {where}, but got {row!r}.")
        answers = row.get("answers")
        name = _text(row, ("image", "file_name", "path") if answers is not None else ("file_name", "path"), where)
        prompt = _text(row, ("question", "prompt") if answers is not None else ("prompt", "text", "caption"), where)
        one = Candidate(
            f"{file.parent.absolute().name}/{name}",
            file.parent / name,
            prompt,
            _number(row, "seed", where, int),
            row.get("model"),
            _number(row, "score", where, float),
        )
        if not one.path.is_file():
            raise FileNotFoundError(
                f"Expected the file {name!r} of {where} in {file.parent.absolute()}, but it is not there."
            )
        if answers is None:
            candidates.append(one)
            continue
        if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
            raise ValueError(f"Expected a list of texts as 'answers' in {where}, but got {answers!r}.")
        candidates += [
            replace(one, name=f"{one.name}#{number}.{index}", reward=None, answer=answer)
            for index, answer in enumerate(answers)
        ]
    if not candidates:
        raise ValueError(f"Expected images with their prompts in {file}, but there are none.")
    scored = all(one.reward is not None for one in candidates)
    hint = "Give several answers to each question." if candidates[0].answer is not None else Source.hint
    return Source(file, tuple(candidates), "score" if scored else None, hint=hint)


def _text(row: Any, fields: Sequence[str], where: str) -> str:
    for field in fields:
        if isinstance(row, dict) and isinstance(row.get(field), str):
            return row[field]
    raise ValueError(f"Expected a text {' or '.join(map(repr, fields))} in {where}, but got {row!r}.")


def _number(row: dict[str, Any], field: str, where: str, kind: type) -> Any:
    value = row.get(field)
    if value is None or value == "":
        return None
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise ValueError(f"Expected {field!r} in {where} to be a number, but got {value!r}.") from None

"""Human judgements of images, in the formats in which they are published."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

from llava_reward_guide.texts import TABLES, read_json, read_json_lines, read_table

from .benchmarks import BENCHMARKS, vote_of
from .judgements import JudgeData, Judgement, Kind


Converted = TypeVar("Converted")


def read(path: str | Path, human: str | Path | None = None) -> JudgeData:
    """Read a data set; its format is told by its fields.

    Args:
        path: a JSON file (a list, or TIFA160's or MMRB2's object), JSON lines or CSV, in one of `FORMATS`.
        human: the human answers, where they come in a file of their own (TIFA160): CSV with the columns source_id,
            model_type and answer.

    Raises:
        OSError: if there is no such file.
        ValueError: for another format, listing the known ones, or an entry that is not as its format has it.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".jsonl":
        content: Any = [entry for _, entry in read_json_lines(path)]
    else:
        content = read_table(path) if suffix in TABLES else read_json(path)
    if isinstance(content, dict) and isinstance(content.get("pairs"), list):
        content = content["pairs"]
    entries = list(content.values()) if isinstance(content, dict) else content
    if not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"Expected a list of objects in {path}, but got none.")
    if {"text_id", "image_path", "text"} <= entries[0].keys():
        if human is None:
            raise ValueError(f"{path} has TIFA160's form, which has no human answers. Give them too (`--human`).")
        return JudgeData("tifa160", Kind.ratings, _tifa160(content, Path(human)))
    if human is not None:
        raise ValueError(f"Human answers in a file of their own belong to TIFA160, which {path} is not.")
    for name, (kind, fields, convert) in FORMATS.items():
        if fields <= entries[0].keys():
            return JudgeData(name, kind, [_converted(convert, entry, number) for number, entry in enumerate(entries)])
    for name, benchmark in BENCHMARKS.items():
        if benchmark.fields <= entries[0].keys():
            judgements = [_converted(benchmark.convert, entry, number) for number, entry in enumerate(entries)]
            return benchmark.collected(name, judgements)
    formats: dict[str, Collection[str]] = {name: fields for name, (_, fields, _) in FORMATS.items()}
    formats |= {name: benchmark.fields for name, benchmark in BENCHMARKS.items()}
    known = "; ".join(f"{name}: {', '.join(sorted(fields))}" for name, fields in formats.items())
    raise ValueError(
        f"Unknown format of {path}, whose first entry has the fields {', '.join(entries[0])}. Known: {known}; tifa160: "
        "image_path, text, text_id."
    )


def _converted(convert: Callable[[dict[str, Any]], Converted], entry: dict[str, Any], number: int) -> Converted:
    try:
        return convert(entry)
    except KeyError as error:
        raise ValueError(f"Entry {number} has no field {error}.") from error
    except ValueError as error:
        raise ValueError(f"Entry {number}: {error}") from error


def _llava_reward_pair(entry: dict[str, Any]) -> Judgement:
    prompt = entry["prompt"]
    prompts = (prompt, prompt) if isinstance(prompt, str) else tuple(prompt)
    if len(prompts) != 2:
        raise ValueError(f"Expected a prompt, or one for each image, but got {len(prompts)}.")
    images = (entry["chosen_path"], entry["reject_path"])
    return Judgement(images, prompts, (1.0, 0.0), str(entry.get("prompt_id", prompts[0])))


def _label(entry: dict[str, Any]) -> Judgement:
    if entry["label"] not in (0, 1):
        raise ValueError(f"Expected the label 0 or 1, but got {entry['label']!r}.")
    return Judgement((entry["path"],), (entry["prompt"],), (float(entry["label"]),), entry["prompt"] or entry["path"])


def _mj_bench(entry: dict[str, Any]) -> Judgement:
    if entry["label"] not in (0, 1):
        raise ValueError(f"Expected the label 0 or 1, the preferred image, but got {entry['label']!r}.")
    human = (1.0, 0.0) if entry["label"] == 0 else (0.0, 1.0)
    return Judgement((entry["image0"], entry["image1"]), (entry["caption"],) * 2, human, entry["caption"])


def _genai_bench(entry: dict[str, Any]) -> Judgement:
    images = (entry["left_image"], entry["right_image"])
    return Judgement(images, (entry["prompt"],) * 2, vote_of(entry["vote_type"]), entry["prompt"])


def _image_reward(entry: dict[str, Any]) -> Judgement:
    images, ranking = entry["generations"], entry["ranking"]
    if len(images) != len(ranking):
        raise ValueError(f"Expected a rank for each image, but got {len(ranking)} for {len(images)}.")
    # Rank 1 is the best.
    human = tuple(-float(rank) for rank in ranking)
    return Judgement(tuple(images), (entry["prompt"],) * len(images), human, str(entry["id"]))


FORMATS: dict[str, tuple[Kind, set[str], Callable[[dict[str, Any]], Judgement]]] = {
    "llava-reward-pairs": (Kind.preferences, {"prompt", "chosen_path", "reject_path"}, _llava_reward_pair),
    "llava-reward-labels": (Kind.labels, {"path", "label", "prompt"}, _label),
    "mj-bench": (Kind.preferences, {"caption", "image0", "image1", "label"}, _mj_bench),
    "genai-bench": (Kind.votes, {"prompt", "left_image", "right_image", "vote_type"}, _genai_bench),
    "image-reward": (Kind.preferences, {"id", "prompt", "generations", "ranking"}, _image_reward),
}
"""Name -> what was asked, the fields that tell the format of a list of objects, and how to read one."""

TIFA_MODELS = {
    "mini-dalle": "mini_dalle",
    "vq-diffusion": "vq_diffusion",
    "sd1dot1": "stable_diffusion_v1_1",
    "sd1dot5": "stable_diffusion_v1_5",
    "sd2dot1": "stable_diffusion_v2_1",
}
"""Model in the human answers -> in the names of the images."""


def _tifa160(content: Any, human: Path) -> list[Judgement]:
    """An image's rating is the mean of its answers (1 to 5)."""
    if not isinstance(content, dict):
        raise ValueError("Expected TIFA160 as an object with an entry per image, but got a list.")
    answers: dict[str, list[float]] = {}
    for row in read_table(human):
        if not {"source_id", "model_type", "answer"} <= row.keys():
            raise ValueError(f"Expected the columns source_id, model_type and answer in {human}.")
        model = TIFA_MODELS.get(row["model_type"], row["model_type"])
        answers.setdefault(f"{row['source_id']}_{model}", []).append(float(row["answer"]))
    unrated = [name for name in content if name not in answers]
    if unrated:
        raise ValueError(f"{human} has no answers for {len(unrated)} of {len(content)} images, such as {unrated[0]}.")
    return [
        Judgement((entry["image_path"],), (entry["text"],), (_mean(answers[name]),), entry["text_id"])
        for name, entry in content.items()
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

"""Lists of prompts: GenEval's and DrawBench's, fetched once from where they are published, other published ones by
name, and files of one's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llava_reward_guide.texts import TABLES, read_json_lines, read_table, read_text, text_lines

from ..published import Source, fetch
from ..smc import suggestion
from .prompt_lists.registry import LISTS, PromptList, entries_of


# fmt: off
CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster",
    "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on
"""The 80 classes of COCO in the order of its detectors, three of them by the longer names that GenEval gives them."""

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")

GENEVAL_TASKS = {
    "single_object": 80,
    "two_object": 99,
    "counting": 80,
    "colors": 94,
    "position": 100,
    "color_attr": 100,
}
"""Task -> its number of prompts."""

DRAWBENCH_CATEGORIES = {
    "Colors": 25,
    "Conflicting": 10,
    "Counting": 19,
    "DALL-E": 20,
    "Descriptions": 20,
    "Gary Marcus et al.": 10,
    "Misspellings": 10,
    "Positional": 20,
    "Rare Words": 7,
    "Reddit": 38,
    "Text": 21,
}
"""Category -> its number of prompts, in the order of the published list."""


GENEVAL = Source(
    "GenEval's prompts",
    "https://raw.githubusercontent.com/djghosh13/geneval/main/prompts/evaluation_metadata.jsonl",
    "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13",
)
DRAWBENCH = Source(
    "DrawBench's prompts",
    "https://raw.githubusercontent.com/openai/dalle3-eval-samples/main/prompts/drawbench.txt",
    "3d4f4b2db7520208ee056d470202c07fd77766b96d133ea9f4ab00a323381e9a",
)


@dataclass(frozen=True)
class DrawBenchPrompt:
    """A prompt and the category it belongs to, one of `DRAWBENCH_CATEGORIES`."""

    prompt: str
    category: str


def geneval_prompts(path: str | Path | None = None) -> list[dict[str, Any]]:
    """GenEval's metadata (Ghosh et al., arXiv 2310.11513), one entry per prompt, as `geneval.rules.evaluate` takes
    it.

    Args:
        path: `evaluation_metadata.jsonl`, or a file like it; None to fetch the published one, once.

    Raises:
        OSError: if it cannot be had; the message says where to get it.
        ValueError: for a line that is not GenEval's metadata, with its number.
    """
    entries = []
    for number, entry in read_json_lines(_file(path, GENEVAL)):
        try:
            entries.append(check_metadata(entry))
        except ValueError as error:
            raise ValueError(f"Line {number} of {path or GENEVAL.url} is not GenEval's metadata: {error}") from error
    return entries


def drawbench_prompts(path: str | Path | None = None) -> list[DrawBenchPrompt]:
    """DrawBench (Saharia et al., arXiv 2205.11487): 200 prompts in eleven categories.

    Args:
        path: a CSV file with the columns `Prompts` and `Category`, as the authors' sheet exports it, or a text file of
            the 200 prompts in the sheet's order, one a line; None to fetch such a text file, once.

    Raises:
        OSError: if it cannot be had; the message says where to get it.
        ValueError: for an unknown category, or a list without categories that has not 200 lines.
    """
    file = _file(path, DRAWBENCH)
    if file.suffix.lower() in TABLES:
        rows = read_table(file)
        if rows and not {"Prompts", "Category"} <= rows[0].keys():
            raise ValueError(f"Expected the columns 'Prompts' and 'Category' in {path}, but got {', '.join(rows[0])}.")
        # One circulating copy has a blank after a category.
        prompts = [DrawBenchPrompt(row["Prompts"], (row["Category"] or "").strip()) for row in rows]
        if unknown := {entry.category for entry in prompts} - DRAWBENCH_CATEGORIES.keys():
            raise ValueError(
                f"Unknown category {sorted(unknown)[0]!r} in {path}. Known: {', '.join(DRAWBENCH_CATEGORIES)}."
            )
        return prompts
    lines = [line for _, line in text_lines(read_text(file))]
    categories = [category for category, number in DRAWBENCH_CATEGORIES.items() for _ in range(number)]
    if len(lines) != len(categories):
        raise ValueError(
            f"Expected the {len(categories)} prompts of DrawBench in the published order, from which their categories "
            f"follow, but got {len(lines)} in {path or DRAWBENCH.url}. Other lists need a CSV file with categories."
        )
    return [DrawBenchPrompt(line, category) for line, category in zip(lines, categories)]


def prompt_list(name: str, path: str | Path | None = None) -> list[dict[str, Any]]:
    """Prompts by name, or from a file of one's own: entries with the text as `prompt` and what else is known of it.

    Args:
        name: 'geneval', entries as GenEval's metadata; 'drawbench', entries with a `category`; one of
            `prompt_lists.registry.LISTS`; 'shapes', the bundled world's held-out prompts as GenEval's metadata; or a
            file: JSON lines with a `prompt` each (.jsonl), a table with a column 'prompt' (.csv or .tsv), or text with
            a prompt a line.
        path: where a copy of a published list is; None for the one that ships, or to fetch it, once.

    Raises:
        OSError: if it cannot be had.
        ValueError: for a file of another form, or one without prompts.
    """
    if name == "geneval":
        return geneval_prompts(path)
    if name == "drawbench":
        return [asdict(entry) for entry in drawbench_prompts(path)]
    if name in LISTS:
        return entries_of(name, None if path is None else Path(path), _fetched)
    if path is not None:
        raise ValueError(f"Only published lists ({', '.join(PUBLISHED)}) are read from a `prompts_file`, not {name!r}.")
    if name == "shapes":
        from ..shapes.captions import evaluation_prompts

        return evaluation_prompts()
    entries = _own_prompts(Path(name))
    if not entries:
        raise ValueError(f"There are no prompts in {name}.")
    return entries


def check_prompt_list(name: str) -> None:
    """Make sure that a name or path is one that `prompt_list` takes, without reading or fetching anything.

    Raises:
        FileNotFoundError: if it is neither a known name nor a file, with a name that may have been meant.
    """
    known = (*PUBLISHED, "shapes")
    if name not in known and not Path(name).is_file():
        raise FileNotFoundError(
            f"Unknown list of prompts {name!r}. Expected a file or one of: {', '.join(known)}.{suggestion(name, known)}"
        )


def prompts_in_file(path: str | Path) -> list[str]:
    """The texts of a file of prompts, see `prompt_list`.

    Raises:
        OSError: if it is not there.
        ValueError: for a file of another form, or one without prompts.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"Expected a file of prompts at {path}, but there is none.")
    return [entry["prompt"] for entry in prompt_list(str(path))]


def _fetched(one: PromptList) -> Path:
    return fetch(Source(one.title, one.url, one.sha256))


PUBLISHED = ("geneval", "drawbench", *LISTS)
"""Names of published lists."""


def evenly(entries: Sequence[Mapping[str, Any]], limit: int | None) -> list[int]:
    """Numbers of at most `limit` of the entries, ascending: the first of each task (`tag`) or category, as evenly over
    them as can be."""
    if limit is None:
        return list(range(len(entries)))
    rank_in_kind: Counter[Any] = Counter()
    ranks = []
    for index, entry in enumerate(entries):
        kind = entry.get("tag", entry.get("category"))
        ranks.append((rank_in_kind[kind], index))
        rank_in_kind[kind] += 1
    return sorted(index for _, index in sorted(ranks)[:limit])


def _own_prompts(path: Path) -> list[dict[str, Any]]:
    check_prompt_list(str(path))
    if path.suffix.lower() in TABLES:
        return _prompts_in_table(path)
    if path.suffix.lower() != ".jsonl":
        return [{"prompt": line.strip()} for _, line in text_lines(read_text(path))]
    entries = []
    for number, entry in read_json_lines(path):
        if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str) or not entry["prompt"].strip():
            raise ValueError(f"Expected line {number} of {path} to be an object with a `prompt`, but got {entry!r}.")
        entries.append(entry)
    return entries


def _prompts_in_table(path: Path) -> list[dict[str, Any]]:
    rows = read_table(path)
    if not rows:
        return []
    columns = [column for column in rows[0] if column is not None]
    if {"Prompts", "Category"} <= set(columns):
        return [asdict(entry) for entry in drawbench_prompts(path)]
    column = next((one for one in columns if one.strip().lower() in ("prompt", "prompts")), None)
    if column is None:
        raise ValueError(f"Expected a column 'prompt' in {path}, but its first line has: {', '.join(columns)}.")
    entries = []
    for number, row in enumerate(rows, 1):
        # What is beyond the last column has no name.
        if None in row or not (row[column] or "").strip():
            why = "more cells than the first line; put texts with commas into quotes" if None in row else "no prompt"
            raise ValueError(f"Row {number} of {path} has {why}.")
        entries.append({**{one: row[one] for one in columns if one != column}, "prompt": row[column].strip()})
    return entries


def check_metadata(entry: Any) -> dict[str, Any]:
    """`entry`, if it has the form of GenEval's metadata; its classes and colours may be any.

    Raises:
        ValueError: saying what is wrong.
    """
    known = {"tag", "prompt", "include", "exclude"}
    if not isinstance(entry, dict) or not {"tag", "prompt", "include"} <= entry.keys() <= known:
        raise ValueError(f"expected an object of {', '.join(sorted(known))}, but got {entry!r}")
    for kind, optional in (("include", {"color", "position"}), ("exclude", set())):
        for index, one in enumerate(entry.get(kind, [])):
            if not isinstance(one, dict) or not {"class", "count"} <= one.keys() <= {"class", "count"} | optional:
                raise ValueError(f"expected a class and a count in {kind!r}, but got {one!r}")
            if type(one["count"]) is not int or one["count"] < 1:
                raise ValueError(f"expected a count of at least 1, but got {one['count']!r}")
            if "position" in one:
                _check_position(one["position"], index)
    return entry


def _check_position(position: Any, index: int) -> None:
    if not isinstance(position, list) or len(position) != 2 or position[0] not in RELATIONS:
        raise ValueError(f"expected a position such as ['left of', 0], but got {position!r}")
    if position[1] not in range(index):
        raise ValueError(f"expected a position relative to an earlier entry than {index}, but got {position!r}")


def _file(path: str | Path | None, source: Source) -> Path:
    if path is None:
        return fetch(source)
    if not Path(path).is_file():
        raise FileNotFoundError(f"Expected {source.what} at {path}, but there is no such file. Get it: {source.url}")
    return Path(path)

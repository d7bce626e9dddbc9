"""Items: pairs and labelled images, from JSON, JSONL, CSV or Hugging Face datasets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..images import ImageError, as_rgb, decode_image, load_image
from ..packages import require
from ..texts import TABLES, read_json, read_json_lines, read_table
from .hub_sets import load_hub_set
from .places import Places, find_images


if TYPE_CHECKING:
    from ..backbones import Backbone

Item = Mapping[str, Any]

HUB_PREFIX = "hf:"

PAIR_FIELDS = ("prompt", "chosen_path", "reject_path")
LABEL_FIELDS = ("prompt", "path", "label")

# Names that columns have elsewhere.
ALIASES = {
    "caption": "prompt",
    "text": "prompt",
    "image": "path",
    "image_path": "path",
    "chosen": "chosen_path",
    "chosen_image": "chosen_path",
    "rejected": "reject_path",
    "rejected_path": "reject_path",
    "rejected_image": "reject_path",
    "safety_label": "label",
}


@dataclass(frozen=True)
class Items:
    """A list of pairs or of labelled images.

    Pairs: {prompt: text or [of the chosen, of the rejected], chosen_path, reject_path, ...}. Labelled: {prompt, path,
    label: 1 (good, safe) or 0, ...}. A path may also be an image, as in a Hugging Face dataset.

    Attributes:
        rows: the items; any sequence, so that a dataset on disk is not read at once.
        folder: what relative paths are relative to.
        source: for messages.
        places: where the images are, if that was looked up; None to take their paths as they are.
    """

    rows: Sequence[Item]
    folder: Path = Path(".")
    source: str = "the data"
    places: Places | None = None

    @property
    def labelled(self) -> bool:
        return len(self.rows) > 0 and "label" in self[0]

    @property
    def sides(self) -> tuple[str, ...]:
        """Fields that hold the images of an item."""
        return ("path",) if self.labelled else ("chosen_path", "reject_path")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        return standard(self.rows[index])

    def __iter__(self) -> Iterator[Item]:
        return (self[index] for index in range(len(self)))

    def prompts(self, index: int) -> tuple[str, ...]:
        """The prompts of an item, one of each image."""
        prompt = self[index]["prompt"]
        return tuple(prompt) if isinstance(prompt, (list, tuple)) else (prompt,) * len(self.sides)

    def images(self, index: int) -> tuple[Image.Image, ...]:
        """The images of an item, as RGB.

        Raises:
            ImageError: if one is missing or cannot be read.
        """
        return tuple(self.open(self[index][side]) for side in self.sides)

    def open(self, value: Any) -> Image.Image:
        """An image as an item names it; see `open_image`."""
        if self.places is not None and isinstance(value, (str, Path)) and str(value) in self.places.found:
            return load_image(self.places.found[str(value)])
        return open_image(value, self.folder)

    def paths(self) -> list[str]:
        """The paths of all images that are named by one."""
        return [str(item[side]) for item in self for side in self.sides if isinstance(item[side], (str, Path))]

    def describe(self, index: int) -> dict[str, Any]:
        """An item as JSON can hold it."""
        return {key: value if _plain(value) else f"<{type(value).__name__}>" for key, value in self[index].items()}


def read_items(source: str | Path, folder: str | Path | None = None) -> Items:
    """Read pairs or labelled images.

    Args:
        source: a JSON, JSONL or CSV file, or 'hf:NAME[:SPLIT]' for a Hugging Face dataset on the hub or on disk.
        folder: that holds the images, under their paths or the ends of these (see `find_images`); None for the folder
            of the file, which the paths are relative to.

    Raises:
        ImportError: for a Hugging Face dataset without the package `datasets`.
        ValueError: for a file that is missing or holds something else, naming the first item that does not fit; or if
            the folder holds none of the images.
    """
    name = str(source)
    if name.startswith(HUB_PREFIX):
        items = Items(hub_rows(name.removeprefix(HUB_PREFIX)), Path(folder or "."), name)
        # A dataset has columns: what holds for the first row holds for all, and reading all would decode every image.
        checked: Sequence[int] = range(min(1, len(items)))
    else:
        items = Items(read_rows(source), Path(folder) if folder is not None else Path(source).parent, name)
        checked = range(len(items))
    if not len(items):
        raise ValueError(f"Expected at least one item in '{name}', but it is empty.")
    wanted = LABEL_FIELDS if items.labelled else PAIR_FIELDS
    for index in checked:
        item = items[index]
        prompt = item.get("prompt")
        pair = not items.labelled and isinstance(prompt, (list, tuple)) and len(prompt) == 2
        texts = prompt if isinstance(prompt, (list, tuple)) and pair else [prompt]
        fits = item.keys() >= set(wanted) and all(isinstance(text, str) for text in texts)
        if not fits or (items.labelled and item["label"] not in (0, 1)):
            raise ValueError(
                f"Expected {', '.join(wanted)} in every item of '{name}' (labels 0 or 1), but item {index} is "
                f"{items.describe(index)}. Ratings, rankings and votes are made pairs by "
                f"`python -m llava_reward_guide.data pairs`."
            )
        for side in items.sides:
            if not isinstance(item[side], (str, Path, Mapping, Image.Image)) or item[side] == "":
                raise ValueError(
                    f"Expected the path of an image for `{side}` in every item of '{name}', but item {index} has "
                    f"{item[side]!r}."
                )
    if folder is not None and not name.startswith(HUB_PREFIX):
        items = replace(items, places=find_images(items.paths(), Path(folder)))
    return items


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a JSON list, of JSON lines, or of a CSV file with a header.

    Raises:
        ValueError: if the file is missing, cannot be parsed, or is no list of objects.
    """
    path = Path(path)
    try:
        if path.suffix.lower() in TABLES:
            rows: Any = read_table(path)
        elif path.suffix.lower() == ".jsonl":
            rows = [row for _, row in read_json_lines(path)]
        else:
            rows = read_json(path)
    except FileNotFoundError:
        raise ValueError(f"Expected JSON, JSONL or CSV at '{path}', but there is no such file.") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"Expected a list of objects in '{path}', but got {type(rows).__name__}.")
    return rows


def standard(row: Item) -> dict[str, Any]:
    """A row under our names; labels 'Safe' and 'Unsafe' (UnsafeBench) are 1 and 0, a missing caption is empty."""
    item = {**row}
    for alias, name in ALIASES.items():
        if alias in item and name not in item:
            item[name] = item.pop(alias)
    if "label" in item:
        label = item["label"]
        words = {"safe": 1, "unsafe": 0, "1": 1, "0": 0, "1.0": 1, "0.0": 0, "true": 1, "false": 0}
        item["label"] = words.get(label.strip().lower(), label) if isinstance(label, str) else label
        item["prompt"] = item.get("prompt") or ""
    return item


def open_image(value: Any, folder: Path) -> Image.Image:
    """A path, an image, or the {'path', 'bytes'} of an undecoded Hugging Face image, as RGB.

    Raises:
        ImageError: if it is missing or cannot be read.
    """
    if isinstance(value, Image.Image):
        return as_rgb(value)
    if isinstance(value, Mapping):
        if value.get("bytes") is None:
            return open_image(value["path"], folder)
        return decode_image(value["bytes"], "the dataset")
    return load_image(folder / str(value))


def check_images(
    items: Items,
    workers: int = 8,
    progress: Callable[[int], None] = lambda count: None,
    backbone: Backbone | None = None,
) -> tuple[list[int], dict[int, str]]:
    """Decode every image once.

    Args:
        workers: threads.
        progress: called with the number of items checked since the last call.
        backbone: that is to take the images; None to check no more than that they can be read.

    Returns:
        Indices of the items whose images are good; index -> what is wrong with the others.
    """
    known: dict[str, str | None] = {}

    def check(index: int) -> str | None:
        item, problems = items[index], []
        for side in items.sides:
            key = str(item[side]) if isinstance(item[side], (str, Path)) else None
            if key is None or key not in known:
                try:
                    image = items.open(item[side])
                    if backbone is not None:
                        backbone.check_size(image, key or "a row of the dataset")
                    problem = None
                except ImageError as error:
                    problem = str(error)
                if key is not None:
                    known[key] = problem
            else:
                problem = known[key]
            if problem is not None:
                problems.append(problem)
        return " ".join(problems) or None

    good, bad = [], {}
    with ThreadPoolExecutor(workers) as pool:
        for index, problem in enumerate(pool.map(check, range(len(items)))):
            progress(1)
            if problem is None:
                good.append(index)
            else:
                bad[index] = problem
    return good, bad


def hub_rows(name: str) -> Sequence[Item]:
    """Rows of 'NAME[/CONFIG][:SPLIT]', a Hugging Face dataset on the hub or on disk, or of Parquet files, their images
    and videos undecoded.

    On the hub a name has two parts, OWNER/NAME, and a third is that of a configuration.

    Raises:
        ImportError: without the package `datasets`.
        OSError: if the hub cannot be reached, or has no such data set, and the cache has none either.
    """
    require("datasets")
    from datasets import Dataset, List, Video, load_from_disk
    from datasets import Image as ImageFeature

    path, _, split = name.partition(":")
    if files := parquet_files(Path(path)):
        dataset = Dataset.from_parquet([str(file) for file in files])
    elif Path(path).is_dir():
        dataset = load_from_disk(path)
    else:
        owner, *rest = path.split("/")
        path, config = "/".join([owner, *rest[:1]]), "/".join(rest[1:]) or None
        dataset = load_hub_set(path, config, split)
    if isinstance(dataset, dict):
        dataset = dataset[split or "train"]
    for column, feature in dataset.features.items():
        # Decoded by us, so that one corrupt image is one item to skip.
        if isinstance(feature, ImageFeature | Video):
            dataset = dataset.cast_column(column, type(feature)(decode=False))
        elif isinstance(feature, List) and isinstance(feature.feature, ImageFeature):
            dataset = dataset.cast_column(column, List(ImageFeature(decode=False)))
    return dataset


def parquet_files(path: Path) -> list[Path]:
    """The Parquet files that a path stands for: itself, or those in a folder in the order of their names."""
    if path.is_dir():
        return sorted(path.glob("*.parquet"))
    return [path] if path.suffix.lower() == ".parquet" else []


def _plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_plain, value.values()))
    return isinstance(value, (str, int, float, bool, list, tuple, type(None)))

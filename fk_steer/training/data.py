"""Preferences as training takes them: `caption`, two images `jpg_0` and `jpg_1`, and `label_0`, which is 1 if the first
is preferred, 0 if the second is, and 0.5 for a tie, which teaches nothing and is left out."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from llava_reward_guide.data.batches import StepSampler
from llava_reward_guide.data.hub_sets import load_hub_set, without_bars
from llava_reward_guide.packages import require
from llava_reward_guide.texts import read_json


COLUMNS = ("caption", "jpg_0", "jpg_1", "label_0")
IMAGES = ("jpg_0", "jpg_1")


@dataclass(frozen=True)
class Pair:
    """A preference.

    Attributes:
        caption: of both images.
        chosen: the preferred image, in RGB.
        rejected: the other.
    """

    caption: str
    chosen: Image.Image
    rejected: Image.Image


class Preferences:
    """The pairs of a data set that have a preference.

    Args:
        rows: mappings with `COLUMNS`; an image is one of Pillow, bytes, {'bytes', 'path'}, or a path.
        folder: that paths are relative to.

    Raises:
        ValueError: if a column is missing, a label says nothing, or no pair has a preference.
    """

    def __init__(self, rows: Any, folder: Path | None = None) -> None:
        self.rows, self.folder = rows, folder
        columns = getattr(rows, "column_names", None) or (list(rows[0]) if len(rows) else [])
        if missing := [name for name in COLUMNS if name not in columns]:
            raise ValueError(
                f"Expected preferences with the columns {', '.join(COLUMNS)}, but {', '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} missing among: {', '.join(columns) or 'none'}."
            )
        labels = rows["label_0"] if hasattr(rows, "column_names") else [row["label_0"] for row in rows]
        self.chosen: list[int] = []
        """For each pair the place of the preferred image, 0 or 1."""
        self.places: list[int] = []
        """For each pair its row."""
        for place, label in enumerate(labels):
            if label is None or not 0 <= float(label) <= 1:
                raise ValueError(f"Expected `label_0` between 0 and 1, but row {place} has {label!r}.")
            if float(label) != 0.5:
                self.places.append(place)
                self.chosen.append(0 if float(label) > 0.5 else 1)
        self.ties = len(labels) - len(self.places)
        if not self.places:
            raise ValueError(f"Expected pairs with a preference, but all {self.ties} are ties or there are none.")

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Pair:
        """One pair.

        Raises:
            ValueError: if an image cannot be read, naming the row.
        """
        row = self.rows[self.places[index]]
        images = []
        for name in IMAGES:
            try:
                images.append(_open(row[name], self.folder))
            except (OSError, ValueError, UnidentifiedImageError) as error:
                raise ValueError(f"Cannot read `{name}` of row {self.places[index]}: {error}") from error
        chosen = self.chosen[index]
        return Pair(str(row["caption"]), images[chosen], images[1 - chosen])


def _open(value: Any, folder: Path | None) -> Image.Image:
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value["path"]
    if isinstance(value, str):
        value = (folder or Path()) / value
    image = (
        value
        if isinstance(value, Image.Image)
        else Image.open(io.BytesIO(value) if isinstance(value, bytes) else value)
    )
    return image.convert("RGB")


def read_preferences(source: str) -> Preferences:
    """The preferences that `DPOConfig.data` names.

    Raises:
        ImportError: if reading them needs `datasets`, which is not installed.
        ValueError: if there are none, or they are of another form.
        OSError: if a data set on the hub cannot be had.
    """
    if source.startswith("hf:"):
        require("datasets")
        name, _, split = source.removeprefix("hf:").partition(":")
        with without_bars():
            return Preferences(_undecoded(load_hub_set(name, split=split)))
    path = Path(source)
    if path.suffix == ".json" and path.is_file():
        rows = read_json(path)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"Expected a list of preferences in '{path}', but it holds something else.")
        images = path.parent / "images_dpo"
        return Preferences(rows, images if images.is_dir() else path.parent)
    if not path.exists():
        raise ValueError(f"Expected preferences in '{source}', but there is no such file or folder.")
    require("datasets")
    with without_bars():
        return Preferences(_undecoded(_local_rows(path)))


def _local_rows(path: Path) -> Any:
    import datasets

    files = [path] if path.suffix == ".parquet" else sorted(path.rglob("*.parquet")) if path.is_dir() else []
    if files:
        return datasets.load_dataset("parquet", data_files=[str(file) for file in files], split="train")
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        rows = datasets.load_from_disk(str(path))
        return rows["train"] if isinstance(rows, datasets.DatasetDict) else rows
    if any((path / f"metadata.{ending}").is_file() for ending in ("jsonl", "csv")):
        return datasets.load_dataset("imagefolder", data_dir=str(path), split="train")
    raise ValueError(
        f"Expected preferences in '{path}': parquet files, a data set that `save_to_disk` wrote, an image folder "
        "with its metadata.jsonl, or a JSON list. It holds none of these."
    )


def _undecoded(rows: Any) -> Any:
    """The same rows, whose images are decoded when their turn comes, one by one and by us."""
    import datasets

    for name in IMAGES:
        if isinstance(rows.features.get(name), datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows


@dataclass(frozen=True)
class Draw:
    """A pair's turn: all that is drawn at random for it follows from seed, step and index."""

    step: int
    index: int


class DrawSampler(Sampler[list[Draw]]):
    """The micro-batches of a `StepSampler`, with the step of each."""

    def __init__(self, steps: StepSampler) -> None:
        self.steps = steps

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[Draw]]:
        for number, batch in enumerate(self.steps):
            yield [Draw(self.steps.start + number // self.steps.accumulation, index) for index in batch]


@dataclass(frozen=True)
class Example:
    """A pair ready for the encoder.

    Attributes:
        key: of the encoded images, (index, whether mirrored).
        caption: empty if left out.
        pixels: (2, 3, H, W) in [-1, 1], chosen and rejected; None if they are encoded already.
        sizes: (2, 6) SDXL's time ids.
        seed: of the noise and the timestep.
    """

    key: tuple[int, bool]
    caption: str
    pixels: Tensor | None
    sizes: Tensor
    seed: int


class PairDataset(Dataset):
    """Pairs with what chance decides for them.

    Args:
        pairs: the preferences.
        resolution: side of the squares in pixels.
        random_crop: otherwise the middle is cut out.
        flip: mirror half of them.
        caption_dropout: share of captions to leave out.
        seed: of everything.
        encoded: keys of pairs whose images need not be prepared; may grow.
    """

    def __init__(
        self,
        pairs: Preferences,
        resolution: int,
        random_crop: bool = False,
        flip: bool = False,
        caption_dropout: float = 0.0,
        seed: int = 0,
        encoded: Any = frozenset(),
    ) -> None:
        self.pairs, self.resolution = pairs, resolution
        self.random_crop, self.flip, self.caption_dropout = random_crop, flip, caption_dropout
        self.seed, self.encoded = seed, encoded
        self._sizes: dict[tuple[int, bool], tuple[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, draw: Draw) -> Example:
        rng = np.random.default_rng([self.seed, draw.step, draw.index])
        # Always all of them, so that one setting does not change what another draws.
        top, left, mirror, drop = rng.random(4)
        seed = int(rng.integers(2**62))
        mirrored = bool(self.flip and mirror < 0.5)
        key = (draw.index, mirrored)
        if key in self.encoded:
            caption, sizes = self._sizes[key]
            pixels = None
        else:
            pair = self.pairs[draw.index]
            place = (top, left) if self.random_crop else (0.5, 0.5)
            prepared = [square(image, self.resolution, place, mirrored) for image in (pair.chosen, pair.rejected)]
            pixels = torch.stack([one for one, _ in prepared])
            caption, sizes = pair.caption, torch.tensor([ids for _, ids in prepared])
            self._sizes[key] = caption, sizes
        return Example(key, "" if drop < self.caption_dropout else caption, pixels, sizes, seed)


def square(
    image: Image.Image, side: int, place: tuple[float, float], mirrored: bool
) -> tuple[Tensor, tuple[int, int, int, int, int, int]]:
    """A square of an image whose shorter side is brought to it.

    Args:
        side: of the square in pixels.
        place: where the square is within what is left over, from top and left, each in [0, 1].
        mirrored: left and right change places.

    Returns:
        (3, side, side) in [-1, 1], and SDXL's time ids: original height and width, top and left of the cut, and the
        square's height and width.
    """
    width, height = image.size
    scale = side / min(width, height)
    size = (max(side, round(width * scale)), max(side, round(height * scale)))
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    top, left = (math.floor(share * (long - side + 1)) for share, long in zip(place, (size[1], size[0])))
    top, left = min(top, size[1] - side), min(left, size[0] - side)
    image = image.crop((left, top, left + side, top + side))
    if mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        # Seen from the mirrored image.
        left = size[0] - side - left
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
    return pixels, (height, width, top, left, side, side)


def collate(examples: Sequence[Example]) -> list[Example]:
    """A micro-batch as it is: some of its images may be encoded already."""
    return list(examples)

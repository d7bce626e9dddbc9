"""Preferences as a dataset: Parquet files that `datasets.load_dataset` opens, with the columns that trainers read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import ExifTags, Image

from llava_reward_guide.images import load_image
from llava_reward_guide.packages import require

from ..files import png, write_atomically


if TYPE_CHECKING:
    import pyarrow

SHARD = 500 * 2**20
"""Bytes of images in a file, after which the next begins."""

BATCH = 32 * 2**20
"""Bytes of images held at a time while a file is written."""

DATA = "data"
"""Folder of the Parquet files, in that of the dataset."""


@dataclass(frozen=True)
class Side:
    """One of the two candidates of a preference.

    Attributes:
        file: of the image or video; of an answer, of the image it is about.
        sha256: digest of its content.
        source: name of the candidate.
        seed, model: it was made with; None if unknown.
        score: it was chosen by; None where only the two were compared.
        reply: of the judge that scored it, in its words; None without.
        answer: of a text about an image; else None.
    """

    file: Path
    sha256: str
    source: str
    seed: int | None
    model: str | None
    score: float | None
    reply: str | None
    answer: str | None


@dataclass(frozen=True)
class Row:
    """A preference.

    Attributes:
        id: unique in the dataset.
        prompt: of both, or the question.
        chosen, rejected: the better and the worse one.
        margin: how much better the chosen one is.
        probability: that it is better, where the two were compared; else None.
        rule, judge, judge_options, template: what decided; the template as the SHA-256 of the text asked with.
        replies: to the comparisons that decided, in the judge's words.
    """

    id: str
    prompt: str
    chosen: Side
    rejected: Side
    margin: float
    probability: float | None
    rule: str
    judge: str
    judge_options: str
    template: str | None
    replies: tuple[str, ...]


def write(folder: Path, rows: Sequence[Row], kind: str) -> list[dict[str, Any]]:
    """Write rows as Parquet files, the same bytes each time.

    | kind | columns of the content |
    |---|---|
    | image | caption, jpg_0 (the chosen image), jpg_1, label_0 = 1, label_1 = 0, as Pick-a-Pic has them: the content of PNG or JPEG files |
    | video | caption, video_0, video_1, label_0 = 1, label_1 = 0: the content of files |
    | text | prompt, image, chosen, rejected |
    | video-text | prompt, video, chosen, rejected |

    Args:
        folder: of the dataset; the files go to `data` in it.
        rows: in order.
        kind: of the candidates.

    Returns:
        Name and number of rows of each file.

    Raises:
        ImportError: without pyarrow.
        ValueError: if a file is not what was judged.
    """  # noqa: E501
    require("pyarrow")
    shards = _shards(rows)
    files = []
    for number, shard in enumerate(shards):
        name = f"{DATA}/train-{number:05d}-of-{len(shards):05d}.parquet"
        _write_file(folder / name, shard, kind)
        files.append({"file": name, "rows": len(shard)})
    return files


def write_card(folder: Path, kind: str, summary: str) -> None:
    """Write the README.md of a dataset, which says where its files are."""
    text = (
        f"---\nconfigs:\n- config_name: default\n  data_files: {DATA}/*.parquet\ntags:\n- preference\n- dpo\n---\n\n"
        f"# Preferences between {kind}s\n\n{summary}\n"
    )
    write_atomically(folder / "README.md", text.encode())


def _size(row: Row) -> int:
    return row.chosen.file.stat().st_size + row.rejected.file.stat().st_size


def _shards(rows: Sequence[Row]) -> list[list[Row]]:
    shards: list[list[Row]] = [[]]
    size = 0
    for row in rows:
        own = _size(row)
        if shards[-1] and size + own > SHARD:
            shards.append([])
            size = 0
        shards[-1].append(row)
        size += own
    return shards


def _batches(rows: Sequence[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += _size(row)
        if size > BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write_file(path: Path, rows: Sequence[Row], kind: str) -> None:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    schema = _schema(kind)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # Images are compressed already.
        with pyarrow.parquet.ParquetWriter(temporary, schema, compression="zstd", compression_level=1) as writer:
            for batch in _batches(rows):
                values = [_values(row, kind) for row in batch]
                writer.write_table(pyarrow.Table.from_pylist(values, schema=schema))
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _schema(kind: str) -> pyarrow.Schema:
    import pyarrow as pa

    string, number, content = pa.string(), pa.float64(), pa.binary()
    of_both: dict[str, Any] = {"score": number, "seed": pa.int64(), "model": string, "source": string, "reply": string}
    fields: dict[str, Any] = {"id": string}
    metadata = None
    if kind == "video-text":
        fields |= {"prompt": string, "video": content, "chosen": string, "rejected": string}
    elif kind == "text":
        image = pa.struct({"bytes": content, "path": string})
        fields |= {"prompt": string, "image": image, "chosen": string, "rejected": string}
        # What `datasets` makes an image of; the other columns are as their types say.
        metadata = {"huggingface": json.dumps({"info": {"features": _features(fields, of_both)}})}
    else:
        first, second = ("jpg_0", "jpg_1") if kind == "image" else ("video_0", "video_1")
        fields |= {"caption": string, first: content, second: content, "label_0": number, "label_1": number}
        fields |= {"image_0_uid": string, "image_1_uid": string, "best_image_uid": string}
    fields |= _more(of_both)
    return pa.schema(fields, metadata=metadata)


def _more(of_both: dict[str, Any]) -> dict[str, Any]:
    import pyarrow as pa

    two = {f"{name}_{side}": kind for name, kind in of_both.items() for side in (0, 1)}
    texts = dict.fromkeys(("rule", "judge", "judge_options", "template"), pa.string())
    return {**two, "margin": pa.float64(), "probability": pa.float64(), **texts, "replies": pa.list_(pa.string())}


def _features(fields: dict[str, Any], of_both: dict[str, Any]) -> dict[str, Any]:
    named = {"string": "string", "double": "float64", "int64": "int64"}
    features: dict[str, Any] = {}
    for name, kind in {**fields, **_more(of_both)}.items():
        if name == "image":
            features[name] = {"_type": "Image"}
        elif name == "replies":
            features[name] = {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"}
        else:
            features[name] = {"dtype": named[str(kind)], "_type": "Value"}
    return features


def _values(row: Row, kind: str) -> dict[str, Any]:
    chosen, rejected = row.chosen, row.rejected
    values: dict[str, Any] = {"id": row.id}
    if chosen.answer is not None:
        content = content_of(chosen.file, chosen.sha256, kind)
        about = {"video": content} if kind == "video-text" else {"image": {"bytes": content, "path": chosen.file.name}}
        values |= {"prompt": row.prompt, **about, "chosen": chosen.answer, "rejected": rejected.answer}
    else:
        first, second = ("jpg_0", "jpg_1") if kind == "image" else ("video_0", "video_1")
        values |= {
            "caption": row.prompt,
            first: content_of(chosen.file, chosen.sha256, kind),
            second: content_of(rejected.file, rejected.sha256, kind),
            "label_0": 1.0,
            "label_1": 0.0,
            "image_0_uid": chosen.sha256,
            "image_1_uid": rejected.sha256,
            "best_image_uid": chosen.sha256,
        }
    for number, side in enumerate((chosen, rejected)):
        for name in ("score", "seed", "model", "source", "reply"):
            values[f"{name}_{number}"] = getattr(side, name)
    values |= {name: getattr(row, name) for name in ("margin", "probability", "rule", "judge", "judge_options")}
    return {**values, "template": row.template, "replies": list(row.replies)}


def content_of(path: Path, sha256: str, kind: str) -> bytes:
    """What a dataset keeps of a file: its content, or of an image that trainers would see otherwise than a judge
    (turned by EXIF, transparent, deep, of another format than PNG or JPEG) a PNG of what the judge saw.

    Raises:
        ValueError: if its content has another digest than when it was judged.
    """
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path} is not the file that was judged. Put that back, or choose another --out.")
    if kind in ("video", "video-text"):
        return content
    with Image.open(path) as image:
        plain = image.format in ("PNG", "JPEG") and image.mode == "RGB"
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return content if plain and not turned else png(load_image(path))

"""Reading preferences, and what chance decides for a pair."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from fk_steer.training.data import Draw, DrawSampler, PairDataset, Preferences, read_preferences, square
from llava_reward_guide.data.batches import StepSampler


def png(colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


RED, BLUE = (250, 0, 0), (0, 0, 250)
ROWS = [
    {"caption": "first", "jpg_0": png(RED), "jpg_1": png(BLUE), "label_0": 1.0},
    {"caption": "tie", "jpg_0": png(RED), "jpg_1": png(BLUE), "label_0": 0.5},
    {"caption": "second", "jpg_0": png(BLUE), "jpg_1": png(RED), "label_0": 0},
]


def check(pairs: Preferences) -> None:
    """Red is preferred in both pairs, and the tie is left out."""
    assert (len(pairs), pairs.ties) == (2, 1)
    for index, caption in enumerate(["first", "second"]):
        pair = pairs[index]
        assert pair.caption == caption
        assert pair.chosen.getpixel((0, 0)) == RED
        assert pair.rejected.getpixel((0, 0)) == BLUE


def test_rows_of_bytes_paths_and_images(tmp_path):
    check(Preferences(ROWS))
    (tmp_path / "red.png").write_bytes(png(RED))
    rows = [
        {**row, "jpg_0": {"bytes": row["jpg_0"], "path": None}, "jpg_1": Image.open(io.BytesIO(row["jpg_1"]))}
        for row in ROWS
    ]
    rows[0]["jpg_0"] = "red.png"
    check(Preferences(rows, tmp_path))


def test_parquet_and_saved_data_sets_and_image_folders(tmp_path):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(ROWS)
    (tmp_path / "parquet").mkdir()
    table.to_parquet(str(tmp_path / "parquet" / "train.parquet"))
    check(read_preferences(str(tmp_path / "parquet")))
    check(read_preferences(str(tmp_path / "parquet" / "train.parquet")))
    decoded = table.cast_column("jpg_0", datasets.Image()).cast_column("jpg_1", datasets.Image())
    datasets.DatasetDict({"train": decoded}).save_to_disk(str(tmp_path / "saved"))
    check(read_preferences(str(tmp_path / "saved")))
    folder = tmp_path / "images"
    folder.mkdir()
    lines = []
    for number, row in enumerate(ROWS):
        names = {}
        for name in ("jpg_0", "jpg_1"):
            (folder / f"{number}-{name}.png").write_bytes(row[name])
            names[f"{name}_file_name"] = f"{number}-{name}.png"
        lines.append(json.dumps({"caption": row["caption"], "label_0": row["label_0"], **names}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    check(read_preferences(str(folder)))


def test_reading_draws_no_bars(tmp_path, capfd):
    datasets = pytest.importorskip("datasets")
    datasets.utils.enable_progress_bars()
    datasets.Dataset.from_list(ROWS).to_parquet(str(tmp_path / "train.parquet"))
    capfd.readouterr()
    check(read_preferences(str(tmp_path)))
    assert capfd.readouterr().err == ""
    assert not datasets.utils.are_progress_bars_disabled()
    # Who has turned them off finds them off.
    datasets.utils.disable_progress_bars()
    try:
        check(read_preferences(str(tmp_path)))
        assert datasets.utils.are_progress_bars_disabled()
    finally:
        datasets.utils.enable_progress_bars()


def test_the_list_of_unified_reward(tmp_path):
    images = tmp_path / "images_dpo"
    images.mkdir()
    (images / "red.png").write_bytes(png(RED))
    (images / "blue.png").write_bytes(png(BLUE))
    names = {"jpg_0": "red.png", "jpg_1": "blue.png"}
    rows = [{"id": 0, "caption": "first", "label_0": 1, **names}, {"id": 1, "caption": "tie", "label_0": 0.5, **names}]
    rows.append({"id": 2, "caption": "second", "label_0": 0, "jpg_0": "blue.png", "jpg_1": "red.png"})
    (tmp_path / "dpo_data.json").write_text(json.dumps(rows))
    check(read_preferences(str(tmp_path / "dpo_data.json")))


def test_what_cannot_be_trained_on_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"columns caption, jpg_0, jpg_1, label_0, but jpg_1, label_0 are missing"):
        Preferences([{"caption": "a", "jpg_0": b""}])
    with pytest.raises(ValueError, match="`label_0` between 0 and 1, but row 1 has None"):
        Preferences([ROWS[0], {**ROWS[0], "label_0": None}])
    with pytest.raises(ValueError, match="all 1 are ties"):
        Preferences([ROWS[1]])
    with pytest.raises(ValueError, match="Cannot read `jpg_1` of row 1"):
        Preferences([ROWS[0], {**ROWS[0], "jpg_1": b"nothing"}])[1]
    with pytest.raises(ValueError, match="there is no such file or folder"):
        read_preferences(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="It holds none of these"):
        read_preferences(str(tmp_path))


def marked(width: int, height: int) -> Image.Image:
    """Every pixel tells its column and row."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, 0 * rows], 2).astype(np.uint8))


def test_a_square_is_cut_and_its_place_told():
    pixels, ids = square(marked(20, 8), 8, (0.5, 0.5), mirrored=False)
    assert ids == (8, 20, 0, 6, 8, 8)
    levels = ((pixels + 1) * 127.5).round()
    assert levels[0, 0].tolist() == list(range(6, 14))
    assert levels[1, :, 0].tolist() == list(range(8))
    mirrored, ids = square(marked(20, 8), 8, (0.5, 0.999), mirrored=True)
    # Cut at the right edge, which is the left one of the mirrored image.
    assert ids == (8, 20, 0, 0, 8, 8)
    assert ((mirrored + 1) * 127.5).round()[0, 0].tolist() == list(range(19, 11, -1))
    _, ids = square(marked(20, 8), 16, (0.0, 0.0), mirrored=False)
    assert ids == (8, 20, 0, 0, 16, 16)


def dataset(**options) -> PairDataset:
    image = marked(40, 8)
    row = {"caption": "a bar", "jpg_0": image, "jpg_1": image, "label_0": 1}
    return PairDataset(Preferences([row, row]), 8, **options)


def test_both_images_of_a_pair_are_cut_and_mirrored_alike():
    data = dataset(random_crop=True, flip=True)
    seen = set()
    for step in range(40):
        example = data[Draw(step, 0)]
        assert example.pixels is not None
        assert torch.equal(*example.pixels)
        assert torch.equal(*example.sizes)
        seen.add((int(example.sizes[0, 3]), example.key[1]))
        again = data[Draw(step, 0)]
        assert torch.equal(again.pixels, example.pixels)
        assert again.seed == example.seed
    assert len({left for left, _ in seen}) > 10
    assert {mirrored for _, mirrored in seen} == {False, True}
    assert data[Draw(3, 1)].seed != data[Draw(3, 0)].seed


def test_captions_are_left_out_at_their_rate():
    data = dataset(caption_dropout=0.3)
    captions = [data[Draw(step, 0)].caption for step in range(400)]
    assert set(captions) == {"a bar", ""}
    assert captions.count("") / 400 == pytest.approx(0.3, abs=0.07)
    # What is drawn for the rest does not depend on it.
    assert data[Draw(5, 1)].seed == dataset()[Draw(5, 1)].seed


def test_encoded_images_are_not_prepared_again():
    encoded: dict = {}
    data = dataset(encoded=encoded)
    first = data[Draw(0, 0)]
    encoded[first.key] = torch.zeros(2)
    second = data[Draw(1, 0)]
    assert second.pixels is None
    assert (second.caption, second.sizes.tolist()) == (first.caption, first.sizes.tolist())


def test_draws_have_the_number_of_their_step():
    def draws(process: int, start: int = 0) -> list[list[Draw]]:
        return list(DrawSampler(StepSampler(range(8), 4, 1, 3, seed=0, start=start, process=process, num_processes=2)))

    batches = [draws(process) for process in (0, 1)]
    assert [batch[0].step for batch in batches[0]] == [0, 0, 1, 1, 2, 2]
    for step in range(2):
        taken = [draw.index for some in batches for batch in some for draw in batch if draw.step == step]
        assert len(set(taken)) == 4
    assert draws(1, start=2) == batches[1][4:]

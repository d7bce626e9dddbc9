"""Rankings, ratings and votes as published data sets hold them, and images under paths of another machine."""

from __future__ import annotations

import csv
import json
import shutil

import pytest
import torch
from PIL import Image
from tiny_checkpoints import checkpoints
from typer.testing import CliRunner

from llava_reward_guide import LlavaReward
from llava_reward_guide.cli import app
from llava_reward_guide.data import check_images, read_items
from llava_reward_guide.data.__main__ import app as data_app
from llava_reward_guide.data.convert import labels_from_annotations, pairs_from_ratings
from llava_reward_guide.data.places import find_images
from llava_reward_guide.scoring import evaluate


def compared(rows, *arguments, **options):
    pairs, statistics = pairs_from_ratings(rows, *arguments, **options)
    return [(pair["chosen_path"], pair["reject_path"]) for pair in pairs], statistics


HPDV2 = {"prompt": "p", "image_path": ["a", "b", "c", "d"], "rank": [2, 0, 3, 1], "raw_annotations": [{"rank": [1]}]}


@pytest.mark.parametrize("rating", ["overall", "rank", "ranking", None])
def test_hpdv2_ranks(rating):
    """The number at an index is the rank of the image at that index, the lowest being the best."""
    pairs, statistics = pairs_from_ratings([HPDV2], rating)
    found = [(pair["chosen_path"], pair["c_rate"], pair["reject_path"], pair["r_rate"]) for pair in pairs]
    assert found == [
        ("b", 0, "a", 2), ("a", 2, "c", 3), ("d", 1, "a", 2), ("b", 0, "c", 3), ("b", 0, "d", 1), ("d", 1, "c", 3),
    ]  # fmt: skip
    assert all(pair["prompt"] == "p" for pair in pairs)
    assert (statistics.prompts, statistics.images, statistics.ties, statistics.unrated) == (1, 4, 0, 0)


@pytest.mark.parametrize("name", ["file_path", "image_path", "generations", "images", "image"])
@pytest.mark.parametrize("rating", [None, "overall", "human_preference"])
def test_hpdv2_choices(name, rating):
    """1 marks the image that was preferred; choices of different rows are not compared."""
    rows = [
        {"human_preference": [0, 1], "prompt": "p", name: ["a", "b"], "user_hash": "x"},
        {"human_preference": [1, 0], "prompt": "p", name: ["c", "d"], "user_hash": "y"},
    ]
    assert compared(rows, rating)[0] == [("b", "a"), ("c", "d")]


def test_grouped_ratings():
    row = {
        "prompt_id": "7", "prompt": "p", "image_path": ["a", "b", "c"], "rank": [1, 2, 3],
        "fidelity_rating": [3, 7, 3], "image_text_alignment_rating": ["5", None, "6"],
    }  # fmt: skip
    found, statistics = compared([row], "fidelity")
    assert (found, statistics.ties) == ([("b", "a"), ("b", "c")], 1)
    found, statistics = compared([row], "alignment")
    assert (found, statistics.unrated) == ([("c", "a")], 1)
    assert compared([row])[0] == [("a", "b"), ("a", "c"), ("b", "c")]


@pytest.mark.parametrize(
    ("values", "expected", "unrated"),
    [
        (["1", " 2 ", "3.0"], [("a", "b"), ("a", "c"), ("b", "c")], 0),
        ([1, None, 2], [("a", "c")], 1),
        ([1, "", float("nan")], [], 2),
        ([1, 1, 2], [("a", "c"), ("b", "c")], 0),
        ([True, False, True], [("b", "a"), ("b", "c")], 0),
    ],
)
def test_values_of_lists(values, expected, unrated):
    found, statistics = compared([{"prompt": "p", "image_path": ["a", "b", "c"], "rank": values}])
    assert (found, statistics.unrated) == (expected, unrated)


def test_lists_in_cells_of_csv(tmp_path):
    with (tmp_path / "ranks.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["prompt", "image_path", "rank"])
        rows.writerow(["[a] p", "['a.png', 'b.png']", "[2, 1]"])
        rows.writerow(["q", '["c.png", "d.png"]', '["1", "2"]'])
    arguments = ["pairs", str(tmp_path / "ranks.csv"), "--out", str(tmp_path / "out.json")]
    result = CliRunner().invoke(data_app, arguments)
    assert result.exit_code == 0, result.output
    found = [(pair["prompt"], pair["chosen_path"]) for pair in json.loads((tmp_path / "out.json").read_text())]
    assert found == [("[a] p", "b.png"), ("q", "c.png")]


PICK_A_PIC = {"caption": "p", "image_0_uid": "a", "image_1_uid": "b", "ranking_id": 3, "has_label": True}


@pytest.mark.parametrize(
    ("row", "expected", "ties", "unrated"),
    [
        ({**PICK_A_PIC, "label_0": 0.0, "label_1": 1.0}, [("b", "a")], 0, 0),
        ({**PICK_A_PIC, "label_0": "1", "label_1": "0"}, [("a", "b")], 0, 0),
        ({**PICK_A_PIC, "label_0": 0.5, "label_1": 0.5}, [], 1, 0),
        ({**PICK_A_PIC, "best_image_uid": "b"}, [("b", "a")], 0, 0),
        ({**PICK_A_PIC, "best_image_uid": "tie"}, [], 1, 0),
        (
            {"caption": "p", "image_0_url": "https://x/a.png", "image_0_uid": "a", "image_1_uid": "b", "label_0": 1,
             "label_1": 0},
            [("https://x/a.png", "b")], 0, 0,
        ),
        ({"prompt": "p", "path1": "a", "path2": "b", "confidence": None, "choice_dist": None}, [("a", "b")], 0, 0),
        ({"prompt": "p", "path1": "a", "path2": "b", "choice_dist": [12, 7]}, [("a", "b")], 0, 0),
        ({"prompt": "p", "path1": "a", "path2": "b", "choice_dist": [6, 6]}, [], 1, 0),
        ({"prompt": "p", "left_image": "a", "right_image": "b", "vote_type": "rightvote"}, [("b", "a")], 0, 0),
        ({"prompt": "p", "left_image": "a", "right_image": "b", "vote_type": "leftvote"}, [("a", "b")], 0, 0),
        ({"prompt": "p", "left_image": {"path": "a"}, "right_image": "b", "vote_type": "bothbad_vote"}, [], 1, 0),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, [("a", "b")], 0, 0),
        ({"prompt": ["p", "q"], "chosen_path": "a", "reject_path": "b", "c_rate": 1, "r_rate": 5}, [("a", "b")], 0, 0),
    ],
)  # fmt: skip
def test_comparisons_of_two(row, expected, ties, unrated):
    other = {"prompt": "q", "path1": "c", "path2": "d"}
    found, statistics = compared([row, other])
    assert found == [*expected, ("c", "d")]
    assert (statistics.ties, statistics.unrated) == (ties, unrated)


def test_comparisons_without_a_vote():
    rows = [{**PICK_A_PIC, "has_label": False, "label_0": 0, "label_1": 1}, {"prompt": "q", "path1": "c", "path2": "d"}]
    found, statistics = compared(rows)
    assert (found, statistics.unrated) == ([("c", "d")], 2)


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"prompt": "p", "image_path": ["a", "b"], "rank": [1]}, "`image_path` and `rank` in .*, but got 2 and 1"),
        ({"prompt": "p", "image_path": ["a", "b"], "rank": 1}, "`rank` is 1"),
        ({"prompt": "p", "image_path": ["a", "b"], "rank": "1, 2"}, "`rank` is '1, 2'"),
        ({"prompt": "p", "image_path": ["a", "b"], "rank": [[1], [2]]}, r"a number for `rank` .* got \[1\]"),
        ({"prompt": "p", "image_path": ["a", "b"], "rank": [{"x": 1}, 2]}, "a number for `rank` .* got {'x': 1}"),
        ({"prompt": "p", "image_path": ["a", "b"], "rank": ["1st", "2nd"]}, "a number for `rank` .* got '1st'"),
        ({"prompt": "p", "image_path": [["a"], "b"], "rank": [1, 2]}, r"path of an image for `image_path` .* \['a'\]"),
        ({"prompt": "p", "image_path": [None, "b"], "rank": [1, 2]}, "path of an image for `image_path` .* None"),
        ({"prompt": "p", "image_path": "a", "rank": [1, 2]}, r"one number for `rank` in .* got \[1, 2\]"),
        ({"prompt": "p", "image": "a", "rating": [3, 4]}, "one number for `rating`"),
        ({"prompt": "p", "image": {"bytes": b"x", "path": "a"}, "rating": 3}, "path of an image for `image`"),
        ({"prompt": "p", "image": "a", "rating": "good"}, "a number for `rating` .* got 'good'"),
        ({"prompt": "p", "image": "a", "rating": float("inf")}, "a number for `rating` .* got inf"),
        ({"prompt": ["p"], "image": "a", "rating": 3}, r"a text for `prompt` .* got \['p'\]"),
        ({"prompt": 5, "image": "a", "rating": 3}, "a text for `prompt` .* got 5"),
        ({"image": "a", "rating": 3}, "Expected prompt in every row, but .* has none"),
        ({"prompt": "p", "rating": 3}, "Expected path in every row, but .* has none"),
        ({"prompt": "p", "image_path": ["a", "b"]}, "Expected ranking in every row with a list of images, but"),
        ({"prompt": "p", "left_image": "a", "right_image": "b", "vote_type": "best"}, "`vote_type` .* got 'best'"),
        ({"prompt": "p", "path1": "a", "path2": "b", "choice_dist": [1]}, r"`choice_dist` .* got \[1\]"),
        ({"prompt": "p", "path1": ["a"], "path2": "b"}, "path of an image for `path1`"),
        ({**PICK_A_PIC, "best_image_uid": "c"}, "`best_image_uid` .* got 'c'"),
    ],
)
def test_rows_that_cannot_be_compared(row, match, tmp_path):
    """The file, the row and the field are named."""
    good = {"prompt": "p", "path": "x", "rating": 1}
    with pytest.raises(ValueError, match=match):
        pairs_from_ratings([good, row])
    if any(isinstance(value, dict) and b"x" in value.values() for value in row.values()):
        return
    (tmp_path / "first.json").write_text(json.dumps([good]))
    (tmp_path / "second.json").write_text(json.dumps([good, good, row]))
    arguments = ["pairs", tmp_path / "first.json", tmp_path / "second.json", "--out", tmp_path / "out.json"]
    result = CliRunner().invoke(data_app, list(map(str, arguments)))
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert f"item 2 of '{tmp_path / 'second.json'}'" in result.output


def test_fields_that_there_are_not():
    with pytest.raises(ValueError, match="rated by 'fidelity_rating', .*Fields: image_path, prompt, rank"):
        pairs_from_ratings([{"prompt": "p", "image_path": ["a"], "rank": [1]}], "fidelity")


def test_labels_in_lists():
    rows = [{"images": ["a", "b"], "safety_label": ["Safe", "Unsafe"], "text": "t"}, {"image": "c", "label": "0.0"}]
    assert labels_from_annotations(rows) == [
        {"path": "a", "label": 1, "prompt": "t"},
        {"path": "b", "label": 0, "prompt": "t"},
        {"path": "c", "label": 0, "prompt": ""},
    ]


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"image": ["a", "b"], "label": [1]}, "`image` and `label` in row 1, but got 2 and 1"),
        ({"image": "a", "safety_label": ["Safe"]}, "`image` is 'a'"),
        ({"image": "a", "label": None}, "row 1 has None for `label`"),
        ({"image": "a"}, "row 1 has None for `label`"),
        ({"image": "a", "label": {"safe": 1}}, "row 1 has {'safe': 1} for `label`"),
        ({"image": {"bytes": b"x"}, "label": 1}, "path of an image for `image` in row 1"),
        ({"image": "a", "label": 1, "prompt": ["x"]}, "a text for `prompt` in row 1"),
        ({"label": 1}, "row 1 .* None"),
    ],
)
def test_labels_that_are_none(row, match):
    with pytest.raises(ValueError, match=match):
        labels_from_annotations([{"image": "x", "label": 1}, row])


@pytest.mark.parametrize(
    ("item", "match"),
    [
        (HPDV2, "llava_reward_guide.data pairs"),
        ({"prompt": "p", "chosen_path": ["a"], "reject_path": "b"}, r"`chosen_path` in .* item 0 has \['a'\]"),
        ({"prompt": "p", "chosen_path": "a", "reject_path": None}, "`reject_path` in .* item 0 has None"),
        ({"prompt": ["p", None], "chosen_path": "a", "reject_path": "b"}, "item 0"),
        ({"prompt": "p", "path": ["a"], "label": 1}, r"`path` in .* item 0 has \['a'\]"),
    ],
)
def test_items_to_train_on(tmp_path, item, match):
    (tmp_path / "items.json").write_text(json.dumps([item]))
    with pytest.raises(ValueError, match=match):
        read_items(tmp_path / "items.json")


# Paths of another machine.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images 0.png and 1.png in part/, 2.png above it."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "part").mkdir()
    for index, place in enumerate(("part/0.png", "part/1.png", "2.png")):
        Image.effect_noise((60 + 10 * index, 60), 30 + 30 * index).convert("RGB").save(folder / place)
    return folder


@pytest.mark.parametrize(
    ("listed", "place"),
    [
        ("/home/author/data/part/0.png", "part/0.png"),
        ("/home/author/data/2.png", "2.png"),
        ("/home/author/part/2.png", "2.png"),
        ("part/0.png", "part/0.png"),
        ("./part/0.png", "part/0.png"),
        ("elsewhere/part/0.png", "part/0.png"),
        ("..//images/part/0.png", "part/0.png"),
        (r"C:\Users\author\part\0.png", "part/0.png"),
        ("https://example.org/images/part/1.png", "part/1.png"),
        ("file:///home/author/part/1.png", "part/1.png"),
    ],
)
def test_images_by_the_end_of_their_paths(folder, listed, place):
    places = find_images([listed], folder)
    assert dict(places.found) == {listed: folder / place}
    assert places.moved == (listed not in ("part/0.png", "./part/0.png"))


def test_the_longest_end_wins(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "images")
    shutil.copy(folder / "2.png", tmp_path / "images" / "0.png")
    assert find_images(["/home/author/part/0.png"], tmp_path / "images").found == {
        "/home/author/part/0.png": tmp_path / "images" / "part" / "0.png"
    }


def test_images_that_exist_where_they_are_listed(folder, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "own.png")
    listed = [str(tmp_path / "own.png"), "/home/author/2.png"]
    places = find_images(listed, folder)
    assert list(places.found.values()) == [tmp_path / "own.png", folder / "2.png"]
    assert places.moved == 1


def test_one_file_for_two_paths(folder):
    """Of two models' images in folders that are not there, neither is the one that is."""
    listed = ["/a/model_a/2.png", "/a/model_b/2.png", "/a/part/0.png", "part/0.png"]
    places = find_images(listed, folder)
    assert list(places.found) == listed[2:]
    assert places.missing == tuple(listed[:2])
    assert "2 of 4 images found" in str(places)
    assert "/a/model_a/2.png (as is another path to the same file)" in str(places)


def test_missing_images_are_told(folder):
    listed = ["/x/2.png", *(f"/x/missing-{index}.png" for index in range(9))]
    text = str(find_images(listed, folder))
    assert text.startswith(f"1 of 10 images found in '{folder}', 1 of them by the end of their paths; missing: ")
    assert "/x/missing-4.png and 4 more" in text
    with pytest.raises(ValueError, match="0 of 9 images found"):
        find_images(listed[1:], folder)
    with pytest.raises(ValueError, match="no such folder"):
        find_images(listed, folder / "nowhere")


def test_items_with_an_image_folder(folder, tmp_path, monkeypatch):
    """As the trainer reads them; the folder may be relative."""
    items = [{"prompt": "p", "chosen_path": "/home/author/part/1.png", "reject_path": "/home/author/2.png"}]
    (tmp_path / "pairs.json").write_text(json.dumps(items))
    monkeypatch.chdir(folder.parent)
    for place in (folder, folder.name):
        found = read_items(tmp_path / "pairs.json", place)
        assert [image.size for image in found.images(0)] == [(70, 60), (80, 60)]
        assert check_images(found) == ([0], {})
    with pytest.raises(ValueError, match="0 of 2 images found"):
        read_items(tmp_path / "pairs.json", tmp_path)
    assert check_images(read_items(tmp_path / "pairs.json"))[0] == []


def run(*arguments):
    checkpoint = checkpoints()[0] / "alignment"
    options = ("-c", checkpoint, "--num-crops", 1, "--device", "cpu")
    return CliRunner().invoke(app, [str(argument) for argument in ("evaluate-json", *arguments, *options)])


def test_evaluation_with_an_image_folder(folder, tmp_path):
    paths = ["/home/author/data/part/0.png", "/home/author/data/part/1.png", "/home/author/data/2.png"]
    items = [{"prompt": "p", "chosen_path": a, "reject_path": b} for a, b in zip(paths, paths[1:])]
    items.append({"prompt": "p", "chosen_path": paths[0], "reject_path": "/home/author/data/gone.png"})
    (tmp_path / "pairs.json").write_text(json.dumps(items))
    result = run(tmp_path / "pairs.json", "--image-folder", folder, "--out", tmp_path / "out.json")
    assert result.exit_code == 2
    assert f"3 of 4 images found in '{folder}', 3 of them by the end of their paths" in result.output
    assert "missing: /home/author/data/gone.png" in result.output
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["summary"]["items"], found["summary"]["errors"]) == (3, 1)
    assert [item["chosen_path"] for item in found["items"]] == [item["chosen_path"] for item in items]
    reward = LlavaReward.from_pretrained(checkpoints()[0] / "alignment", device="cpu", num_crops=1)
    expected = reward.score([Image.open(folder / name) for name in ("part/0.png", "part/1.png", "2.png")], ["p"] * 3)
    assert found["items"][0]["chosen_reward"] == pytest.approx(expected[0].item(), abs=1e-5)
    assert found["items"][1]["reject_reward"] == pytest.approx(expected[2].item(), abs=1e-5)


@pytest.mark.parametrize("folder_given", [True, False])
def test_evaluation_without_its_images(tmp_path, monkeypatch, folder_given):
    """Found before the model is loaded."""
    monkeypatch.setattr("llava_reward_guide.cli._load", lambda *_, **__: pytest.fail("loaded the model"))
    items = [{"prompt": "p", "path": f"/home/author/{index}.png", "label": 1} for index in range(3)]
    (tmp_path / "labels.json").write_text(json.dumps(items))
    result = run(tmp_path / "labels.json", *(("--image-folder", tmp_path) if folder_given else ()))
    assert result.exit_code == 1
    assert f"0 of 3 images found in '{tmp_path}'" in result.output
    assert "missing: /home/author/0.png, /home/author/1.png" in result.output


def test_evaluation_of_a_data_set(folder, tmp_path):
    """Whose images lie in it."""
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict(
        {"prompt": ["p"], "chosen": [str(folder / "2.png")], "rejected": [str(folder / "part" / "0.png")]}
    )
    for name in ("chosen", "rejected"):
        data = data.cast_column(name, datasets.Image())
    data.save_to_disk(tmp_path / "saved")
    reward = LlavaReward.from_pretrained(checkpoints()[0] / "alignment", device="cpu", num_crops=1)
    result = evaluate(reward, read_items(f"hf:{tmp_path / 'saved'}"))
    images = [Image.open(folder / name) for name in ("2.png", "part/0.png")]
    expected = reward.score(images, ["p"] * 2)
    found = torch.tensor([result.items[0]["chosen_reward"], result.items[0]["reject_reward"]])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    json.dumps(result.items)

"""Reading, converting, filtering and batching of training data."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from llava_reward_guide.data import Items, check_images, read_items
from llava_reward_guide.data.__main__ import app
from llava_reward_guide.data.batches import RewardDataset, StepSampler
from llava_reward_guide.data.convert import best_images, labels_from_annotations, pairs_from_ratings
from llava_reward_guide.data.negatives import hard_negative_images, hard_negative_prompts
from llava_reward_guide.data.overlap import most_similar, remove_overlap
from llava_reward_guide.untrained import random_backbone


def image_reward(path, prompt_id, alignment, fidelity, rank, prompt="a cat "):
    """A row as in ImageRewardDB."""
    return {
        "image_path": path,
        "prompt_id": prompt_id,
        "prompt": prompt,
        "rank": rank,
        "overall_rating": 4,
        "image_text_alignment_rating": alignment,
        "fidelity_rating": fidelity,
    }


ROWS = [
    image_reward("a", "1", 7, 3, 2),
    image_reward("b", "1", 7, 5, 1),
    image_reward("c", "1", 2, 6, 3),
    image_reward("d", "2", 5, 5, 1, "a dog"),
]


@pytest.mark.parametrize(
    ("perspective", "expected", "ties"),
    [
        ("alignment", {("a", "c"), ("b", "c")}, 1),
        ("fidelity", {("b", "a"), ("c", "a"), ("c", "b")}, 0),
        ("overall", {("b", "a"), ("b", "c"), ("a", "c")}, 0),
    ],
)
def test_pairs_from_ratings(perspective, expected, ties):
    pairs, statistics = pairs_from_ratings(ROWS, perspective)
    assert {(pair["chosen_path"], pair["reject_path"]) for pair in pairs} == expected
    assert (statistics.prompts, statistics.images, statistics.pairs, statistics.ties) == (2, 4, len(expected), ties)
    assert all(pair["prompt"] == "a cat " and pair["prompt_id"] == "1" for pair in pairs)


def test_pairs_from_rankings():
    """ImageReward's test.json: a list of images and their ranks for each prompt, ranks may be equal."""
    rows = [{"id": "7", "prompt": "p", "generations": ["a", "b", "c"], "ranking": [2, 1, 2]}]
    pairs, statistics = pairs_from_ratings(rows, "overall")
    assert [(p["chosen_path"], p["c_rate"], p["reject_path"], p["r_rate"]) for p in pairs] == [
        ("b", 1, "a", 2),
        ("b", 1, "c", 2),
    ]
    assert statistics.ties == 1


def test_gap_and_missing_ratings():
    rows = [{"path": name, "prompt": "p", "rating": value} for name, value in zip("abc", ["1", "1.5", ""])]
    pairs, statistics = pairs_from_ratings(rows, min_gap=0.5)
    assert (pairs, statistics.ties, statistics.unrated) == ([], 1, 1)
    assert len(pairs_from_ratings(rows, min_gap=0.4)[0]) == 1
    with pytest.raises(ValueError, match="Expected prompt in every row"):
        pairs_from_ratings([{"path": "a", "rating": 1}])
    with pytest.raises(ValueError, match="Expected ranking in every row"):
        pairs_from_ratings([{"prompt": "p", "generations": ["a"]}])
    with pytest.raises(ValueError, match="'fidelity_rating'"):
        pairs_from_ratings(rows, "fidelity")


def test_labels():
    rows = [
        {"image": "a.png", "safety_label": "Safe", "category": "Hate", "source": "Lexica", "text": "hi "},
        {"image": "b.png", "safety_label": "Unsafe", "text": None},
    ]
    assert labels_from_annotations(rows) == [
        {"path": "a.png", "label": 1, "prompt": "hi "},
        {"path": "b.png", "label": 0, "prompt": ""},
    ]
    with pytest.raises(ValueError, match="Perhaps"):
        labels_from_annotations([{"image": "a.png", "safety_label": "Perhaps"}])


def test_best_images_and_hard_negatives():
    pairs = [
        {"prompt": "x", "chosen_path": "x1", "reject_path": "x2"},
        {"prompt": "x", "chosen_path": "x2", "reject_path": "x3"},
        {"prompt": "y", "chosen_path": "y1", "reject_path": "y2"},
        {"prompt": "z", "chosen_path": "z1", "reject_path": "z2"},
    ]
    best = best_images(pairs)
    assert best == {"x": ["x1"], "y": ["y1"], "z": ["z1"]}
    angle = {"x": 0, "y": 0.3, "z": 1.0, "x1": 0.2, "x2": 0.21, "x3": 0.19, "y1": 2, "y2": 0.5, "z1": 0.6, "z2": 3}

    def embed(names):
        # Lengths differ: it is the cosine that counts.
        angles = torch.tensor([float(angle[name]) for name in names])
        return torch.stack([angles.cos(), angles.sin()], 1) * (1 + torch.arange(len(names)))[:, None]

    prompts = hard_negative_prompts(best, embed)
    assert [(pair["prompt"], pair["chosen_path"], pair["reject_path"]) for pair in prompts] == [
        (["x", "y"], "x1", "x1"),
        (["y", "x"], "y1", "y1"),
        (["z", "y"], "z1", "z1"),
    ]
    images = [(pair[side], pair["prompt"]) for pair in pairs for side in ("chosen_path", "reject_path")]
    found = {pair["chosen_path"]: pair["reject_path"] for pair in hard_negative_images(best, images, embed)}
    # Not its own prompt's x2 or x3, which are closer still.
    assert found == {"x1": "y2", "y1": "z2", "z1": "y2"}


def edit_distance(a: str, b: str) -> int:
    """Wagner and Fischer, as in the textbook."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a):
        row, before = [i + 1], row
        for j, y in enumerate(b):
            row.append(min(before[j] + (x != y), before[j + 1] + 1, row[j] + 1))
    return row[-1]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("abcD ", max_size=8), min_size=1, max_size=4), st.lists(st.text("abc", max_size=8), min_size=1))
def test_most_similar(prompts, others):
    for definition in ("max", "yujian-bo"):
        found = most_similar(prompts, others, definition)
        for prompt, value in zip(prompts, found):
            a, expected = prompt.strip().lower(), []
            for b in others:
                distance, lengths = edit_distance(a, b), len(a) + len(b)
                if not lengths:
                    expected.append(1.0)
                elif definition == "max":
                    expected.append(1 - distance / max(len(a), len(b)))
                else:
                    expected.append(1 - 2 * distance / (lengths + distance))
            assert value == pytest.approx(max(expected))


def test_remove_overlap():
    items = [{"prompt": "a red cube"}, {"prompt": ["a dog", "a red cub"]}, {"prompt": "something else"}]
    kept, dropped = remove_overlap(items, ["A red cube "], 0.85)
    assert kept == [{"prompt": "something else"}]
    assert dropped == ["a red cub", "a red cube"]
    # An empty prompt says nothing.
    items.append({"prompt": ""})
    assert remove_overlap(items, ["", " "], 0.85) == (items, [])
    # 1 - 1 / 10 = 0.9 by one definition, 1 - 2 / 20 = 0.9 by the other.
    assert len(remove_overlap(items, ["A red cube "], 0.91, "yujian-bo")[0]) == 3
    with pytest.raises(ValueError, match="yujian-bo"):
        remove_overlap(items, ["a"], 0.5, "cosine")


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_step_sampler(processes):
    indices = [3 * index for index in range(25)]

    def batches(start=0, seed=1, per_process=2):
        samplers = [StepSampler(indices, 12, per_process, 5, seed, start, rank, processes) for rank in range(processes)]
        steps = [list(sampler) for sampler in samplers]
        assert all(len(found) == len(sampler) for found, sampler in zip(steps, samplers))
        each = samplers[0].accumulation
        return [
            sorted(index for found in steps for micro in found[step * each : (step + 1) * each] for index in micro)
            for step in range(5 - start)
        ]

    whole = batches()
    # The same global batches on any number of processes, from any step on.
    assert whole == [sorted(batch) for batch in StepSampler(indices, 12, 12, 5, 1)]
    assert batches(start=3) == whole[3:]
    assert batches(seed=2) != whole
    # Two steps are an epoch: no item twice.
    assert Counter(whole[0] + whole[1]).most_common(1)[0][1] == 1
    assert whole[0] != whole[2]


def test_step_sampler_refuses():
    with pytest.raises(ValueError, match="at least `batch_size`"):
        StepSampler([1, 2], 3, 1, 1, 0)
    with pytest.raises(ValueError, match="multiple"):
        StepSampler([1, 2, 3, 4], 4, 3, 1, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, shade in (("a", 20), ("b", 200)):
        Image.new("RGB", (30, 20), (shade,) * 3).save(folder / f"{name}.png")
    (folder / "corrupt.png").write_bytes((folder / "a.png").read_bytes()[:50])
    return folder


PAIRS = [
    {"prompt": "p", "chosen_path": "b.png", "reject_path": "a.png"},
    {"prompt": ["p", "q"], "chosen_path": "b.png", "reject_path": "b.png"},
    {"prompt": "p", "chosen_path": "b.png", "reject_path": "missing.png"},
    {"prompt": "p", "chosen_path": "corrupt.png", "reject_path": "a.png"},
]


def test_formats(folder):
    (folder / "pairs.json").write_text(json.dumps(PAIRS))
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS)) + "\n")
    separators = [{**PAIRS[0], "prompt": "a\u2028b\u0085c"}]
    (folder / "separators.jsonl").write_text(json.dumps(separators[0], ensure_ascii=False), encoding="utf-8")
    assert [dict(item) for item in read_items(folder / "separators.jsonl")] == separators
    (folder / "labels.csv").write_text('path,prompt,label\na.png,"a, b\nc",1\nb.png,,unsafe\n')
    for name in ("pairs.json", "pairs.jsonl"):
        items = read_items(folder / name)
        assert [dict(item) for item in items] == PAIRS
        assert (items.prompts(0), items.prompts(1)) == (("p", "p"), ("p", "q"))
        assert [image.getpixel((0, 0))[0] for image in items.images(0)] == [200, 20]
    items = read_items(folder / "labels.csv")
    assert items.labelled
    assert [(item["label"], item["prompt"]) for item in items] == [(1, "a, b\nc"), (0, "")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "to be JSON"),
        ("{}", "list of objects"),
        ("[]", "empty"),
        ('[{"prompt": "a", "chosen_path": "b"}]', "item 0"),
        ('[{"prompt": "a", "path": "b", "label": 2}]', "labels 0 or 1"),
        ('[{"prompt": ["a"], "chosen_path": "b", "reject_path": "c"}]', "item 0"),
    ],
)
def test_wrong_files(tmp_path, content, message):
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_items(tmp_path / "data.json")
    with pytest.raises(ValueError, match="no such file"):
        read_items(tmp_path / "other.json")


def test_unreadable_images(folder):
    items = Items(PAIRS, folder)
    good, bad = check_images(items)
    assert good == [0, 1]
    assert "missing.png" in bad[2]
    assert "corrupt.png" in bad[3]
    dataset = RewardDataset(items, random_backbone("llava_next", "tiny"))
    batch = dataset.collate([dataset[index] for index in range(4)])
    assert batch.weights.tolist() == [1, 1, 0, 0]
    assert batch.inputs.input_ids.shape[0] == 8
    assert "missing.png" in batch.errors[0]


def test_images_too_elongated(tmp_path):
    """Readable ones that the backbone cannot take."""
    Image.new("RGB", (30, 20)).save(tmp_path / "good.png")
    Image.new("RGB", (400, 1)).save(tmp_path / "strip.png")
    items = Items([{"prompt": "p", "chosen_path": "good.png", "reject_path": "strip.png"}], tmp_path)
    backbone = random_backbone("phi3_v", "tiny", num_crops=1)
    assert check_images(items)[0] == [0]
    good, bad = check_images(items, backbone=backbone)
    assert good == []
    assert "strip.png" in bad[0]
    dataset = RewardDataset(items, backbone)
    batch = dataset.collate([dataset[0]])
    assert batch.weights.tolist() == [0]
    assert "less elongated than 336:1" in batch.errors[0]


def test_hugging_face_dataset(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    columns = {"caption": ["p", "p"], "chosen": [str(folder / "b.png")] * 2}
    columns["rejected"] = [str(folder / "a.png"), str(folder / "corrupt.png")]
    data = datasets.Dataset.from_dict(columns)
    for name in ("chosen", "rejected"):
        data = data.cast_column(name, datasets.Image(decode=False))
    data.save_to_disk(tmp_path / "saved")
    items = read_items(f"hf:{tmp_path / 'saved'}")
    assert [image.getpixel((0, 0))[0] for image in items.images(0)] == [200, 20]
    assert check_images(items)[0] == [0]


def test_command_line_adds_hard_negatives(tmp_path):
    """With the CLIP of the bundled world, on renders; one image is missing."""
    from fk_steer.shapes import WEIGHTS
    from fk_steer.shapes.world import render, sample_scene

    rows = ["path,prompt,rating"]
    for shape, colour in (("star", "red"), ("star", "orange"), ("moon", "blue")):
        for index in range(2):
            scene = sample_scene(np.random.default_rng(index), [(shape, colour)])
            render(scene).save(tmp_path / f"{colour}{index}.png")
            rows.append(f"{colour}{index}.png,a photo of a {colour} {shape},{index}")
    rows.append("missing.png,a photo of a blue moon,2")
    (tmp_path / "ratings.csv").write_text("\n".join(rows))
    out = tmp_path / "pairs.json"
    arguments = ["pairs", str(tmp_path / "ratings.csv"), "--out", str(out), "--negatives", str(WEIGHTS / "guide")]
    arguments += ["--device", "cpu"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "missing.png" in result.output
    assert "6 hard negatives added" in result.output
    items = json.loads(out.read_text())
    prompts = {pair["prompt"][0]: pair["prompt"][1] for pair in items if isinstance(pair["prompt"], list)}
    assert prompts["a photo of a red star"] == "a photo of a orange star"
    assert len(items) == 3 + 6
    result = CliRunner().invoke(app, [*arguments, "--validation", "0.34"])
    # Of red, orange and blue one is held out: the negatives that cross over are in neither file.
    parts = [read_items(path) for path in (out, tmp_path / "pairs-validation.json")]
    sides = [{text for index in range(len(part)) for text in part.prompts(index)} for part in parts]
    assert all(sides)
    assert not sides[0] & sides[1]
    assert f"{9 - sum(map(len, parts))} pairs left out" in result.output


def test_command_line(folder, tmp_path):
    rows = ["path,prompt,rating"]
    rows += [f"{number}{letter}.png,prompt {number},{ord(letter)}" for number in range(10) for letter in "abb"]
    (tmp_path / "ratings.csv").write_text("\n".join(rows))
    (tmp_path / "held_out.json").write_text('[{"prompt": "Prompt 3"}]')
    out = tmp_path / "pairs.json"
    arguments = ["pairs", tmp_path / "ratings.csv", "--out", out, "--evaluation", tmp_path / "held_out.json"]
    arguments += ["--threshold", 0.95, "--validation", 1 / 3]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert "20 pairs of 30 images for 10 prompts; 10 ties dropped" in result.output
    assert "1 prompts dropped, and with them 2 items" in result.output
    written = json.loads(out.read_text()), json.loads((tmp_path / "pairs-validation.json").read_text())
    prompts = [{pair["prompt"] for pair in part} for part in written]
    assert [len(part) for part in written] == [12, 6]
    assert not prompts[0] & prompts[1]
    assert "prompt 3" not in prompts[0] | prompts[1]
    assert np.all([pair["c_rate"] > pair["r_rate"] for part in written for pair in part])
    # Evaluations under other names, with a row that has none; lines of JSON out.
    (tmp_path / "other.json").write_text('[{"text": "prompt 3"}, {"prompt": null}]')
    arguments = ["pairs", str(tmp_path / "ratings.csv"), "--out", str(tmp_path / "pairs.jsonl")]
    result = CliRunner().invoke(app, [*arguments, "--evaluation", str(tmp_path / "other.json"), "--threshold", "0.95"])
    assert "1 prompts dropped, and with them 2 items" in result.output
    assert len(read_items(tmp_path / "pairs.jsonl")) == 18
    (tmp_path / "other.json").write_text('[{"question": "prompt 3"}]')
    result = CliRunner().invoke(app, [*arguments, "--evaluation", str(tmp_path / "other.json")])
    assert result.exit_code == 1
    assert "Expected prompts in" in result.output
    result = CliRunner().invoke(app, [*arguments[:-1], str(tmp_path / "pairs.csv")])
    assert result.exit_code == 2
    rows = ["image,safety_label,text", "a.png,Safe,x", "b.png,Unsafe,"]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    arguments = ["labels", str(tmp_path / "labels.csv"), "--out", str(tmp_path / "labels.json")]
    result = CliRunner().invoke(app, arguments)
    assert "2 images, 1 labelled 1" in result.output
    assert [item["label"] for item in read_items(tmp_path / "labels.json")] == [1, 0]

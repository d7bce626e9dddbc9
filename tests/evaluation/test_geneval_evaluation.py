from __future__ import annotations

import json
import math
import os
import time
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig
from typer.testing import CliRunner

from fk_steer.cli import app
from fk_steer.evaluation.geneval.colours import TEMPLATES, ColourClassifier, cutout
from fk_steer.evaluation.geneval.detector import (
    Mask2FormerDetector,
    Selection,
    ShapesDetector,
    detector_pixels,
    instances,
    overlap,
)
from fk_steer.evaluation.geneval.evaluator import (
    Result,
    best_of,
    clustered_mean,
    evaluate_folder,
    lines,
    samples,
    summarize,
)
from fk_steer.evaluation.geneval.rules import Detection
from fk_steer.evaluation.prompts import CLASSES, COLOURS
from fk_steer.shapes.captions import TASKS, detections_of, is_true, parse, sample_pair
from fk_steer.shapes.world import render
from fk_steer.testing import save_clip


def result(tag, prompt, correct):
    return Result("", tag, prompt, correct, "", json.dumps({"prompt": prompt}), "{}")


def test_overall_is_the_mean_of_task_means():
    """Three prompts of one task and one of another weigh the tasks alike."""
    results = [result("colors", f"a {i}", i < 1) for i in range(3) for _ in range(2)]
    results += [result("position", "b", True) for _ in range(2)]
    summary = summarize(results)
    assert summary.overall[0] == pytest.approx((1 / 3 + 1) / 2)
    assert summary.correct_images[0] == pytest.approx(4 / 8)
    assert summary.counts == {"colors": (2, 6), "position": (2, 2)}
    assert (summary.images, summary.prompts) == (8, 4)
    # A task with one prompt has no standard error, and so neither has the mean.
    assert summary.tasks["position"] == (1.0, None)
    assert summary.overall[1] is None


def test_summary_of_prompts_and_best_of():
    outcomes = {"a": [True, False, False, False], "b": [False] * 4, "c": [True, True, False, False]}
    summary = summarize([result("colors", prompt, one) for prompt, some in outcomes.items() for one in some])
    assert summary.correct_images[0] == pytest.approx(3 / 12)
    assert summary.correct_prompts[0] == pytest.approx(2 / 3)
    # By counting the pairs of images: 3 of 6, none, 5 of 6.
    assert summary.best_of[2][0] == pytest.approx((3 / 6 + 0 + 5 / 6) / 3)
    assert summary.best_of[1][0] == pytest.approx(summary.overall[0])
    assert summary.best_of[4][0] == pytest.approx(summary.correct_prompts[0])
    text = lines(summary)
    assert text[:5] == [
        "Summary",
        "=======",
        "Total images: 12",
        "Total prompts: 3",
        "% correct images: 25.00% ± 14.43%",
    ]
    assert "colors           = 25.00% ± 14.43% (3 / 12)" in text
    assert "Overall score (avg. over tasks): 0.25000 ± 0.14434" in text


def test_clustered_mean():
    # Clusters of one size: the standard error of their means.
    values = np.random.default_rng(0).random((7, 4))
    mean, error = clustered_mean(values.tolist())
    assert mean == pytest.approx(values.mean())
    assert error == pytest.approx(values.mean(1).std(ddof=1) / math.sqrt(7))
    # Clusters of one value: the textbook's.
    mean, error = clustered_mean([[0.0], [1.0], [1.0], [1.0]])
    assert error == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    # Unequal ones: the mean is over values.
    assert clustered_mean([[1.0, 1.0, 1.0], [0.0]])[0] == 0.75


def test_best_of():
    assert best_of(1, [True, False, False, False]) == 0.25
    assert best_of(3, [True, False, False, False]) == 0.75
    assert best_of(4, [True, False, False, False]) == 1.0
    assert best_of(2, [False, False]) == 0.0


# The detector


def bilinear(array, height, width):
    """(H, W) resized, pixel centres aligned: the definition, output pixel by output pixel."""
    out = np.empty((height, width))
    for row in range(height):
        for column in range(width):
            y = max((row + 0.5) * array.shape[0] / height - 0.5, 0.0)
            x = max((column + 0.5) * array.shape[1] / width - 0.5, 0.0)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, array.shape[0] - 1), min(left + 1, array.shape[1] - 1)
            upper = array[top, left] * (1 - x + left) + array[top, right] * (x - left)
            lower = array[bottom, left] * (1 - x + left) + array[bottom, right] * (x - left)
            out[row, column] = upper * (1 - y + top) + lower * (y - top)
    return out


def by_hand(class_logits, mask_logits, padded, scaled, original, number):
    """(score, label, box, mask) of the most probable pairs of query and class."""
    weights = np.exp(class_logits)
    probabilities = weights[:, :-1] / weights.sum(1, keepdims=True)
    pairs = sorted(np.ndindex(*probabilities.shape), key=lambda pair: -probabilities[pair])[:number]
    found, resized = [], {}
    for query, label in pairs:
        if query not in resized:
            upsampled = bilinear(mask_logits[query], *padded)[: scaled[0], : scaled[1]]
            resized[query] = bilinear(upsampled, *original)
        logits = resized[query]
        inside = [(row, column) for row, column in np.ndindex(*original) if logits[row, column] > 0]
        mask = np.zeros(original, bool)
        box, confidence = (0.0, 0.0, 0.0, 0.0), 0.0
        if inside:
            rows, columns = zip(*inside)
            mask[rows, columns] = True
            box = (min(columns), min(rows), max(columns) + 1, max(rows) + 1)
            confidence = sum(1 / (1 + math.exp(-logits[place])) for place in inside) / (len(inside) + 1e-6)
        found.append((probabilities[query, label] * confidence, label, box, mask))
    return found


def test_instances():
    rng = np.random.default_rng(0)
    class_logits, mask_logits = rng.normal(size=(5, 4)), rng.normal(size=(5, 6, 8))
    mask_logits[3] = -1.0  # an empty mask
    sizes = (24, 32), (20, 27), (13, 17)
    expected = by_hand(class_logits, mask_logits, *sizes, number=12)
    scores, labels, boxes, masks = instances(torch.tensor(class_logits), torch.tensor(mask_logits), *sizes, number=12)
    assert scores.shape == (12,)
    assert masks.shape == (12, 13, 17)
    for index, (score, label, box, mask) in enumerate(expected):
        assert scores[index].item() == pytest.approx(score, abs=1e-7)
        assert labels[index] == label
        assert boxes[index].tolist() == list(box)
        assert (masks[index].numpy() == mask).all()
    assert [0, 0, 0, 0] in boxes.tolist()
    # The default asks for more than there are.
    assert len(instances(torch.tensor(class_logits), torch.tensor(mask_logits), *sizes)[0]) == 15


def test_detector_pixels():
    image = Image.new("RGB", (100, 50), (255, 0, 0))
    pixels, size = detector_pixels(image)
    # 1333 / 100 is less than 800 / 50.
    assert size == (667, 1333)
    assert pixels.shape == (3, 672, 1344)
    assert pixels[:, 0, 0].tolist() == pytest.approx([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    assert (pixels[:, 667:] == 0).all()
    assert (pixels[:, :, 1333:] == 0).all()
    assert detector_pixels(Image.new("RGB", (512, 512)))[0].shape == (3, 800, 800)


def test_selection():
    def at(x, score):
        return Detection((x, 0.0, x + 9.0, 9.0), score)

    some = [at(0, 0.3), at(1, 0.5), at(2, 0.95), at(50, 0.91), at(3, 0.31)]
    assert [one.score for one in Selection()(some, "colors")] == [0.95, 0.91, 0.5, 0.31]
    assert [one.score for one in Selection()(some, "counting")] == [0.95, 0.91]
    assert [one.score for one in Selection(max_objects=1)(some, "colors")] == [0.95]
    assert [one.score for one in Selection(max_overlap=0.5)(some, "colors")] == [0.95, 0.91]
    assert len(Selection()([at(x, 0.9) for x in range(40)], "colors")) == 16
    # Both ends of a box belong to it: 10 x 10 pixels each, 5 columns shared.
    assert overlap((0, 0, 9, 9), (5, 0, 14, 9)) == pytest.approx(50 / 150)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    backbone = SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=6,
        num_labels=80,
    )
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder / "mask2former")
    save_clip(folder / "clip")
    return folder


def test_mask2former(models):
    """The detections are those of the model's output by hand."""
    selection = Selection(threshold=0.0, counting_threshold=0.0, max_objects=100)
    detector = Mask2FormerDetector(
        str(models / "mask2former"), str(models / "clip"), "cpu", selection, side=64, longest_side=90
    )
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8))
    found = detector.detect(image, "colors")
    pixels, size = detector_pixels(image, 64, 90)
    assert (size, pixels.shape) == ((54, 90), (3, 64, 96))
    with torch.no_grad():
        output = detector.model(pixel_values=pixels[None])
    assert output.masks_queries_logits.shape == (1, 6, 16, 24)
    assert output.class_queries_logits.shape == (1, 6, 81)
    class_logits = output.class_queries_logits[0].double().numpy()
    expected = by_hand(class_logits, output.masks_queries_logits[0].double().numpy(), (64, 96), size, (24, 40), 100)
    expected = [one for one in expected if one[0] > 0]
    assert expected
    assert sum(map(len, found.values())) == len(expected)
    assert Counter({name: len(some) for name, some in found.items()}) == Counter(CLASSES[one[1]] for one in expected)
    for name, some in found.items():
        own = sorted((one for one in expected if CLASSES[one[1]] == name), key=lambda one: -one[0])
        for detection, (score, _, box, mask) in zip(some, own):
            assert detection.score == pytest.approx(score, rel=1e-4)
            assert detection.box == box
            assert (detection.mask == mask).all()
            assert detector.colour_of(image, name, detection) in COLOURS


def test_detector_of_other_classes(models, tmp_path):
    model = Mask2FormerForUniversalSegmentation.from_pretrained(models / "mask2former")
    model.config.id2label[0] = "bicycle"
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Expected a detector of COCO's 80 classes"):
        Mask2FormerDetector(str(tmp_path), str(models / "clip"), "cpu")


def test_cutout():
    image = Image.new("RGB", (8, 6), (10, 20, 30))
    mask = np.zeros((6, 8), bool)
    mask[2:4, 3:7] = True
    mask[2, 3] = False
    cropped = np.asarray(cutout(image, (3.0, 2.0, 7.0, 4.0), mask))
    assert cropped.shape == (2, 4, 3)
    assert cropped[0, 0].tolist() == [0x99] * 3
    assert cropped[0, 1].tolist() == cropped[1, 0].tolist() == [10, 20, 30]


def test_colour_classifier(models):
    classifier = ColourClassifier(str(models / "clip"))
    features = []
    for colour in COLOURS:
        texts = [template.format(colour=colour, name="cow") for template in TEMPLATES]
        assert texts[1] == f"a photo of a {colour}-colored cow"
        own = []
        for text in texts:
            tokens = classifier.tokenizer([text], return_tensors="pt")
            own.append(F.normalize(classifier.model.get_text_features(**tokens).pooler_output[0], dim=0))
        features.append(F.normalize(sum(own) / 3, dim=0))
    torch.testing.assert_close(classifier.embeddings("cow"), torch.stack(features), rtol=1e-4, atol=1e-5)
    assert classifier(Image.new("RGB", (20, 90), (255, 0, 0)), "cow") in COLOURS


# The folder


@pytest.fixture
def folder(tmp_path):
    """Two images per prompt: one that shows what the prompt says, one of another scene; and what is true of each."""
    rng = np.random.default_rng(5)
    by_task: dict[str, tuple] = {}
    while len(by_task) < len(TASKS):
        scene, text = sample_pair(rng)
        by_task.setdefault(parse(text)["tag"], (scene, parse(text)))
    scenes = [scene for scene, _ in by_task.values()]
    truth = {}
    for index, (scene, line) in enumerate(by_task.values()):
        samples = tmp_path / f"{index:05d}" / "samples"
        samples.mkdir(parents=True)
        (samples.parent / "metadata.jsonl").write_text(json.dumps(line))
        (samples.parent / "grid.png").write_bytes(b"no sample")
        for number, shown in enumerate((scene, scenes[(index + 1) % len(scenes)])):
            path = samples / f"{number:05d}.png"
            render(shown).save(path)
            truth[str(path)] = is_true(line, detections_of(shown))
    return tmp_path, truth


def evaluate(*arguments):
    return CliRunner().invoke(app, ["eval", "geneval", *map(str, arguments)])


def test_evaluating_a_folder(folder):
    path, truth = folder
    first = evaluate(path, "--detector", "shapes")
    assert first.exit_code == 0, first.output
    written = path / "evaluation" / "results.jsonl"
    results = [json.loads(line) for line in written.read_text().splitlines()]
    columns = ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
    assert all(list(one) == columns for one in results)
    assert {one["filename"]: one["correct"] for one in results} == truth
    assert sum(truth.values()) >= len(TASKS)
    assert not all(truth.values())
    assert all(bool(one["reason"]) is not one["correct"] for one in results)
    summary = json.loads((path / "evaluation" / "summary.json").read_text())
    assert summary["images"] == 12
    assert summary["correct_images"][0] == pytest.approx(sum(truth.values()) / 12)
    assert f"% correct images: {sum(truth.values()) / 12:.2%}" in first.output
    assert (path / "evaluation" / "summary.txt").read_text().startswith("Summary\n=======\nTotal images: 12\n")

    # Again: nothing is judged; then only what is new.
    stamp = written.stat().st_mtime_ns
    assert evaluate(path, "--detector", "shapes").exit_code == 0
    assert written.stat().st_mtime_ns == stamp
    sample = path / "00000" / "samples"
    (sample / "00001.png").write_bytes((sample / "00000.png").read_bytes())
    later = written.stat().st_mtime + 10
    os.utime(sample / "00001.png", (later, later))
    (sample / "00002.png").write_bytes(b"no image")
    again = evaluate(path, "--detector", "shapes")
    assert again.exit_code == 0, again.output
    assert "skipped" in again.output
    assert "00002.png" in again.output
    results = [json.loads(line) for line in written.read_text().splitlines()]
    assert len(results) == 12
    assert results[1]["correct"]
    other = evaluate(path)
    assert other.exit_code == 1
    assert "another `detector`" in other.stderr


class Failing(ShapesDetector):
    """Gives up after some images."""

    def __init__(self, images):
        self.left = images

    def detect(self, image, task):
        if not self.left:
            raise RuntimeError("out of memory")
        self.left -= 1
        return super().detect(image, task)


def test_verdicts_are_kept_if_the_detector_fails(folder):
    path, truth = folder
    images = samples(path)
    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate_folder(images, lambda: Failing(5), path / "results.jsonl")
    eye = Failing(len(images) - 5)
    results, _ = evaluate_folder(images, lambda: eye, path / "results.jsonl")
    assert {one.filename: one.correct for one in results} == truth
    assert eye.left == 0


def test_an_image_replaced_during_the_run_is_judged_again(folder):
    """After its verdict, and before the results are written for the last time."""
    path, truth = folder
    images = samples(path)
    right, wrong = images[0].path, images[1].path
    assert (truth[str(right)], truth[str(wrong)]) == (True, False)

    class Replacing(ShapesDetector):
        judged = 0

        def detect(self, image, task):
            self.judged += 1
            if self.judged == 3:
                wrong.write_bytes(right.read_bytes())
                os.utime(wrong, (time.time(), time.time()))
            return super().detect(image, task)

    assert not evaluate_folder(images, Replacing, path / "results.jsonl")[0][1].correct
    assert evaluate_folder(images, ShapesDetector, path / "results.jsonl")[0][1].correct


def test_mask2former_from_the_command_line(folder, models):
    """Random weights find nothing above the threshold: the image is wrong, for want of objects."""
    path, _ = folder
    detector = ("--detector-path", models / "mask2former", "--clip-path", models / "clip", "--device", "cpu")
    for image in list(path.glob("*/samples/*"))[1:]:
        image.unlink()
    output = evaluate(path, *detector, "--out", path / "other")
    assert output.exit_code == 0, output.output
    assert "Overall score (avg. over tasks): 0.00000" in output.output
    settings = json.loads((path / "other" / "settings.json").read_text())
    assert settings["counting_threshold"] == 0.9
    missing = evaluate(path, "--detector-path", path / "nowhere", "--out", path / "third")
    assert missing.exit_code == 1
    assert "nowhere" in missing.stderr
    assert not (path / "third").exists()


def test_empty_folder(tmp_path):
    output = evaluate(tmp_path, "--detector", "shapes")
    assert output.exit_code == 1
    assert "00000.png" in output.stderr
